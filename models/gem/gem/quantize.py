"""Numbers in fewer bits, by the rules of docs/quantization.md: codes and scales of weights, codes of activations, products.

Weights are quantized row by row in f32, in the documented order of operations, so that codes and scales are those of the
compiler exactly. The rest is ordinary tensor arithmetic in the type of the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST_AMAX = np.float32(2.0**-100)
"""Rows, groups and activations below this are zeros."""

INT8_DIVISORS = 127.0
INT8_SHRINKS = tuple((64 - i) / 64 for i in range(5))
INT4_DIVISORS = tuple(10 - i / 2 for i in range(9))
REFINEMENTS = 4


@dataclass
class Codes:
    """A matrix [n, k] as codes: weight = code · scale of its row (`group` None) or of its row and group of inputs."""

    codes: np.ndarray  # int8 [n, k]
    scales: np.ndarray  # f32 [n], or f16 [n, ⌈k/group⌉]
    group: int | None

    def dequantize(self) -> np.ndarray:
        """f32(code) · f32(scale), [n, k]"""
        scales = self.scales.astype(np.float32)
        if self.group is None:
            return self.codes * scales[:, None]
        return self.codes * scales.repeat(self.group, 1)[:, : self.codes.shape[1]]


def quantize_int8(w: np.ndarray) -> Codes:
    """w f32 [n, k] → codes −127..=127, one f32 scale per row."""
    amax = np.abs(w).max(1)
    steps = [amax * np.float32(shrink) / np.float32(INT8_DIVISORS) for shrink in INT8_SHRINKS]
    scales = _search(w, amax, steps, -127, 127, lambda s: s)
    return Codes(_codes(w, scales, -127, 127).astype(np.int8), scales, None)


def quantize_int4(w: np.ndarray, group: int) -> Codes:
    """w f32 [n, k] → codes −8..=7, one f16 scale per row and group of inputs, which may be negative."""
    n, k = w.shape
    parts = [w[:, at : at + group] for at in range(0, k, group)]
    codes, scales = [], []
    for part in parts:
        amax = np.abs(part).max(1)
        steps = [sign * amax / np.float32(d) for d in INT4_DIVISORS for sign in (np.float32(1), np.float32(-1))]
        found = _search(part, amax, steps, -8, 7, _round_to_f16)
        codes.append(_codes(part, found, -8, 7).astype(np.int8))
        scales.append(found.astype(np.float16))
    return Codes(np.concatenate(codes, 1), np.stack(scales, 1), group)


def _round_to_f16(scales: np.ndarray) -> np.ndarray:
    """The nearest f16; the largest finite one instead of an infinity."""
    with np.errstate(over="ignore"):
        return np.clip(scales.astype(np.float16).astype(np.float32), -65504, 65504)


Round = Callable[[np.ndarray], np.ndarray]


def _search(x: np.ndarray, amax: np.ndarray, steps: Iterable[np.ndarray], low: int, high: int, round_: Round) -> np.ndarray:
    """Scales [n] of least squared error for x [n, k] among the steps, then improved by least squares; of equals the first."""
    best = np.zeros_like(amax)
    error = _error(x, amax, best, low, high)
    for step in steps:
        scale = round_(step)
        e = _error(x, amax, scale, low, high)
        best, error = np.where(e < error, scale, best), np.where(e < error, e, error)
    falling = np.ones(len(x), bool)
    for _ in range(REFINEMENTS):
        scale = round_(_least_squares(x, best, low, high))
        e = _error(x, amax, scale, low, high)
        falling &= e < error
        best, error = np.where(falling, scale, best), np.where(falling, e, error)
    return np.where(amax < SMALLEST_AMAX, np.float32(0), best)


def _inverse(scales: np.ndarray) -> np.ndarray:
    """1/s as [n, 1]; 0 for scales that have no inverse."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))[:, None]


def _codes(x: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.rint(np.clip(x * _inverse(scales), np.float32(low), np.float32(high)))


def _error(x: np.ndarray, amax: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """Σ (x/s − q)² · (s/amax)², [n]; for a scale of 0, Σ (x/amax)²."""
    e = x * _inverse(scales) - _codes(x, scales, low, high)
    unit = scales / np.maximum(amax, SMALLEST_AMAX)
    whole = x * _inverse(np.maximum(amax, SMALLEST_AMAX))
    with np.errstate(over="ignore", invalid="ignore"):  # a scale that is far too small loses, as ∞ or NaN
        return np.where(_inverse(scales)[:, 0] == 0, _sum(whole * whole), _sum(e * e) * (unit * unit))


def _least_squares(x: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """The scales that fit the present codes best: Σ (x/s)·q / Σ q² times s."""
    q = _codes(x, scales, low, high)
    fit, norm = _sum(x * _inverse(scales) * q), _sum(q * q)
    return np.where(norm > 0, fit / np.where(norm > 0, norm, 1) * scales, np.float32(0)).astype(np.float32)


def _sum(terms: np.ndarray) -> np.ndarray:
    """Sums of rows f32 [n, k] → [n]: eight partial sums, of every eighth term each, then halves onto halves."""
    n, k = terms.shape
    padded = np.zeros((n, -(-k // 8), 8), np.float32)
    padded.reshape(n, -1)[:, :k] = terms
    partial = np.zeros((n, 8), np.float32)
    for column in range(padded.shape[1]):
        partial += padded[:, column]
    partial = partial[:, :4] + partial[:, 4:]  # 0+4, 1+5, 2+6, 3+7
    partial = partial[:, :2] + partial[:, 2:]
    return partial[:, 0] + partial[:, 1]


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., k] → codes −127..=127 (whole numbers in x's own type) [..., k] and one scale per row [..., 1]."""
    amax = x.abs().amax(-1, keepdim=True)
    zero = amax < float(SMALLEST_AMAX)
    amax = torch.where(zero, torch.ones_like(amax), amax)
    inverse = torch.full_like(amax, 127) / amax  # 127 / amax would be reciprocal times 127, rounded twice
    codes = (x * inverse).round().clamp(-127, 127)  # half to even
    return torch.where(zero, torch.zeros_like(codes), codes), torch.where(zero, torch.zeros_like(amax), amax / 127)

"""The numbers of ISA.md in PyTorch: f32 with every operation rounded once, in the order that the page states.

`fma` goes through double, in which the product is exact; the sum is then rounded twice, which differs from once in one of
2^29 sums or so, and then by the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTIAL_SUMS = 16


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    b, c = (x.double() if isinstance(x, Tensor) else x for x in (b, c))
    return (a.double() * b + c).float()


def _fold(p: Tensor) -> Tensor:
    """Partial sums [..., 16] → [...], halves onto halves."""
    while p.shape[-1] > 1:
        low, high = p.chunk(2, -1)
        p = low + high
    return p[..., 0]


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """x [..., n] as pieces of 16, filled up with zeros, which change no sum."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % PARTIAL_SUMS)).split(PARTIAL_SUMS, -1)


def row_sum(x: Tensor) -> Tensor:
    """x [..., n] → Σ_j x_j [...] by the rule of sums."""
    p = torch.zeros(())
    for piece in _pieces(x):
        p = p + piece
    return _fold(p)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a, b [..., n] → Σ_j a_j·b_j [...] by the rule of sums with fma."""
    p = torch.zeros(())
    for product in _pieces(a.double() * b.double()):  # exact in double, as in fma
        p = (product + p).float()
    return _fold(p)


def _constant(pattern: int) -> float:
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))


def _patterns(*patterns: int) -> list[float]:
    return [_constant(p - (1 << 32) if p >> 31 else p) for p in patterns]


EXP = _patterns(0x39506967, 0x3AB743CE, 0x3C088908, 0x3D2AA9C1, 0x3E2AAAAA, 0x3F000000)
LN = _patterns(
    0x3D9021BB, 0xBDEBD1B8, 0x3DEF251A, 0xBDFE5D4F, 0x3E11E9BF, 0xBE2AAE50, 0x3E4CCEAC, 0xBE7FFFFC, 0x3EAAAAAA
)
LOG2_E, LN2_HIGH, LN2_LOW, SQRT_HALF = _patterns(0x3FB8AA3B, 0x3F318000, 0xB95E8083, 0x3F3504F3)
GELU_CUBE, GELU_LINE = _patterns(0x3D922279, 0x3FCC422A)


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    p = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = fma(p, x, c)
    return p


def exp(x: Tensor) -> Tensor:
    x = x.clamp(-104, 89)
    n = fma(x, LOG2_E, 12582912.0) - 12582912.0
    r = fma(n, -LN2_HIGH, x)
    r = fma(n, -LN2_LOW, r)
    p = fma(r * r, _polynomial(EXP, r), r) + 1
    half = torch.floor(n / 2)
    return (p * _power_of_two(half)) * _power_of_two(n - half)


def _power_of_two(n: Tensor) -> Tensor:
    """2ⁿ, a normal number, from its pattern: torch.ldexp goes through pow, which may be off by the last bit."""
    return ((n.int() + 127) << 23).view(torch.float32)


def ln(x: Tensor) -> Tensor:
    """Of normal numbers: what routing takes logarithms of is at least 1e-6."""
    m, e = torch.frexp(x)
    e = e.float()
    low = m < SQRT_HALF
    e, f = torch.where(low, e - 1, e), torch.where(low, (m + m) - 1, m - 1)
    z = f * f
    y = (_polynomial(LN, f) * f) * z
    y = fma(z, -0.5, fma(e, LN2_LOW, y))
    return fma(e, LN2_HIGH, f + y)


def silu(x: Tensor) -> Tensor:
    return x / (1 + exp(0 - x))


def gelu(x: Tensor) -> Tensor:
    return x / (1 + exp(0 - x * fma(x * x, GELU_CUBE, GELU_LINE)))


def softmax(z: Tensor, valid: Tensor | None = None) -> Tensor:
    """z [..., n] → [...], n; where `valid` is given, over those terms, which come first in every row."""
    if valid is not None:
        z = z.masked_fill(~valid, float("-inf"))
    e = exp(z - z.amax(-1, keepdim=True))
    if valid is not None:
        e = torch.where(valid, e, torch.zeros_like(e))
    return e / row_sum(e)[..., None]


def sqrt(x: Tensor) -> Tensor:
    """Rounded correctly, as the root of a double is; torch.sqrt of f32 may be off by the last bit."""
    return torch.sqrt(x.double()).float()


def rms_norm(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    r = 1 / sqrt(dot(x, x) / x.shape[-1] + eps)
    x = x * r[..., None]
    return x if w is None else x * w


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, -1)
    return torch.cat((fma(x1, cos, -(x2 * sin)), fma(x2, cos, x1 * sin)), -1)


def mix(weights: Tensor, rows: Tensor) -> Tensor:
    """weights [..., n], rows [..., n, m] → [..., m]: t = fma(weight, row, t) from 0, row after row."""
    t = torch.zeros(())
    for product in (weights[..., None].double() * rows.double()).unbind(-2):  # exact in double, as in fma
        t = (product + t).float()
    return t

"""Figures over matrices M [D, D] of per-domain values: M[s][t] is domain t's after fine-tuning on s; base [D] is before.

A score S is higher when better: here the compression ratio, 8 bits over bits per byte. docs/gem.md §7 names the three
metrics; published formulas differ in detail.
"""

from __future__ import annotations

import numpy as np


def scores(bits_per_byte: np.ndarray) -> np.ndarray:
    """How many times smaller the text becomes: 8 / bits per byte."""
    return 8 / np.asarray(bits_per_byte, float)


def others_mean(m: np.ndarray) -> np.ndarray:
    """[D]: mean over t ≠ s of M[s][t]."""
    m = np.asarray(m, float)
    return (m.sum(1) - np.diag(m)) / (len(m) - 1)


def domain_specialization_index(m: np.ndarray) -> np.ndarray:
    """[D]: DSI_d = (S_d − mean_{j≠d} S_j) / S_d, of the model fine-tuned on d. Every row alike: of one model."""
    return (np.diag(m) - others_mean(m)) / np.diag(m)


def generalization_gap(m: np.ndarray) -> float:
    """GG = mean over s of (M[s][s] − mean_{t≠s} M[s][t])."""
    return float((np.diag(m) - others_mean(m)).mean())


def cross_domain_transfer(m: np.ndarray) -> np.ndarray:
    """[D, D]: CDTR(s→t) = M[s][t] / M[t][t]; 1 on the diagonal."""
    return np.asarray(m, float) / np.diag(m)


def gain(bits: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[D]: bits per byte that fine-tuning on d took off d."""
    return np.asarray(base, float) - np.diag(bits)


def forgetting(bits: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[D]: mean over t ≠ s of bits per byte added to t by fine-tuning on s. A domain that improved counts against it."""
    return others_mean(np.asarray(bits, float) - np.asarray(base, float))


def preservation(plain: np.ndarray, preserved: np.ndarray, base: np.ndarray) -> dict[str, float | None]:
    """How much less is forgotten and how much gain is kept, as shares of plain fine-tuning's means over all s.

    None where plain fine-tuning forgot, or gained, nothing: there is no share of it.
    """
    f_plain, f_kept = forgetting(plain, base).mean(), forgetting(preserved, base).mean()
    g_plain, g_kept = gain(plain, base).mean(), gain(preserved, base).mean()
    return {
        "less_forgetting": float(1 - f_kept / f_plain) if f_plain > 0 else None,
        "gain_kept": float(g_kept / g_plain) if g_plain > 0 else None,
    }

"""The same definitions once more, token by token, in plain Python loops: slow, and hard to get wrong."""

from __future__ import annotations

import math

import numpy as np

from gem.config import ScarConfig


def best_first(values: list[float]) -> list[int]:
    """Indices in descending order of value, lower index first among equals."""
    return [i for _, i in sorted((-v, i) for i, v in enumerate(values))]


def chosen_modules(a: np.ndarray, scar: ScarConfig) -> list[set[int]]:
    """a [T, C] f32 → each token's set."""
    num_tokens, num_clusters = a.shape
    cap = min(num_tokens, math.ceil(scar.capacity_factor * num_tokens * scar.k_max / num_clusters))
    takes = [set(best_first(a[:, c].tolist())[:cap]) for c in range(num_clusters)]
    out = []
    for t in range(num_tokens):
        row = a[t].tolist()
        order = best_first(row)
        if scar.policy == "top_k":
            out.append(set(order[: scar.k_max]))
        elif scar.policy == "top_p":
            mass, n = np.float32(0), 0
            while n < num_clusters and (n == 0 or mass < np.float32(scar.p)):
                mass = np.float32(mass + a[t, order[n]])
                n += 1
            out.append(set(order[: max(scar.k_min, min(scar.k_max, n))]))
        elif scar.policy == "threshold":
            out.append({c for c in order[: scar.k_max] if a[t, c] >= np.float32(scar.tau)})
        elif scar.policy == "expert_choice":
            out.append({c for c in range(num_clusters) if t in takes[c]})
        elif scar.policy == "bidirectional":
            out.append({c for c in order[: scar.k_max] if t in takes[c]})
        else:
            raise AssertionError(scar.policy)
    return out


def gates(a: np.ndarray, chosen: list[set[int]], scar: ScarConfig) -> np.ndarray:
    out = np.zeros(a.shape, np.float64)
    for t, modules in enumerate(chosen):
        total = sum(float(a[t, c]) for c in modules)
        for c in modules:
            out[t, c] = a[t, c] / total if scar.norm_gates and scar.policy != "expert_choice" else a[t, c]
    return out


def clustered_sees(clusters: list[int], t: int, j: int, window: int, sinks: int, cap: int) -> bool:
    if j > t:
        return False
    own = [i for i in range(t + 1) if clusters[i] == clusters[t]]
    most_recent = own[-cap:] if cap else []
    return t - j < window or j < sinks or j in most_recent


def rope(x: list[float], position: int, theta: float) -> list[float]:
    half = len(x) // 2
    out = list(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()

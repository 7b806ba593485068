"""How near a routing decision was to falling the other way.

A model whose margins are all well above rounding error takes the same decisions on every target, so a test
may demand exact equality; below that a difference proves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .block import Routing
from .config import ScarConfig
from .select import select

NONE = float("inf")


def boundary_gap(scores: Tensor, chosen: Tensor, dim: int) -> float:
    """Smallest distance along dim between the lowest chosen and the highest other score."""
    low = scores.masked_fill(~chosen, NONE).amin(dim)
    high = scores.masked_fill(chosen, -NONE).amax(dim)
    return float((low - high).min())


def selection_margin(a: Tensor, scar: ScarConfig) -> float:
    """a [B, T, C] → how far the scores may move, about, before some token's set of modules changes."""
    chosen, _ = select(a, scar)
    descending = torch.sort(a, dim=-1, descending=True).values
    margins = []
    if scar.policy == "top_p":
        mass = descending.double().cumsum(-1)
        # The mass decides while the prefix is at least k_min and below k_max long; a whole row's mass is just 1.
        decides = slice(max(scar.k_min, 1) - 1, min(scar.k_max, a.shape[-1]) - 1)
        gaps = (mass[..., decides] - scar.p).abs()
        margins += [float(gaps.min())] if gaps.numel() else []
    if scar.policy in ("top_k", "top_p", "bidirectional"):
        taken = chosen if scar.policy == "top_p" else _top(a, scar.k_max)
        margins.append(boundary_gap(a, taken, -1))
    if scar.policy == "threshold":
        margins.append(float((a - scar.tau).abs().min()))
        full = chosen.sum(-1) == scar.k_max  # elsewhere tau alone decides
        if scar.k_max < a.shape[-1] and full.any():
            over = (descending[full][:, scar.k_max] >= scar.tau).nonzero().flatten()
            gaps = descending[full][:, scar.k_max - 1] - descending[full][:, scar.k_max]
            margins += gaps[over].tolist()
    if scar.policy in ("expert_choice", "bidirectional"):
        cap = scar.capacity(a.shape[-2])
        if cap < a.shape[-2]:
            by_token = torch.sort(a, dim=-2, descending=True).values
            margins.append(float((by_token[:, cap - 1] - by_token[:, cap]).min()))
    return min(margins, default=NONE)


def _top(a: Tensor, k: int) -> Tensor:
    order = torch.sort(a, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(a, dtype=torch.bool).scatter(-1, order, True)


def routing_margin(routing: list[Routing], scar: ScarConfig) -> float:
    """Smallest margin over all blocks, of the chosen modules and of the token's cluster."""
    margins = [selection_margin(r.scores, scar) for r in routing]
    if scar.num_clusters > 1:
        for r in routing:
            best = r.scores.topk(2, dim=-1).values
            margins.append(float((best[..., 0] - best[..., 1]).min()))
    return min(margins)

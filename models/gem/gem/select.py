"""SCAR's `select(a)`: from softmaxed scores a [B, T, C] to each token's set of modules and their gates.

Every rule breaks ties towards the lower index, which a *stable* descending sort does, so that the same
scores give the same set on every target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ScarConfig


def select(a: Tensor, scar: ScarConfig) -> tuple[Tensor, Tensor]:
    """a [B, T, C] → (R [B, T, C] bool, g [B, T, C], 0 outside R). T is the whole sequence."""
    chosen = RULES[scar.policy](a, scar)
    gates = torch.where(chosen, a, torch.zeros_like(a))
    if scar.norm_gates and scar.policy != "expert_choice":
        mass = gates.sum(-1, keepdim=True)
        gates = gates / torch.where(mass > 0, mass, torch.ones_like(mass))  # an empty set stays empty
    return chosen, gates


def rank(a: Tensor, dim: int) -> Tensor:
    """Position of each entry in the descending order along dim: 0 is the largest, ties lower index first."""
    order = torch.sort(a, dim=dim, descending=True, stable=True).indices
    places = torch.arange(a.shape[dim], device=a.device)
    places = places.view([-1 if i == dim % a.dim() else 1 for i in range(a.dim())]).expand_as(order)
    return torch.empty_like(order).scatter_(dim, order, places)


def top_k(a: Tensor, scar: ScarConfig) -> Tensor:
    return rank(a, -1) < scar.k_max


def top_p(a: Tensor, scar: ScarConfig) -> Tensor:
    """The mass is summed in descending order, one addition after another, in a's own precision."""
    p = torch.tensor(scar.p, dtype=a.dtype, device=a.device)
    descending = torch.sort(a, dim=-1, descending=True, stable=True).values
    mass = torch.zeros_like(a[..., 0])
    length = torch.ones_like(mass, dtype=torch.int64)  # of the smallest prefix with mass ≥ p
    for i in range(a.shape[-1] - 1):
        mass = mass + descending[..., i]
        length = length + (mass < p)
    length = length.clamp(scar.k_min, scar.k_max)
    return rank(a, -1) < length.unsqueeze(-1)


def threshold(a: Tensor, scar: ScarConfig) -> Tensor:
    tau = torch.tensor(scar.tau, dtype=a.dtype, device=a.device)
    return (a >= tau) & (rank(a, -1) < scar.k_max)


def expert_choice(a: Tensor, scar: ScarConfig) -> Tensor:
    return rank(a, -2) < scar.capacity(a.shape[-2])


def bidirectional(a: Tensor, scar: ScarConfig) -> Tensor:
    """A module ranks all tokens, also those that did not choose it."""
    return top_k(a, scar) & expert_choice(a, scar)


RULES = {
    "top_k": top_k,
    "top_p": top_p,
    "threshold": threshold,
    "expert_choice": expert_choice,
    "bidirectional": bidirectional,
}

"""Rotary positions, attention masks and grouped-query attention, shared by the blocks and the token router.

B sequences, T new tokens, S = past + T tokens in all, H query heads, G key/value heads, hd head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, hd/2] of position · θ^(−2i/hd). Computed in double, then rounded once."""
    i = torch.arange(head_dim // 2, dtype=torch.float64)
    angle = positions.to(torch.float64)[:, None] * theta ** (-2.0 * i / head_dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half rotation of x [..., T, hd]: entry i pairs with entry i + hd/2."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def causal_mask(past: int, num_new: int, window: int) -> Tensor:
    """[T, S]: token t sees j ≤ t with t − j < window; window 0 sees all earlier tokens."""
    t = torch.arange(past, past + num_new)[:, None]
    j = torch.arange(past + num_new)[None, :]
    sees = j <= t
    return sees & (t - j < window) if window else sees


def clustered_mask(clusters: Tensor, num_new: int, window: int, sinks: int, cluster_cap: int, num_clusters: int) -> Tensor:
    """[B, T, S] from the clusters [B, S] of all tokens so far, for the T newest of them.

    Token t sees j ≤ t when t − j < window, or j < sinks, or j is among the `cluster_cap` most recent
    tokens i ≤ t of t's own cluster, t included.
    """
    total = clusters.shape[-1]
    past = total - num_new
    # nth[i]: how many tokens up to i, i included, are in i's cluster. Between two tokens of one cluster the
    # difference counts the members in (j, t], so j is among the cap most recent when it is below cap.
    counts = F.one_hot(clusters, num_clusters).cumsum(1)  # [B, S, C]
    nth = counts.gather(-1, clusters.unsqueeze(-1)).squeeze(-1)  # [B, S]
    same = clusters[:, past:, None] == clusters[:, None, :]  # [B, T, S]
    recent = nth[:, past:, None] - nth[:, None, :] < cluster_cap
    j = torch.arange(total)[None, :]
    near = causal_mask(past, num_new, window) | (j < sinks)
    return causal_mask(past, num_new, 0) & (near | (same & recent))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, fast: bool) -> Tensor:
    """q [B, H, T, hd], k and v [B, G, S, hd], mask [T, S] or [B, T, S] (None: all) → [B, T, H·hd].

    Query head h reads key/value head h // (H / G). `fast` is the same sum through PyTorch's fused kernel.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if mask is not None and mask.dim() == 3:
        mask = mask.unsqueeze(1)  # all heads alike
    if fast:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # [B, H, T, S]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


class KeyValueCache:
    """Keys and values of one attention layer: everything seen so far."""

    def __init__(self) -> None:
        self.k: Tensor | None = None  # [B, G, S, hd]
        self.v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.k is not None:
            k, v = torch.cat((self.k, k), 2), torch.cat((self.v, v), 2)
        self.k, self.v = k, v
        return k, v

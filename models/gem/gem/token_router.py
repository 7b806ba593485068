"""The dynamic token router (DTR): a small encoder over the ids whose output π says what domain a token is from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValueCache, attend, causal_mask, rope_tables, rotate
from .config import GemConfig


class RmsNorm(nn.Module):
    """x / √(mean(x²) + eps) · w"""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class RouterLayer(nn.Module):
    def __init__(self, config: GemConfig):
        super().__init__()
        router = config.token_router
        d, f = router.hidden_size, router.intermediate_size
        self.num_heads = router.num_heads
        self.attn_norm = RmsNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.mlp_norm = RmsNorm(d, config.rms_norm_eps)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x, cos, sin, mask, cache: KeyValueCache | None, fast: bool) -> Tensor:
        def heads(y: Tensor) -> Tensor:  # [B, T, d_r] → [B, H_r, T, hd_r]
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        n = self.attn_norm(x)
        q = rotate(heads(self.q_proj(n)), cos, sin)
        k = rotate(heads(self.k_proj(n)), cos, sin)
        v = heads(self.v_proj(n))
        if cache is not None:
            k, v = cache.extend(k, v)
        x = x + self.o_proj(attend(q, k, v, mask, fast))
        return x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)), approximate="tanh"))


class TokenRouter(nn.Module):
    def __init__(self, config: GemConfig):
        super().__init__()
        router = config.token_router
        self.config, self.rope_theta = router, config.rope_theta
        self.embed = nn.Embedding(config.vocab_size, router.hidden_size)
        self.layers = nn.ModuleList(RouterLayer(config) for _ in range(router.num_layers))
        self.norm = RmsNorm(router.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(router.hidden_size, config.num_domains, bias=False)

    def forward(self, ids: Tensor, past: int, caches: list[KeyValueCache] | None, fast: bool) -> Tensor:
        """ids [B, T] → logits of π [B, T, D]"""
        x = self.embed(ids)
        num_new = ids.shape[1]
        positions = torch.arange(past, past + num_new)
        cos, sin = rope_tables(positions, self.config.head_dim, self.rope_theta, x.dtype)
        mask = causal_mask(past, num_new, self.config.window) if self.config.causal else None
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, caches[i] if caches is not None else None, fast)
        return self.head(self.norm(x))

"""The whole model with its three heads, incremental decoding, and greedy generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValueCache, rope_tables
from .block import Block, BlockCache, Routing
from .config import GemConfig
from .token_router import RmsNorm, TokenRouter


@dataclass
class GemOutput:
    logits: Tensor | None  # [B, T, V], GemForCausalLM
    output: Tensor | None  # [B, labels], GemForSequenceClassification; [B, d], GemModel
    domains: Tensor  # [B, T, D] π
    domain_logits: Tensor | None  # [B, T, D], what π is the softmax of; None without a token router
    routing: list[Routing]  # one per block


class Cache:
    """What decoding remembers: per block keys, values and clusters; per router layer keys and values."""

    def __init__(self, config: GemConfig):
        self.num_tokens = 0
        self.blocks = [BlockCache() for _ in range(config.num_hidden_layers)]
        router = config.token_router
        self.router = [KeyValueCache() for _ in range(router.num_layers)] if router else []


class Gem(nn.Module):
    """ids [B, T] → GemOutput. All sequences of a batch have the same length; there is no padding.

    `fast` swaps attention's two matmuls for PyTorch's fused kernel and changes nothing else.
    """

    def __init__(self, config: GemConfig, fast: bool = False):
        super().__init__()
        self.config, self.fast = config, fast
        d, v = config.hidden_size, config.vocab_size
        self.embed_tokens = nn.Embedding(v, d)
        self.token_router = TokenRouter(config) if config.token_router else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(d, config.rms_norm_eps)
        own_head = config.architecture == "GemForCausalLM" and not config.tie_word_embeddings
        self.lm_head = nn.Linear(d, v, bias=False) if own_head else None
        classifies = config.architecture == "GemForSequenceClassification"
        self.score = nn.Linear(d, config.num_labels, bias=False) if classifies else None

    def forward(self, ids: Tensor, cache: Cache | None = None) -> GemOutput:
        past = self._check_input(ids, cache)
        x = self.embed_tokens(ids)  # [B, T, d]
        pi, domain_logits = self._domains(ids, past, cache, x.dtype)
        positions = torch.arange(past, past + ids.shape[1])
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        routing = []
        for i, block in enumerate(self.layers):
            x, r = block(x, pi, cos, sin, cache.blocks[i] if cache is not None else None, self.fast)
            routing.append(r)
        if cache is not None:
            cache.num_tokens += ids.shape[1]
        logits, output = self._head(self.norm(x))
        return GemOutput(logits, output, pi, domain_logits, routing)

    def new_cache(self) -> Cache:
        """Of a sequence that has not begun."""
        return Cache(self.config)

    def _check_input(self, ids: Tensor, cache: Cache | None) -> int:
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids: wanted [B, T] with at least one token, found shape {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            found = f"{ids.min().item()} to {ids.max().item()}"
            raise ValueError(f"ids: wanted 0 to {self.config.vocab_size - 1} (vocab_size), found {found}")
        past = 0
        if cache is not None:
            self.config.check_generation()
            past = cache.num_tokens
        total, limit = past + ids.shape[1], self.config.max_position_embeddings
        if total > limit:
            raise ValueError(f"ids: wanted at most {limit} tokens (max_position_embeddings), found {total}")
        return past

    def _domains(self, ids: Tensor, past: int, cache: Cache | None, dtype: torch.dtype):
        if self.token_router is None:
            uniform = torch.full((*ids.shape, self.config.num_domains), 1 / self.config.num_domains, dtype=dtype)
            return uniform, None
        caches = cache.router if cache is not None else None
        logits = self.token_router(ids, past, caches, self.fast).to(dtype)
        # Detached: only domain labels train the token router, so that π keeps meaning what it says.
        return logits.softmax(-1).detach(), logits

    def _head(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """x [B, T, d], after the last norm"""
        if self.config.architecture == "GemForCausalLM":
            weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
            return F.linear(x, weight), None
        pooled = x.mean(1)
        if self.score is not None:
            return None, self.score(pooled)
        return None, F.normalize(pooled, dim=-1)


@dataclass
class Greedy:
    tokens: Tensor  # [n] the continuation
    margins: Tensor  # [n] how far the best logit stood above the second best


@torch.no_grad()
def generate_greedy(model: Gem, prompt: Tensor, num_new: int) -> Greedy:
    """prompt [T] → the `num_new` tokens with the largest logits, ties lower id first; prefill, then single steps."""
    model.config.check_generation()
    cache = model.new_cache()
    tokens, margins = [], []
    row = model(prompt[None], cache).logits[0, -1]
    for i in range(num_new):
        best = torch.sort(row, descending=True, stable=True)
        tokens.append(best.indices[0])
        margins.append(best.values[0] - best.values[1])
        if i + 1 < num_new:
            row = model(tokens[-1].view(1, 1), cache).logits[0, -1]
    return Greedy(torch.stack(tokens), torch.stack(margins))

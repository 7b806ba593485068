"""One GEM block: SCAR's routing decision, attention under it, and the general path beside the chosen modules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValueCache, attend, causal_mask, clustered_mask, rotate
from .config import GemConfig
from .select import select
from .token_router import RmsNorm


@dataclass
class Routing:
    """One block's decision, for [B, T] tokens and C clusters."""

    scores: Tensor  # [B, T, C] a, softmaxed
    clusters: Tensor  # [B, T] cl
    modules: Tensor  # [B, T, C] bool, R
    gates: Tensor  # [B, T, C] g, 0 outside R


class BlockCache:
    def __init__(self) -> None:
        self.kv = KeyValueCache()
        self.clusters: Tensor | None = None  # [B, S], of all tokens so far


class Scar(nn.Module):
    """Sparse cross-attention router: token queries against learned cluster keys, biased by the token's domain."""

    def __init__(self, config: GemConfig):
        super().__init__()
        scar = config.scar
        self.config = scar
        self.query = nn.Linear(config.hidden_size, scar.dim, bias=False)
        self.keys = nn.Parameter(torch.empty(scar.num_clusters, scar.dim))
        self.values = nn.Parameter(torch.empty(scar.num_clusters, scar.dim)) if scar.memory else None
        self.memory_proj = nn.Linear(scar.dim, config.hidden_size, bias=False) if scar.memory else None
        domain = [config.domain_of_cluster(c) for c in range(scar.num_clusters)]
        self.register_buffer("domain", torch.tensor(domain), persistent=False)  # [C]

    @torch.autocast("cpu", enabled=False)  # decisions are made in full precision also while training in bf16
    def forward(self, n: Tensor, pi: Tensor) -> Routing:
        """n [B, T, d], pi [B, T, D]"""
        s = self.query(n) @ self.keys.T / math.sqrt(self.config.dim)  # [B, T, C]
        s = s + self.config.lambda_ * torch.log(pi[..., self.domain] + 1e-6)
        a = s.softmax(-1)
        chosen, gates = select(a, self.config)
        # Of equal scores argmax has to take the first; a stable sort promises that.
        clusters = torch.sort(a, dim=-1, descending=True, stable=True).indices[..., 0]
        return Routing(a, clusters, chosen, gates)

    def memory(self, gates: Tensor) -> Tensor:
        """W_m Σ_{c∈R} g_c·V_c, [B, T, d]"""
        return self.memory_proj(gates @ self.values)


class Attention(nn.Module):
    def __init__(self, config: GemConfig):
        super().__init__()
        d, hd = config.hidden_size, config.head_dim
        self.head_dim = hd
        self.q_proj = nn.Linear(d, config.num_attention_heads * hd, bias=False)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * hd, bias=False)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * hd, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * hd, d, bias=False)

    def forward(self, n, cos, sin, mask, cache: KeyValueCache | None, fast: bool) -> Tensor:
        def heads(y: Tensor) -> Tensor:  # [B, T, H·hd] → [B, H, T, hd]
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q = rotate(heads(self.q_proj(n)), cos, sin)
        k = rotate(heads(self.k_proj(n)), cos, sin)
        v = heads(self.v_proj(n))
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o_proj(attend(q, k, v, mask, fast))


def ffn(m: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W_down( silu(W_gate m) ⊙ W_up m ), m [N, d], gate and up [f, d], down [d, f]"""
    return F.linear(F.silu(F.linear(m, gate)) * F.linear(m, up), down)


class GeneralPath(nn.Module):
    def __init__(self, config: GemConfig):
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, m: Tensor) -> Tensor:
        return ffn(m, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class DomainModules(nn.Module):
    """The C feed-forward modules, their weights stacked so that an optimizer sees three tensors, not 3·C."""

    def __init__(self, config: GemConfig):
        super().__init__()
        c, d, f = config.scar.num_clusters, config.hidden_size, config.module_intermediate_size
        self.gate = nn.Parameter(torch.empty(c, f, d))
        self.up = nn.Parameter(torch.empty(c, f, d))
        self.down = nn.Parameter(torch.empty(c, d, f))

    def forward(self, m: Tensor, routing: Routing, fast: bool) -> Tensor:
        """Σ_{c∈R} g_c·FFN_c(m), [B, T, d]: module c runs on the tokens that chose it and on no others.

        `fast` fills each module's tokens up with gate-0 rows to a multiple of 256, because the CPU's matmul
        library compiles a kernel for every new shape it meets.
        """
        tokens = m.flatten(0, 1)  # [B·T, d]
        chosen = routing.modules.flatten(0, 1)
        # One (module, token) pair per visit, ordered by module and then by token.
        module, token = chosen.T.nonzero(as_tuple=True)
        gates = routing.gates.flatten(0, 1)[token, module]
        visits = chosen.sum(0)
        if fast:
            rows = (visits + 255) // 256 * 256
            shift = (rows - visits).cumsum(0) - (rows - visits)  # filling rows before each module's first
            place = torch.arange(len(token)) + shift[module]
            total = int(rows.sum())
            token = torch.zeros(total, dtype=token.dtype).scatter(0, place, token)
            gates = torch.zeros(total, dtype=gates.dtype).scatter(0, place, gates)
            visits = rows
        inputs = tokens.index_select(0, token).split(visits.tolist())
        outputs = [ffn(x, self.gate[c], self.up[c], self.down[c]) for c, x in enumerate(inputs) if len(x)]
        if not outputs:
            return torch.zeros_like(m)
        summed = torch.zeros_like(tokens).index_add(0, token, gates.unsqueeze(-1) * torch.cat(outputs))
        return summed.view_as(m)


class Block(nn.Module):
    def __init__(self, config: GemConfig):
        super().__init__()
        self.config = config
        self.attn_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config)
        self.scar = Scar(config)
        self.general = GeneralPath(config)
        self.domain_modules = DomainModules(config)

    def mask(self, clusters: Tensor, num_new: int) -> Tensor | None:
        """Whom the newest tokens attend to, given the clusters [B, S] of all tokens: [T, S], [B, T, S] or None."""
        attention = self.config.attention
        if attention.kind == "clustered":
            window, sinks, cap = attention.window, attention.sinks, attention.cluster_cap
            return clustered_mask(clusters, num_new, window, sinks, cap, self.config.scar.num_clusters)
        if self.config.is_causal:
            return causal_mask(clusters.shape[-1] - num_new, num_new, window=0)
        return None

    def forward(self, x, pi, cos, sin, cache: BlockCache | None, fast: bool) -> tuple[Tensor, Routing]:
        """x [B, T, d], pi [B, T, D] → (x', the routing decision)"""
        n = self.attn_norm(x)
        routing = self.scar(n, pi)
        clusters = routing.clusters
        if cache is not None:
            if cache.clusters is not None:
                clusters = torch.cat((cache.clusters, clusters), 1)
            cache.clusters = clusters
        mask = self.mask(clusters, num_new=x.shape[1])
        h = x + self.attn(n, cos, sin, mask, cache.kv if cache is not None else None, fast)
        m = self.mlp_norm(h)
        x = h + self.general(m) + self.domain_modules(m, routing, fast)
        if self.scar.values is not None:
            x = x + self.scar.memory(routing.gates)
        return x, routing

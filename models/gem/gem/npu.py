"""A quantized GEM as the NPU computes it: `quantized.py` with every float operation in the order of ISA.md.

Codes of activations are rounded numbers, and a number that is off by its last bit sometimes has the next code; what comes behind sees a
different row. Two right programs that add up in different orders are therefore apart by a good part of what quantization
itself costs. This one adds up as the NPU does. It shares no code with the Rust side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import npu_numbers as npu
from .attention import causal_mask, rope_tables
from .block import Block, Routing
from .model import Cache, GemOutput
from .quantize import quantize_activations
from .quantized import CodedPath, QuantizedGem
from .select import select
from .token_router import RouterLayer


def f32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


class NpuGem:
    """Takes a `QuantizedGem` of float32: its codes, norms, keys, caches."""

    def __init__(self, model: QuantizedGem):
        self.model, self.config = model, model.config
        self.eps = f32(self.config.rms_norm_eps)

    def new_cache(self) -> Cache:
        return self.model.new_cache()

    def __call__(self, ids: Tensor, cache: Cache | None = None) -> GemOutput:
        cache = self.new_cache() if cache is None else cache
        past = self.model._check_input(ids, cache)
        positions = torch.arange(past, past + ids.shape[1])
        pi = self._domains(ids, positions, cache)
        x, routing = self.model.embed_tokens(ids), []
        tables = self._tables(positions, self.config.head_dim)
        for block, kept in zip(self.model.layers, cache.blocks):
            x, r = self._block(block, x, pi, tables, kept)
            routing.append(r)
        cache.num_tokens += ids.shape[1]
        logits = self.model.head(npu.rms_norm(x, self.model.norm.weight, self.eps))
        return GemOutput(logits, None, pi, None, routing)

    def _tables(self, positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        return rope_tables(positions, head_dim, f32(self.config.rope_theta), torch.float32)

    def _domains(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor | None:
        router = self.model.token_router
        if router is None:
            return None
        x = router.embed(ids)
        tables = self._tables(positions, router.config.head_dim)
        mask = causal_mask(int(positions[0]), len(positions), router.config.window)[None]
        for layer, kv in zip(router.layers, cache.router):
            x = self._router_layer(layer, x, tables, mask, kv)
        # The norm's weight is multiplied into the head, which is stored f32.
        head = router.head.weight * router.norm.weight
        return npu.softmax(npu.dot(npu.rms_norm(x, None, self.eps)[..., None, :], head))

    def _router_layer(self, layer: RouterLayer, x: Tensor, tables, mask: Tensor, kv) -> Tensor:
        n = npu.rms_norm(x, layer.attn_norm.weight, self.eps)
        head_dim = x.shape[-1] // layer.num_heads
        x = layer.o_proj(self._attention(layer, n, head_dim, tables, mask, kv)) + x
        m = npu.rms_norm(x, layer.mlp_norm.weight, self.eps)
        return layer.down_proj(npu.gelu(layer.up_proj(m))) + x

    def _attention(self, projections, n: Tensor, head_dim: int, tables, mask: Tensor, kv) -> Tensor:
        """n [B, T, d], mask [B, T, S] → [B, T, H·hd]"""

        def heads(y: Tensor) -> Tensor:  # [B, T, H·hd] → [B, H, T, hd]
            return y.unflatten(-1, (-1, head_dim)).transpose(1, 2)

        q, k = (npu.rotate(heads(p(n)), *tables) for p in (projections.q_proj, projections.k_proj))
        k, v = kv.extend(k, heads(projections.v_proj(n)))
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        # The admitted keys, ascending, come first: [B, 1, T, A].
        count = mask.sum(-1)
        order = torch.sort(mask.byte(), dim=-1, descending=True, stable=True).indices[:, None, :, : int(count.max())]
        valid = torch.arange(order.shape[-1]) < count[:, None, :, None]
        order = order.expand(-1, q.shape[1], -1, -1)
        z = npu.dot(q[..., :, None, :], k[..., None, :, :]).gather(-1, order) * f32(1 / math.sqrt(head_dim))
        rows = v[:, :, None].expand(-1, -1, order.shape[2], -1, -1)
        rows = rows.gather(3, order[..., None].expand(-1, -1, -1, -1, head_dim))
        return npu.mix(npu.softmax(z, valid), rows).transpose(1, 2).flatten(2)

    def _routing(self, block: Block, n: Tensor, pi: Tensor | None) -> Routing:
        scar = block.scar
        s = npu.dot(scar.query(n)[..., None, :], scar.keys) * f32(1 / math.sqrt(scar.config.dim))
        if pi is not None:
            s = s + (npu.ln(pi + f32(1e-6)) * f32(scar.config.lambda_))[..., scar.domain]
        a = npu.softmax(s)
        modules, gates = select(a, scar.config)
        if scar.config.norm_gates:
            raise ValueError("scar.norm_gates: wanted false, found true, whose order of sums is not emulated")
        clusters = torch.sort(a, dim=-1, descending=True, stable=True).indices[..., 0]
        return Routing(a, clusters, modules, gates)

    def _block(self, block: Block, x: Tensor, pi: Tensor | None, tables, kept) -> tuple[Tensor, Routing]:
        n = npu.rms_norm(x, block.attn_norm.weight, self.eps)
        routing = self._routing(block, n, pi)
        clusters = routing.clusters
        if kept.clusters is not None:
            clusters = torch.cat((kept.clusters, clusters), 1)
        kept.clusters = clusters
        mask = block.mask(clusters, num_new=x.shape[1])
        mask = mask if mask.dim() == 3 else mask[None]
        x = block.attn.o_proj(self._attention(block.attn, n, self.config.head_dim, tables, mask, kept.kv)) + x
        m = npu.rms_norm(x, block.mlp_norm.weight, self.eps)
        codes, scale = quantize_activations(m)
        x = _path(block.general, codes, scale) + x
        x = _modules(block, codes, scale, routing, x)
        if block.scar.values is not None:
            memory = npu.mix(routing.gates, block.scar.values.expand(*routing.gates.shape[:2], -1, -1))
            x = block.scar.memory_proj(memory) + x
        return x, routing


def _path(path: CodedPath, codes: Tensor, scale: Tensor) -> Tensor:
    return path.down(npu.silu(path.gate.times(codes, scale)) * path.up.times(codes, scale))


def _modules(block: Block, codes: Tensor, scale: Tensor, routing: Routing, x: Tensor) -> Tensor:
    """x plus the chosen modules' results, module after module."""
    x = x.clone()
    for c, module in enumerate(block.domain_modules.parts):
        at = routing.modules[..., c]
        if at.any():
            x[at] = npu.fma(routing.gates[..., c][at][:, None], _path(module, codes[at], scale[at]), x[at])
    return x

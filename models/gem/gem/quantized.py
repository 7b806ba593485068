"""A GEM in recipe `hybrid` of docs/quantization.md, emulated with ordinary PyTorch arithmetic.

Embedding, head, token router, attention and general path are int8 with a scale per output, domain modules int4 with an f16
scale per group of 32 inputs; what is multiplied by them is rounded to int8 row by row; keys and values are kept as f16; norms and
routing are left alone. Codes and their products are exact, all else is in the type of the model, float32 or float64: no
order of sums is promised.

Norms' weights stay where they are: the compiler multiplies them into matrices that are stored f32 only, of which this recipe has
one, the token router's head. Merged projections have the codes of their parts, because a row's codes depend on that row.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValueCache
from .block import Routing
from .model import Cache, Gem, GemOutput
from .quantize import Codes, quantize_activations, quantize_int4, quantize_int8
from .weights import load_model, named_tensors

MODULE_GROUP = 32


class CodedMatrix(nn.Module):
    """x [..., k] → x̂·ŵᵀ [..., n] with x rounded to codes row by row."""

    def __init__(self, coded: Codes, dtype: torch.dtype):
        super().__init__()
        k = coded.codes.shape[1]
        self.group = coded.group or k
        self.register_buffer("codes", torch.from_numpy(coded.codes).to(dtype))  # [n, k]
        scales = torch.from_numpy(coded.scales).to(dtype)
        self.register_buffer("scales", scales)  # [n], or [n, groups]
        # Sums of products of codes are whole numbers below 2^24: every float type has them exactly.
        assert self.group * 127 * 127 < 2**24

    def forward(self, x: Tensor) -> Tensor:
        return self.times(*quantize_activations(x))

    def times(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The product with a row's codes [..., k] and scale [..., 1]."""
        if self.scales.dim() == 1:
            return F.linear(codes, self.codes) * self.scales * scale
        groups = zip(codes.split(self.group, -1), self.codes.split(self.group, -1), self.scales.unbind(-1))
        total = None
        for x, w, s in groups:
            # A fused multiply-add: in double the product is exact.
            term = F.linear(x, w).double() * s.double()
            total = term.to(x.dtype) if total is None else (total.double() + term).to(x.dtype)
        return total * scale


class CodedPath(nn.Module):
    """W_down( silu(W_gate m) ⊙ W_up m ), the row m rounded once."""

    def __init__(self, gate: CodedMatrix, up: CodedMatrix, down: CodedMatrix):
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, m: Tensor) -> Tensor:
        return self.of_codes(*quantize_activations(m))

    def of_codes(self, codes: Tensor, scale: Tensor) -> Tensor:
        return self.down(F.silu(self.gate.times(codes, scale)) * self.up.times(codes, scale))


class CodedModules(nn.Module):
    """Domain modules as codes. A token's row is rounded once, each hidden row on its own."""

    def __init__(self, modules: list[CodedPath]):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, m: Tensor, routing: Routing, fast: bool) -> Tensor:
        tokens, chosen, gates = m.flatten(0, 1), routing.modules.flatten(0, 1), routing.gates.flatten(0, 1)
        codes, scale = quantize_activations(tokens)
        out = torch.zeros_like(tokens)
        for c, module in enumerate(self.parts):
            token = chosen[:, c].nonzero().flatten()
            if len(token):
                out.index_add_(0, token, gates[token, c, None] * module.of_codes(codes[token], scale[token]))
        return out.view_as(m)


class HalfKeyValueCache(KeyValueCache):
    """Keys and values are what f16 holds of them."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return super().extend(k.half().to(k.dtype), v.half().to(v.dtype))


class QuantizedGem(Gem):
    """The codes of a model that can generate. It has no parameters of its own kind: `named_tensors` is not for it."""

    def __init__(self, model: Gem):
        model.config.check_generation()  # what keeps keys and values is causal
        super().__init__(model.config, model.fast)
        dtype = model.embed_tokens.weight.dtype
        self.to(dtype).eval().requires_grad_(False)
        own, given = named_tensors(self), named_tensors(model)
        for name, tensor in own.items():
            tensor.copy_(given[name])
        self.coded = {name: _coded(name, t) for name, t in given.items() if _format(name)}
        """Codes by the tensor's name."""
        matrices = {name: CodedMatrix(coded, dtype) for name, coded in self.coded.items()}

        def path(at: str) -> CodedPath:
            return CodedPath(*(matrices[f"{at}.{part}_proj.weight"] for part in ("gate", "up", "down")))

        for i, block in enumerate(self.layers):
            block.general = path(f"model.layers.{i}.general")
            modules = range(self.config.scar.num_clusters)
            block.domain_modules = CodedModules([path(f"model.layers.{i}.modules.{c}") for c in modules])
        name_of = {tensor.data_ptr(): name for name, tensor in own.items()}
        for place, module in list(self.named_modules()):
            if isinstance(module, nn.Linear) and name_of[module.weight.data_ptr()] in matrices and place != "lm_head":
                at, _, last = place.rpartition(".")
                setattr(self.get_submodule(at), last, matrices[name_of[module.weight.data_ptr()]])
        self.head = matrices["model.embed_tokens.weight" if self.lm_head is None else "lm_head.weight"]
        for name in ("model.embed_tokens.weight", "model.token_router.embed.weight"):
            if name in self.coded:
                own[name].copy_(torch.from_numpy(self.coded[name].dequantize()))

    def new_cache(self) -> Cache:
        cache = Cache(self.config)
        for block in cache.blocks:
            block.kv = HalfKeyValueCache()
        cache.router = [HalfKeyValueCache() for _ in cache.router]
        return cache

    def forward(self, ids: Tensor, cache: Cache | None = None) -> GemOutput:
        return super().forward(ids, self.new_cache() if cache is None else cache)

    def _head(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self.head(x), None


def _format(name: str) -> str | None:
    """How the recipe stores a tensor; None: as it is."""
    if name.endswith(("norm.weight", "scar.keys", "scar.values", "token_router.head.weight")):
        return None
    return "int4" if ".modules." in name else "int8"


def _coded(name: str, weight: Tensor) -> Codes:
    w = weight.float().numpy()
    return quantize_int4(w, MODULE_GROUP) if _format(name) == "int4" else quantize_int8(w)


def load_quantized(folder: str | Path, dtype: torch.dtype = torch.float32) -> QuantizedGem:
    """The model of a folder in recipe `hybrid`."""
    return QuantizedGem(load_model(folder, dtype))

"""Tensor names and shapes, and the Hugging Face style folder: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import GemConfig, changed
from .model import Gem

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.json"


class WeightsError(ValueError):
    """model.safetensors does not hold what config.json promises."""


def tensor_shapes(config: GemConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, by name. Rows are outputs."""
    d, v, hd = config.hidden_size, config.vocab_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * hd, config.num_key_value_heads * hd
    scar = config.scar
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if config.architecture == "GemForCausalLM" and not config.tie_word_embeddings:
        out["lm_head.weight"] = (v, d)
    if config.architecture == "GemForSequenceClassification":
        out["score.weight"] = (config.num_labels, d)
    router = config.token_router
    if router is not None:
        r, f = router.hidden_size, router.intermediate_size
        at = "model.token_router"
        out[f"{at}.embed.weight"] = (v, r)
        out[f"{at}.norm.weight"] = (r,)
        out[f"{at}.head.weight"] = (config.num_domains, r)
        for i in range(router.num_layers):
            at = f"model.token_router.layers.{i}"
            out[f"{at}.attn_norm.weight"] = out[f"{at}.mlp_norm.weight"] = (r,)
            for name in "qkvo":
                out[f"{at}.attn.{name}_proj.weight"] = (r, r)
            out[f"{at}.mlp.up_proj.weight"] = (f, r)
            out[f"{at}.mlp.down_proj.weight"] = (r, f)
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}"
        out[f"{at}.attn_norm.weight"] = out[f"{at}.mlp_norm.weight"] = (d,)
        out[f"{at}.attn.q_proj.weight"] = (heads, d)
        out[f"{at}.attn.k_proj.weight"] = out[f"{at}.attn.v_proj.weight"] = (kv_heads, d)
        out[f"{at}.attn.o_proj.weight"] = (d, heads)
        out[f"{at}.scar.query.weight"] = (scar.dim, d)
        out[f"{at}.scar.keys"] = (scar.num_clusters, scar.dim)
        if scar.memory:
            out[f"{at}.scar.values"] = (scar.num_clusters, scar.dim)
            out[f"{at}.scar.memory_proj.weight"] = (d, scar.dim)
        paths = {"general": config.intermediate_size}
        paths |= {f"modules.{c}": config.module_intermediate_size for c in range(scar.num_clusters)}
        for path, f in paths.items():
            out[f"{at}.{path}.gate_proj.weight"] = out[f"{at}.{path}.up_proj.weight"] = (f, d)
            out[f"{at}.{path}.down_proj.weight"] = (d, f)
    return out


def named_tensors(model: Gem) -> dict[str, Tensor]:
    """The model's own storage under the checkpoint's names: writing to one writes to the model."""
    out = {}
    for name, parameter in model.named_parameters():
        value, parts = parameter.data, name.split(".")
        if "domain_modules" in parts:  # stacked [C, ...] here, one tensor per module in a file
            at, kind = ".".join(parts[:-2]), parts[-1]
            out |= {f"model.{at}.modules.{c}.{kind}_proj.weight": value[c] for c in range(len(value))}
            continue
        if parts[0] == "token_router" and parts[-2] in ("q_proj", "k_proj", "v_proj", "o_proj"):
            parts.insert(-2, "attn")
        if parts[0] == "token_router" and parts[-2] in ("up_proj", "down_proj"):
            parts.insert(-2, "mlp")
        prefix = "" if parts[0] in ("lm_head", "score") else "model."
        out[prefix + ".".join(parts)] = value
    return out


def initialise(model: Gem, seed: int) -> None:
    """Random weights for training, a function of the seed and of each tensor's place in the table alone."""
    rng = torch.Generator().manual_seed(seed)
    tensors = named_tensors(model)
    residual = 1 / math.sqrt(2 * model.config.num_hidden_layers)  # keeps the residual stream's scale with depth
    for name, shape in tensor_shapes(model.config).items():
        if name.endswith("norm.weight"):
            tensors[name].fill_(1.0)
            continue
        if name.endswith(("embed_tokens.weight", "embed.weight", "lm_head.weight")):
            std = 0.02
        elif name.endswith(("scar.keys", "scar.values")):
            std = 1.0
        else:
            std = shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "memory_proj.weight")):
                std *= residual
        tensors[name].copy_(torch.randn(shape, generator=rng) * std)


def load_tensors(model: Gem, given: dict[str, Tensor], where: str) -> None:
    """Fills the model; every tensor has to be there, known, of the right shape and of an allowed type."""
    expected = tensor_shapes(model.config)
    for name in given:
        if name not in expected:
            raise WeightsError(f"{where}: {name}: wanted no such tensor for this config.json, found one")
    own = named_tensors(model)
    for name, shape in expected.items():
        if name not in given:
            raise WeightsError(f"{where}: {name}: wanted a tensor of shape {list(shape)}, found none")
        tensor = given[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(f"{where}: {name}: wanted shape {list(shape)}, found {list(tensor.shape)}")
        if tensor.dtype not in DTYPES.values():
            raise WeightsError(f"{where}: {name}: wanted F32, F16 or BF16, found {tensor.dtype}")
        own[name].copy_(tensor)


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32, changes: dict[str, Any] | None = None) -> Gem:
    """The model of a folder, its weights widened to `dtype`. `changes` of its config have to leave all shapes as they are."""
    folder = Path(folder)
    model = Gem(changed(GemConfig.load(folder / CONFIG_FILE), changes or {})).to(dtype)
    path = folder / WEIGHTS_FILE
    load_tensors(model, load_file(path), str(path))
    return model.eval().requires_grad_(False)


def save_model(model: Gem, folder: str | Path, dtype: str) -> None:
    """Writes config.json and model.safetensors. `dtype` is fp32, fp16 or bf16; values are rounded to nearest."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save(folder / CONFIG_FILE)
    tensors = {name: t.to(DTYPES[dtype]).clone() for name, t in named_tensors(model).items()}
    for name, t in tensors.items():
        if not t.isfinite().all():
            raise WeightsError(f"{name}: wanted finite values, found some that {dtype} cannot hold")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # it is written for its owner alone


def round_weights(model: Gem, dtype: str) -> None:
    """Rounds the model's own weights as `save_model` would, and keeps them in their present type."""
    for t in named_tensors(model).values():
        t.copy_(t.to(DTYPES[dtype]))


def count_parameters(model: Gem) -> int:
    return sum(p.numel() for p in model.parameters())

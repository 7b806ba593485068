"""Configurations and recipes to start from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from .config import GemConfig
from .train import Recipe

DOMAINS = ("adaptive", "commonsense", "conversation", "finance", "healthcare", "law", "multilingual", "stem")
"""Those of the domain corpus that gem-mini is trained on."""

_TINY = {
    "model_type": "gem",
    "architectures": ["GemForCausalLM"],
    "is_causal": True,
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "module_intermediate_size": 64,
    "num_domains": 4,
    "domain_names": list(DOMAINS[:4]),
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "num_labels": 0,
    "scar": {
        "num_clusters": 8,
        "dim": 32,
        "lambda": 1.0,
        "policy": "top_p",
        "k_min": 1,
        "k_max": 3,
        "p": 0.5,
        "tau": 0.1,
        "capacity_factor": 1.25,
        "norm_gates": True,
        "memory": True,
    },
    "attention": {"kind": "clustered", "window": 16, "sinks": 2, "cluster_cap": 8},
    "token_router": {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 64,
        "causal": True,
        "window": 16,
    },
}

_MINI = {
    "model_type": "gem",
    "architectures": ["GemForCausalLM"],
    "is_causal": True,
    "vocab_size": 4096,
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "module_intermediate_size": 96,
    "num_domains": len(DOMAINS),
    "domain_names": list(DOMAINS),
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "num_labels": 0,
    "scar": {
        "num_clusters": 16,
        "dim": 32,
        "lambda": 0.5,
        "policy": "top_p",
        "k_min": 1,
        "k_max": 6,
        "p": 0.7,
        "tau": 0.1,
        "capacity_factor": 1.25,
        "norm_gates": False,
        "memory": True,
    },
    "attention": {"kind": "clustered", "window": 64, "sinks": 4, "cluster_cap": 64},
    "token_router": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 128,
        "causal": True,
        "window": 64,
    },
}

PRESETS: dict[str, dict[str, Any]] = {"gem-tiny": _TINY, "gem-mini": _MINI}
"""gem-tiny has the sizes of the compiler's `preset:gem-tiny`."""

RECIPES: dict[str, Recipe] = {
    # Its steps are set anew by whoever trains it: there is no bundled gem-tiny.
    "gem-tiny": Recipe(
        steps=400,
        batch_size=16,
        length=128,
        learning_rate=5e-3,
        warmup_steps=20,
        horizon_steps=960,
        cooldown_steps=100,
        module_budget=4.0,
    ),
    "gem-mini": Recipe(
        steps=3600,
        batch_size=12,
        length=384,
        learning_rate=3e-3,
        warmup_steps=100,
        horizon_steps=3600,
        cooldown_steps=400,
        # Two for every token while training and a variable number afterwards is better than a variable one throughout:
        # docs/gem-study.md.
        fixed_modules=2,
    ),
}


def preset(name: str, domains: Sequence[str] | None = None, vocab_size: int | None = None) -> GemConfig:
    """A preset; for other domains it keeps its number of clusters per domain, and at least as many as it had."""
    given = copy.deepcopy(PRESETS[name])
    if domains is not None:
        clusters, had = given["scar"]["num_clusters"], given["num_domains"]
        given |= {"num_domains": len(domains), "domain_names": list(domains)}
        given["scar"]["num_clusters"] = max(clusters, clusters // had * len(domains))
    if vocab_size is not None:
        given["vocab_size"] = vocab_size
    return GemConfig.from_dict(given)

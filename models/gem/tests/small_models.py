"""Small configurations for tests: a plain one to change single keys of, and a hypothesis strategy of odd ones."""

from __future__ import annotations

import copy

import torch
from hypothesis import strategies as st

from gem.config import ATTENTION_KINDS, POLICIES, GemConfig
from gem.make_random_models import fill
from gem.model import Gem

PLAIN = {
    "model_type": "gem",
    "architectures": ["GemForCausalLM"],
    "is_causal": True,
    "vocab_size": 31,
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "intermediate_size": 24,
    "module_intermediate_size": 5,
    "num_domains": 3,
    "domain_names": ["law", "stem", "finance"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "num_labels": 2,
    "scar": {
        "num_clusters": 7,
        "dim": 5,
        "lambda": 0.5,
        "policy": "top_p",
        "k_min": 1,
        "k_max": 4,
        "p": 0.6,
        "tau": 0.2,
        "capacity_factor": 1.0,
        "norm_gates": True,
        "memory": True,
    },
    "attention": {"kind": "clustered", "window": 3, "sinks": 1, "cluster_cap": 2},
    "token_router": {
        "hidden_size": 12,
        "num_layers": 2,
        "num_heads": 3,
        "intermediate_size": 10,
        "causal": True,
        "window": 4,
    },
}


def plain(changes: dict | None = None) -> dict:
    """PLAIN with dotted keys replaced, as JSON."""
    out = copy.deepcopy(PLAIN)
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        at = out
        for section in sections:
            at = at[section]
        at[last] = value
    return out


def model_of(config: dict | GemConfig, seed: int = 0) -> Gem:
    config = config if isinstance(config, GemConfig) else GemConfig.from_dict(config)
    model = Gem(config).eval().requires_grad_(False)
    fill(model, "", seed)
    return model


def random_ids(config: GemConfig, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


@st.composite
def odd_configs(draw, generating: bool = False) -> GemConfig:
    """Configurations with sizes that divide nothing. With `generating`, only such as can generate."""
    one_of = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    heads = "GemForCausalLM" if generating else one_of("GemForCausalLM", "GemForSequenceClassification", "GemModel")
    kind = one_of(*ATTENTION_KINDS)
    is_causal = generating or kind == "clustered" or one_of(True, False)
    clusters, domains = one_of((7, 3), (3, 3), (8, 5), (1, 1))
    router = None
    if one_of(True, True, False):
        causal = generating or one_of(True, False)
        size, num_heads = one_of((12, 3), (20, 1), (8, 2))
        router = {
            "hidden_size": size,
            "num_layers": one_of(1, 2),
            "num_heads": num_heads,
            "intermediate_size": one_of(1, 9),
            "causal": causal,
            "window": one_of(0, 1, 3) if causal else 0,
        }
    query_heads, kv_heads = one_of((3, 1), (4, 2), (2, 2))
    k_max = draw(st.integers(1, clusters))
    return GemConfig.from_dict(
        plain()
        | {
            "architectures": [heads],
            "is_causal": is_causal,
            "hidden_size": one_of(20, 13),
            "num_hidden_layers": one_of(1, 2),
            "num_attention_heads": query_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": one_of(20, 2),
            "intermediate_size": one_of(1, 11),
            "module_intermediate_size": one_of(1, 7),
            "num_domains": domains,
            "domain_names": [f"d{i}" for i in range(domains)],
            "tie_word_embeddings": one_of(True, False),
            "scar": {
                "num_clusters": clusters,
                "dim": one_of(1, 5),
                "lambda": one_of(0, 0.5, 2),
                "policy": one_of("top_k", "top_p", "threshold") if generating else one_of(*POLICIES),
                "k_min": draw(st.integers(0, k_max)),
                "k_max": k_max,
                "p": one_of(0.2, 0.6, 1),
                "tau": one_of(0, 0.25, 1),
                "capacity_factor": one_of(0.1, 0.7, 3),
                "norm_gates": one_of(True, False),
                "memory": one_of(True, False),
            },
            "attention": {
                "kind": kind,
                "window": one_of(1, 3),
                "sinks": one_of(0, 2),
                "cluster_cap": one_of(0, 1, 4),
            },
            "token_router": router,
        }
    )

"""What a configuration costs, counted and not timed: parameters, bytes touched and multiply-adds per generated token.

`modules_per_token` and `attended_keys` are means over tokens and layers, as `gem.evaluate` measures them. Counted are
matrix products and the two of attention; norms, softmaxes, RoPE and gates are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import GemConfig
from .weights import tensor_shapes

BYTES_PER_WEIGHT = BYTES_PER_KEY = 2
"""fp16, as the studied models are stored and the KV cache is by default."""


def total_parameters(config: GemConfig) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def module_parameters(config: GemConfig) -> int:
    """Of one module of one layer."""
    return 3 * config.hidden_size * config.module_intermediate_size


def touched_parameters(config: GemConfig, modules_per_token: float) -> float:
    """Parameters read to generate one token.

    Everything but the modules not visited, the memory rows not selected, and all rows but one of an embedding that is
    not the output's as well.
    """
    layers, clusters = config.num_hidden_layers, config.scar.num_clusters
    idle = clusters - modules_per_token
    out = total_parameters(config) - layers * idle * module_parameters(config)
    if config.scar.memory:
        out -= layers * idle * config.scar.dim
    if config.token_router is not None:
        out -= (config.vocab_size - 1) * config.token_router.hidden_size
    if config.architecture != "GemForCausalLM" or not config.tie_word_embeddings:
        out -= (config.vocab_size - 1) * config.hidden_size
    return out


@dataclass(frozen=True)
class TokenCost:
    touched_parameters: float
    bytes_touched: float  # weights, keys and values, in fp16
    multiply_adds: float


def token_cost(config: GemConfig, modules_per_token: float, attended_keys: float) -> TokenCost:
    """Of one generated token. `attended_keys` counts the blocks' keys; the token router's are its whole window."""
    layers, hd = config.num_hidden_layers, config.head_dim
    touched = touched_parameters(config, modules_per_token)
    keys_bytes = layers * attended_keys * 2 * config.num_key_value_heads * hd * BYTES_PER_KEY
    # Each parameter of a matrix is one multiply-add; vectors of norms and rows looked up are none.
    shapes = tensor_shapes(config)
    vectors = sum(math.prod(s) for s in shapes.values() if len(s) == 1)
    looked_up = 0 if config.tie_word_embeddings and config.architecture == "GemForCausalLM" else config.hidden_size
    multiply_adds = touched - vectors + layers * attended_keys * 2 * config.num_attention_heads * hd
    router = config.token_router
    if router is not None:
        looked_up += router.hidden_size
        window = router.window or attended_keys
        keys_bytes += router.num_layers * window * 2 * router.hidden_size * BYTES_PER_KEY
        multiply_adds += router.num_layers * window * 2 * router.hidden_size
    return TokenCost(touched, BYTES_PER_WEIGHT * touched + keys_bytes, multiply_adds - looked_up)

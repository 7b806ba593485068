"""What gem-mini is compared with: dense models of equal size, and itself with one thing taken away.

A dense model stays in the family, so that export, evaluation and the compiler take it as it is: threshold policy with
tau 1 chooses no module, since with all cluster keys 0 every score is 1/C < 1, and then the general path works alone.
The modules that a config cannot do without are there, as small as they can be, and never run; so is one SCAR query of
size 1. Together they are below 1 % of gem-mini's size; they count as size and not as touched. Domains are kept, as
names to measure by. Its attention sees as many keys as gem-mini's may: the window takes over the cluster's share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .config import GemConfig, changed
from .cost import total_parameters, touched_parameters
from .model import Gem
from .train import Recipe

GRAIN = 8
"""A general path that is made larger gets a size that is a multiple of this."""


def dense(config: GemConfig, intermediate_size: int) -> GemConfig:
    """`config` without token router, modules and memory, its general path of the given size."""
    changes: dict[str, Any] = {
        "intermediate_size": intermediate_size,
        "module_intermediate_size": 1,
        "token_router": None,
        "scar.num_clusters": max(2, config.num_domains),
        "scar.dim": 1,
        "scar.policy": "threshold",
        "scar.tau": 1.0,
        "scar.k_min": 0,
        "scar.k_max": 1,
        "scar.memory": False,
    }
    return changed(config, changes | window_attention(config))


def window_attention(config: GemConfig) -> dict[str, int]:
    """The changes that let attention see the latest keys alone, as many as it may see of them and of its cluster's."""
    attention = config.attention
    return {"attention.window": attention.window + attention.cluster_cap, "attention.cluster_cap": 0}


def is_dense(config: GemConfig) -> bool:
    """Whether no token can visit a module, given that all cluster keys are 0."""
    return config.scar.policy == "threshold" and config.scar.tau == 1 and config.scar.num_clusters > 1


def dense_active(config: GemConfig, modules_per_token: float) -> GemConfig:
    """The dense model that touches as many parameters per generated token as `config` does."""
    return _nearest(partial(dense, config), _touched(0), touched_parameters(config, modules_per_token))


def dense_total(config: GemConfig) -> GemConfig:
    """The dense model that has as many parameters as `config`."""
    return _nearest(partial(dense, config), total_parameters, total_parameters(config))


def without_modules(config: GemConfig, modules_per_token: float) -> GemConfig:
    """All of the routing with nothing to route to: modules of size 1, and a general path as large as lets a token touch as
    many parameters as with `config`. What it does better than a dense model is not the modules'."""

    def sized(intermediate_size: int) -> GemConfig:
        return changed(config, {"module_intermediate_size": 1, "intermediate_size": intermediate_size})

    return _nearest(sized, _touched(modules_per_token), touched_parameters(config, modules_per_token))


def _touched(modules_per_token: float) -> Callable[[GemConfig], float]:
    return lambda config: touched_parameters(config, modules_per_token)


def _nearest(sized: Callable[[int], GemConfig], size: Callable[[GemConfig], float], wanted: float) -> GemConfig:
    """Of the models with a general path of so many grains the one of the size nearest to the wanted one."""
    one, two = size(sized(GRAIN)), size(sized(2 * GRAIN))  # sizes are linear in the general path's
    grains = max(1, round(1 + (wanted - one) / (two - one)))
    return sized(grains * GRAIN)


def dense_recipe(recipe: Recipe) -> Recipe:
    """The same schedule without the terms that are about modules, and without modules while training."""
    return dataclasses.replace(recipe, domain_weight=0.0, balance_weight=0.0, budget_weight=0.0, fixed_modules=0)


@torch.no_grad()
def silence_modules(model: Gem) -> None:
    """All cluster keys 0. They stay so: a key gets no gradient where no module and no memory is chosen."""
    for block in model.layers:
        block.scar.keys.zero_()


ABLATIONS: dict[str, dict[str, Any]] = {
    "no-token-router": {"token_router": None},
    "lambda-0.1": {"scar.lambda": 0.1},
    "no-memory": {"scar.memory": False},
    "full-attention": {"attention.kind": "full"},
    "top-2": {"scar.policy": "top_k", "scar.k_max": 2},
    "top-3": {"scar.policy": "top_k", "scar.k_max": 3},
}
"""Changes by name. gem-mini's lambda of 0.5 leaves little to SCAR once π is sure of a domain, which makes the scores of other
domains' modules e^(0.5·ln π) times smaller, so a weaker one is tried, too. Its tokens visit 2.5 modules in the mean, so a fixed
number is tried on either side."""


def ablations(config: GemConfig, modules_per_token: float) -> dict[str, GemConfig]:
    """Name → `config` with one thing taken away or changed."""
    out = {name: changed(config, change) for name, change in ABLATIONS.items()}
    return out | {
        "window-attention": changed(config, window_attention(config)),
        "no-modules": without_modules(config, modules_per_token),
    }

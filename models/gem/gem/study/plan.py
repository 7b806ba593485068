"""What the study trains: a list of runs, each with its config, recipe and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import GemConfig, changed
from ..preservation import Preservation
from ..presets import RECIPES, preset
from ..train import Recipe
from ..variants import ablations, dense_active, dense_recipe, dense_total

ROUTED = "routed"
"""The model that all others are compared with, and that fine-tuning starts from."""


@dataclass(frozen=True)
class Run:
    name: str
    part: str  # "routing", "ablation", "preservation" or "bundled"
    config: GemConfig
    recipe: Recipe
    preservation: Preservation | None = None  # fine-tunes ROUTED of seed 0
    given: Path | None = None  # a model's folder that is there already: nothing to train


@dataclass(frozen=True)
class Plan:
    name: str
    runs: tuple[Run, ...]
    tokenizer: Path | None  # a tokenizer.json that is there already; None: one is trained
    test_tokens: int | None  # of the test split, for models trained from scratch; None: all
    fine_tuned_test_tokens: int | None
    probe_tokens: int  # of the valid split, for the weights of distillation

    def named(self, names: Sequence[str]) -> list[Run]:
        """The runs of the given names, and what they need first, in the plan's order."""
        known = {run.name: run for run in self.runs}
        for name in names:
            if name not in known:
                raise ValueError(f"--only: wanted one of {', '.join(known)}, found {name}")
        wanted = set(names)
        if any(known[name].preservation for name in names):
            wanted.add(ROUTED)
        return [run for run in self.runs if run.name in wanted]


def seeded(name: str, seed: int) -> str:
    return name if seed == 0 else f"{name}.seed{seed}"


def fine_tuned(domain: str, preserved: bool) -> str:
    return f"{'preserved' if preserved else 'plain'}-{domain}"


def trained(config: GemConfig, recipe: Recipe, modules_per_token: float, seeds: int) -> list[Run]:
    """From scratch: the routed model, dense ones of its sizes, and its ablations."""
    out = []
    dense_attention = {"attention.kind": "full"}
    for seed in range(seeds):
        r = dataclasses.replace(recipe, seed=seed)
        active, total = dense_active(config, modules_per_token), dense_total(config)
        out += [
            Run(seeded(ROUTED, seed), "routing", config, r),
            Run(seeded("dense-active", seed), "routing", active, dense_recipe(r)),
            Run(seeded("dense-total", seed), "routing", total, dense_recipe(r)),
            Run(
                seeded("dense-active-full-attention", seed), "routing", changed(active, dense_attention), dense_recipe(r)
            ),
        ]
        without = ablations(config, modules_per_token)
        out += [Run(seeded(name, seed), "ablation", other, r) for name, other in without.items()]
        fixed = dataclasses.replace(r, fixed_modules=2)
        out.append(Run(seeded("two-while-training", seed), "ablation", config, fixed))
    return out


def tuned(config: GemConfig, recipe: Recipe, weight: float, length: int, refresh_every: int) -> list[Run]:
    """Fine-tuning on each domain, plainly and with distillation."""
    return [
        Run(
            fine_tuned(domain, preserved),
            "preservation",
            config,
            recipe,
            Preservation(domain, weight if preserved else 0.0, length=length, refresh_every=refresh_every),
        )
        for domain in config.domain_names
        for preserved in (False, True)
    ]


FINE_TUNING = Recipe(
    steps=120,
    batch_size=12,
    length=384,
    learning_rate=3e-4,
    warmup_steps=10,
    horizon_steps=120,
    cooldown_steps=0,
    checkpoint_every=20,
    evaluate_every=1000,
    log_every=10,
)
"""Not quite two epochs of one domain's training text."""
DISTILLATION_WEIGHT = 1.0
"""Chosen on the valid split, docs/gem-study.md."""
ROUTED_STEPS = 1500
ROUTED_MODULES_PER_TOKEN = 2.48
"""Of ROUTED of seed 0 on the test split: what dense models and the one without modules are sized by."""
BUNDLED = "gem-mini"
BUNDLED_MODULES_PER_TOKEN = 2.54
"""Of the bundled model on the test split."""


def full_plan(mini: Path, seeds: int = 1, weight: float = DISTILLATION_WEIGHT) -> Plan:
    """Comparisons at gem-mini's size, trained for `ROUTED_STEPS`. `mini` is gem-mini's folder: its tokenizer serves all, and it is
    measured beside dense models that are trained for as long as it was."""
    config, recipe = preset("gem-mini"), RECIPES["gem-mini"]
    short = dataclasses.replace(recipe, steps=ROUTED_STEPS, fixed_modules=0)
    runs = trained(config, short, ROUTED_MODULES_PER_TOKEN, seeds)
    active, total = dense_active(config, BUNDLED_MODULES_PER_TOKEN), dense_total(config)
    runs += [
        Run(BUNDLED, "bundled", config, recipe, given=mini),
        Run(f"{BUNDLED}.dense-active", "bundled", active, dense_recipe(recipe)),
        Run(f"{BUNDLED}.dense-total", "bundled", total, dense_recipe(recipe)),
    ]
    runs += tuned(config, FINE_TUNING, weight, length=128, refresh_every=10)
    return Plan("full", tuple(runs), mini / "tokenizer.json", None, 65536, 8192)


SMOKE_DOMAINS = ("conversation", "finance", "law", "stem")
SMOKE_MODULES_PER_TOKEN = 1.5


def smoke_plan(domains: Sequence[str] = SMOKE_DOMAINS, weight: float = DISTILLATION_WEIGHT) -> Plan:
    """All parts at gem-tiny's size, with too few steps to say anything about routing."""
    config = preset("gem-tiny", domains)
    short = {"batch_size": 4, "length": 64, "checkpoint_every": 10, "evaluate_every": 1000, "log_every": 5}
    recipe = dataclasses.replace(
        RECIPES["gem-tiny"], steps=30, warmup_steps=5, horizon_steps=60, cooldown_steps=10, bf16=False, **short
    )
    tuning = dataclasses.replace(FINE_TUNING, steps=12, warmup_steps=2, horizon_steps=12, bf16=False, **short)
    runs = trained(config, recipe, SMOKE_MODULES_PER_TOKEN, 1)
    runs += tuned(config, tuning, weight, length=32, refresh_every=4)
    return Plan("smoke", tuple(runs), None, 4096, 2048, 1024)

"""Small random GEMs with reference outputs, covering every pair of architectural choices.

    python -m gem.make_random_models --out tests/models/random

Each model's seed is the first whose decisions (modules, clusters, greedy tokens) are all clear of a tie by
`MARGIN`, so an implementation with other rounding has to take exactly the same ones.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import ATTENTION_KINDS, POLICIES, GemConfig
from .model import Gem
from .reference import REFERENCE_FILE, can_generate, clear_of_ties, prompt_arrays, save_prompts
from .weights import named_tensors, round_weights, save_model, tensor_shapes

MARGIN = 1e-4
GREEDY_TOKENS = 16
LENGTHS = (1, 2, 7, 17, 33, 40)
VOCAB = 97
MAX_SEEDS = 2000

# Every value of each line meets every value of every other line in some model, where both can hold.
CHOICES: dict[str, tuple] = {
    "policy": POLICIES,
    "attention": ATTENTION_KINDS,
    "router": ("null", "bidirectional", "causal", "windowed"),
    "head": ("GemForCausalLM", "GemForSequenceClassification", "GemModel"),
    "memory": (True, False),
    "norm_gates": (True, False),
    "tied": (True, False),
    "is_causal": (True, False),
    "heads": ((2, 2), (4, 2), (3, 1)),  # query, key/value
    "layers": (1, 3),
    "clusters": ((7, 3), (5, 5), (8, 2)),  # clusters, domains
    "hidden_size": (36, 40, 28),
    "head_dim": (20, 12),
    "dtype": ("fp32", "fp16", "bf16"),
}


def possible(case: dict) -> bool:
    """Whether the (perhaps still partial) choice is a model worth having."""
    if case.get("layers") == 3 and case.get("dtype") == "fp32":
        return False  # too large a file
    may_be_lm = case.get("head", "GemForCausalLM") == "GemForCausalLM"
    if case.get("is_causal") is False:
        # A language model that sees the future has nothing to predict, and clustered attention is causal.
        return case.get("attention") != "clustered" and case.get("head") != "GemForCausalLM" and case.get("tied") is not False
    return may_be_lm or case.get("tied") is not False  # only a language model has a head to untie


def pairwise() -> list[dict]:
    """Few cases that together hold every possible pair of values. Greedy, and the same every time."""
    names = list(CHOICES)
    left = {
        ((m, x), (n, y))
        for m, n in itertools.combinations(names, 2)
        for x in CHOICES[m]
        for y in CHOICES[n]
        if possible({m: x, n: y})
    }

    def new_pairs(case: dict, name: str, value) -> int:
        order = names.index(name)
        pairs = (((m, x), (name, value)) if names.index(m) < order else ((name, value), (m, x)) for m, x in case.items())
        return sum(pair in left for pair in pairs)

    cases = []
    while left:
        case = dict(min(left, key=repr))
        for name in names:
            if name not in case:
                values = [v for v in CHOICES[name] if possible(case | {name: v})]
                turn = len(cases) % len(values)  # among equally useful values take them in turn
                case[name] = max(values[turn:] + values[:turn], key=lambda v: new_pairs(case, name, v))
        left -= set(itertools.combinations(((n, case[n]) for n in names), 2))
        cases.append(case)
    return cases


def config_of(case: dict, index: int) -> GemConfig:
    (query_heads, kv_heads), (clusters, domains) = case["heads"], case["clusters"]
    router = None
    if case["router"] != "null":
        router = {
            "hidden_size": (24, 12, 20)[index % 3],
            "num_layers": 1 + index % 2,
            "num_heads": (2, 3, 1)[index % 3],
            "intermediate_size": (33, 18, 40)[index % 3],
            "causal": case["router"] != "bidirectional",
            "window": 6 if case["router"] == "windowed" else 0,
        }
    small = case["layers"] == 3
    return GemConfig.from_dict(
        {
            "model_type": "gem",
            "architectures": [case["head"]],
            "is_causal": case["is_causal"],
            "vocab_size": VOCAB,
            "hidden_size": case["hidden_size"],
            "num_hidden_layers": case["layers"],
            "num_attention_heads": query_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": case["head_dim"],
            "intermediate_size": (17, 20, 33)[index % 3] if small else (50, 64, 37)[index % 3],
            "module_intermediate_size": (5, 6, 7)[index % 3] if small else (9, 12, 33 if clusters == 5 else 7)[index % 3],
            "num_domains": domains,
            "domain_names": [f"domain-{d}" for d in range(domains)],
            "rms_norm_eps": (1e-5, 1e-6)[index % 2],
            "rope_theta": (10000.0, 500.0)[index % 2],
            "max_position_embeddings": 128,
            "tie_word_embeddings": case["tied"],
            "num_labels": 4 if case["head"] == "GemForSequenceClassification" else 0,
            "scar": {
                "num_clusters": clusters,
                "dim": (9, 8, 16)[index % 3],
                "lambda": (0.5, 1.0, 0.25)[index % 3],
                "policy": case["policy"],
                "k_min": 1 + index % 2,
                "k_max": 2 if clusters == 5 else (3, 4, 2)[index % 3],
                "p": (0.6, 0.8)[index % 2],
                "tau": (0.2, 0.15)[index % 2],
                "capacity_factor": (0.75, 1.3)[index % 2],
                "norm_gates": case["norm_gates"],
                "memory": case["memory"],
            },
            "attention": {
                "kind": case["attention"],
                "window": (4, 9, 1)[index % 3],
                "sinks": (1, 0, 3)[index % 3],
                "cluster_cap": (3, 5, 0)[index % 3],
            },
            "token_router": router,
        }
    )


@dataclass
class Case:
    name: str
    config: GemConfig
    dtype: str
    construction: str = ""  # "", "zero_keys", "one_module": see `fill`


def cases() -> Iterator[Case]:
    short = {"GemForCausalLM": "lm", "GemForSequenceClassification": "classify", "GemModel": "embed"}
    index = -1
    for index, case in enumerate(pairwise()):
        parts = [case["policy"], case["attention"], f"{case['router']}-router", short[case["head"]], case["dtype"]]
        yield Case(f"{index:02}-" + "-".join(parts), config_of(case, index), case["dtype"])
    base = {
        "policy": "top_k", "attention": "clustered", "router": "null", "head": "GemForCausalLM", "memory": True,
        "norm_gates": True, "tied": False, "is_causal": True, "heads": (4, 2), "layers": 1, "clusters": (7, 3),
        "hidden_size": 40, "head_dim": 12, "dtype": "fp32",
    }  # fmt: skip

    def special(name: str, construction: str, scar: dict, **changes) -> Case:
        nonlocal index
        index += 1
        case = base | changes
        given = config_of(case, index).to_dict()
        given["scar"] |= scar
        return Case(f"{index:02}-{name}", GemConfig.from_dict(given), case["dtype"], construction)

    yield special("no-module-chosen", "", {"tau": 0.999}, policy="threshold", layers=3, router="causal", dtype="fp16")
    yield special("all-scores-equal", "zero_keys", {"k_max": 3}, layers=3, dtype="bf16")
    yield special("one-module-for-all", "one_module", {"k_min": 1, "k_max": 1}, router="windowed")
    # More of what can generate, since most of the pairs above cannot.
    yield special("generate-threshold", "", {}, policy="threshold", router="windowed", layers=3, dtype="bf16")
    yield special("generate-top_p", "", {"norm_gates": False, "k_max": 5}, policy="top_p", router="causal", clusters=(8, 2))
    yield special("generate-top_k", "", {"memory": False}, attention="full", heads=(3, 1), hidden_size=36)


def fill(model: Gem, construction: str, seed: int) -> None:
    """Random weights large enough that tokens differ in their modules and logits in their order."""
    rng = torch.Generator().manual_seed(seed)
    tensors = named_tensors(model)
    for name, shape in tensor_shapes(model.config).items():
        noise = torch.randn(shape, generator=rng)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith(("embed_tokens.weight", "embed.weight")):
            value = 0.5 * noise
        elif name.endswith(("scar.keys", "scar.values")):
            value = noise
        elif name.endswith("token_router.head.weight"):
            value = noise * 2 / shape[1] ** 0.5
        else:
            value = noise / shape[1] ** 0.5
        tensors[name].copy_(value)
    for block in model.layers:
        if construction == "zero_keys":  # exact ties: the lowest index has to win
            block.scar.keys.data.zero_()
        if construction == "one_module":  # all tokens share a direction, and one key lies along its query
            direction = torch.randn(model.config.hidden_size, generator=rng)
            model.embed_tokens.weight.data.copy_(direction + 0.2 * model.embed_tokens.weight.data)
            query = block.scar.query.weight.data @ (direction * block.attn_norm.weight.data)
            block.scar.keys.data[4] = 6 * query / query.norm()


def prompts(seed: int) -> list[Tensor]:
    """Ids without repetition: equal ids could give equal scores, hence ties, in a block without context."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randperm(VOCAB, generator=rng)[:length] for length in LENGTHS]


def check_purpose(case: Case, arrays: list[dict[str, np.ndarray]]) -> bool:
    """That the model shows what it is there for."""
    modules = np.concatenate([a[key] for a in arrays for key in a if key.startswith("modules.")])
    if "no-module" in case.name:
        return not modules.any()
    if case.construction == "zero_keys":
        return bool(modules[:, :3].all() and not modules[:, 3:].any())
    if case.construction == "one_module":
        return bool(modules[:, 4].all() and modules.sum() == len(modules))
    return len(np.unique(modules, axis=0)) > 5  # routing that varies


def make(case: Case, folder: Path) -> int:
    """Writes one model and returns its seed."""
    for seed in range(MAX_SEEDS):
        model = Gem(case.config).eval().requires_grad_(False)
        fill(model, case.construction, seed)
        round_weights(model, case.dtype)
        arrays = []
        for ids in prompts(seed):
            num_greedy = GREEDY_TOKENS if can_generate(model) else 0
            one = prompt_arrays(model, ids, list(range(len(ids))), num_greedy)
            if case.construction != "zero_keys" and not clear_of_ties(model, one, MARGIN):
                break
            arrays.append(one)
        if len(arrays) == len(LENGTHS) and check_purpose(case, arrays):
            save_model(model, folder, case.dtype)
            save_prompts(folder / REFERENCE_FILE, arrays)
            return seed
    raise RuntimeError(f"{case.name}: wanted a seed without near ties, found none below {MAX_SEEDS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="is emptied first")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    for case in cases():
        folder = args.out / case.name
        seed = make(case, folder)
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{case.name}: seed {seed}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

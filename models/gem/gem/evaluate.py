"""Measures a language model on corpus passages: bits per byte, router accuracy, and where tokens were routed.

    python -m gem.evaluate --model tests/models/gem-mini --corpus ../shared/corpus --split valid
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tokenizers import Tokenizer
from tqdm import tqdm

from .data import Passage, encode_split
from .model import Gem
from .tokenizer import SEPARATOR_ID
from .weights import TOKENIZER_FILE, load_model


@dataclass
class Tally:
    """Sums over the tokens of the passages, separators left out. D domains (by label), L layers, C clusters."""

    bits: Tensor  # [D] −log₂ of the probability of every token of a passage
    num_bytes: Tensor  # [D]
    num_tokens: Tensor  # [D]
    domain_hits: Tensor  # [D] tokens whose label is the argmax of π
    module_counts: Tensor  # [D, L, C+1] tokens by how many modules they visited
    module_visits: Tensor  # [D, L, C] tokens by which module they visited

    def bits_per_byte(self) -> float:
        """Mean over the domains, so that each counts the same."""
        return float((self.bits / self.num_bytes).mean())


@torch.no_grad()
def measure(model: Gem, passages: list[Passage], batch_size: int = 16, progress: bool = False) -> Tally:
    """Each passage stands alone behind one separator, which is context and not counted.

    Passages of similar length share a batch and are filled up on the right: nothing in a model that can
    generate looks to the right, so the filling changes no counted value.
    """
    config = model.config
    config.check_generation()
    num_domains, num_layers, clusters = config.num_domains, config.num_hidden_layers, config.scar.num_clusters
    tally = Tally(
        *(torch.zeros(num_domains, dtype=torch.float64) for _ in range(4)),
        torch.zeros(num_domains, num_layers, clusters + 1, dtype=torch.int64),
        torch.zeros(num_domains, num_layers, clusters, dtype=torch.int64),
    )
    by_length = sorted(passages, key=lambda p: len(p.ids))
    for start in tqdm(range(0, len(by_length), batch_size), desc="measure", leave=False, disable=not progress):
        batch = by_length[start : start + batch_size]
        longest = len(batch[-1].ids)
        ids = torch.full((len(batch), longest + 1), SEPARATOR_ID)
        labels = torch.tensor([p.domain for p in batch])
        lengths = torch.tensor([len(p.ids) for p in batch])
        for row, p in zip(ids, batch):
            row[1 : 1 + len(p.ids)] = torch.from_numpy(p.ids)
        out = model(ids)
        counted = torch.arange(longest)[None] < lengths[:, None]  # [B, longest], of the tokens after the separator
        nats = F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        bits = (nats.view_as(counted).double() * counted).sum(1) / math.log(2)
        tally.bits.index_add_(0, labels, bits)
        tally.num_bytes.index_add_(0, labels, torch.tensor([float(p.num_bytes) for p in batch], dtype=torch.float64))
        tally.num_tokens.index_add_(0, labels, lengths.double())
        hits = (out.domains[:, 1:].argmax(-1) == labels[:, None]) & counted
        tally.domain_hits.index_add_(0, labels, hits.sum(1).double())
        for layer, routing in enumerate(out.routing):
            modules = routing.modules[:, 1:] & counted[..., None]  # [B, longest, C]
            tally.module_visits[:, layer].index_add_(0, labels, modules.sum(1))
            counts = F.one_hot(modules.sum(-1), clusters + 1) * counted[..., None]
            tally.module_counts[:, layer].index_add_(0, labels, counts.sum(1))
    return tally


def report(model: Gem, tally: Tally) -> dict:
    """The tally as evaluation.json has it."""
    names = model.config.domain_names
    counts, visits = tally.module_counts, tally.module_visits
    per_token = torch.arange(counts.shape[-1]).double()

    def mean_modules(histogram: Tensor) -> float:
        return round(float((histogram * per_token).sum() / histogram.sum()), 4)

    def per_domain(values: Tensor) -> dict[str, float]:
        return {name: round(float(v), 4) for name, v in zip(names, values)}

    return {
        "bits_per_byte": {"mean": round(tally.bits_per_byte(), 4), **per_domain(tally.bits / tally.num_bytes)},
        "token_router_accuracy": {
            "mean": round(float((tally.domain_hits / tally.num_tokens).mean()), 4),
            **per_domain(tally.domain_hits / tally.num_tokens),
        },
        "num_tokens": {name: int(v) for name, v in zip(names, tally.num_tokens)},
        "num_bytes": {name: int(v) for name, v in zip(names, tally.num_bytes)},
        "modules_per_token": {
            "mean": mean_modules(counts.sum((0, 1))),
            "histogram": counts.sum((0, 1)).tolist(),
            "mean_by_domain": {name: mean_modules(h) for name, h in zip(names, counts.sum(1))},
            "histogram_by_domain": {name: h.tolist() for name, h in zip(names, counts.sum(1))},
            "mean_by_layer": [mean_modules(h) for h in counts.sum(0)],
            "histogram_by_layer": counts.sum(0).tolist(),
        },
        "module_visits_by_domain": {name: v.tolist() for name, v in zip(names, visits.sum(1))},
        "module_visits_by_layer": visits.sum(0).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--split", default="valid", choices=("train", "valid", "test"))
    args = parser.parse_args()
    model = load_model(args.model)
    model.fast = True
    tokenizer = Tokenizer.from_file(f"{args.model}/{TOKENIZER_FILE}")
    passages = encode_split(args.corpus, model.config.domain_names, args.split, tokenizer)
    print(json.dumps(report(model, measure(model, passages, progress=True)), indent=2))


if __name__ == "__main__":
    main()

"""Measures a language model on corpus passages: bits per byte, router accuracy, and where tokens were routed.

    python -m gem.evaluate tests/models/gem-mini --corpus ../shared/corpus --split valid

prints tables, or with `--json` all that was measured. The definitions are `docs/gem-study.md`'s.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tokenizers import Tokenizer
from tqdm import tqdm

from .config import ConfigError, GenerationError
from .data import Passage, cut, encode_split, some
from .model import Gem
from .routing_figures import Watch
from .tokenizer import SEPARATOR_ID
from .weights import TOKENIZER_FILE, WeightsError, load_model


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
def measure(
    model: Gem, passages: list[Passage], batch_size: int = 16, progress: bool = False, watch: Watch | None = None
) -> Tally:
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
        if watch is not None:
            watch.see(model, out, labels, lengths, counted)
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


def evaluate(model: Gem, passages: list[Passage], progress: bool = False) -> dict:
    """All figures: `report`'s, and those of `routing_figures`."""
    watch = Watch()
    tally = measure(model, passages, progress=progress, watch=watch)
    return report(model, tally) | watch.report(model)


def load_for_measuring(folder: str | Path, changes: dict[str, Any] | None = None) -> tuple[Gem, Tokenizer]:
    model = load_model(folder, changes=changes)
    model.fast = True
    return model, Tokenizer.from_file(str(Path(folder) / TOKENIZER_FILE))


def passages_of(
    corpus: str | Path, split: str, model: Gem, tokenizer: Tokenizer, max_tokens: int | None
) -> list[Passage]:
    """At most `max_tokens` of a split (None: all), passages that are too long for the model in pieces."""
    passages = encode_split(corpus, model.config.domain_names, split, tokenizer)
    return some(cut(passages, model.config.max_position_embeddings - 1, tokenizer), max_tokens)


def tables(figures: dict) -> str:
    """The figures of `evaluate`, for people."""
    bits, accuracy, modules = (figures[k] for k in ("bits_per_byte", "token_router_accuracy", "modules_per_token"))
    names = [name for name in bits if name != "mean"]
    routed = figures["router_accuracy_by_context"] is not None

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    rows = [
        [n, f"{bits[n]:.3f}", share(accuracy[n] if routed else None), f"{modules['mean_by_domain'][n]:.2f}",
         f"{figures['num_tokens'][n]:,}", f"{figures['num_bytes'][n]:,}"]
        for n in names
    ]  # fmt: skip
    mean = share(accuracy["mean"] if routed else None)
    totals = [f"{sum(figures[k].values()):,}" for k in ("num_tokens", "num_bytes")]
    rows.append(["all", f"{bits['mean']:.3f}", mean, f"{modules['mean']:.2f}", *totals])
    heads = ["domain", "bits per byte", "token router right", "modules per token", "tokens", "bytes"]
    out = [markdown_table(heads, rows)]
    rows = [
        [str(i), f"{modules['mean_by_layer'][i]:.2f}", f"{keys:.1f}", f"{mi['bits']:.3f}", f"{mi['shuffled_bits']:.3f}",
         f"{mi['independent_bias_bits']:.6f}"]
        for i, (keys, mi) in enumerate(zip(figures["attended_keys_by_layer"], figures["mutual_information"]))
    ]  # fmt: skip
    heads = ["layer", "modules per token", "keys attended to", "I(domain; module), bits", "of it bias, shuffled labels",
             "of it bias, Miller–Madow"]  # fmt: skip
    out.append(markdown_table(heads, rows))
    if routed:
        rows = [
            [str(r["tokens"]), str(r["passages"]), share(r["mean"]), *(share(r["by_domain"][n]) for n in names)]
            for r in figures["router_accuracy_by_context"]
        ]
        out.append(markdown_table(["tokens read", "passages", "router right", *names], rows))
    return "\n\n".join(out)


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


DEFAULT_TOKENS = 65536


def change(text: str) -> tuple[str, Any]:
    """A dotted key and its value, in JSON or as it stands: `scar.p=0.6`, `scar.policy=top_k`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"wanted KEY=VALUE, found {text}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder with config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--corpus", required=True, help="folder with <domain>.<split>.txt")
    parser.add_argument("--split", default="valid", choices=("train", "valid", "test"))
    parser.add_argument(
        "--tokens", type=int, default=DEFAULT_TOKENS,
        help="first passages of all domains in turn, up to so many tokens; 0: all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", type=change, default=[], metavar="KEY=VALUE", dest="changes",
        help="measures it with another value in its config.json, like scar.p=0.6 (may be given more than once)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        model, tokenizer = load_for_measuring(args.model, dict(args.changes))
        model.config.check_generation()
    except (ConfigError, GenerationError, WeightsError) as error:
        parser.error(str(error))
    passages = passages_of(args.corpus, args.split, model, tokenizer, args.tokens or None)
    figures = evaluate(model, passages, progress=True)
    print(json.dumps(figures, indent=2) if args.json else tables(figures))


if __name__ == "__main__":
    main()

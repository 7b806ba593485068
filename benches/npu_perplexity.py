#!/usr/bin/env python3
"""Perplexity per domain of what the NPU computes, beside the model in fp32, on the test split of the domain corpus.

Of each domain the first `--tokens` tokens of the split, in sequences of `--sequence`, each of which stands alone: the tokens and windows of
`lapidary calibrate --evaluate`. Logits come from PyTorch (`fp32`; `hybrid`, the recipe in ordinary arithmetic; `npu`, the recipe in the NPU's
order of operations) and, where an artifact for an NPU is given, from the simulated machine:

    lapidary compile tests/models/gem-mini --target npu:edge-32 --quant hybrid -o out/gem-mini.lapis
    export PYTHONPATH=models/gem; python=$(models/gem/venv.sh)
    $python benches/npu_perplexity.py --corpus ../shared/corpus --lapidary target/release/lapidary --artifact out/gem-mini.lapis

Exit code 1 if a domain's perplexity is off by more than `--within` percent of fp32's.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm

from gem.npu import NpuGem
from gem.quantized import QuantizedGem
from gem.weights import TOKENIZER_FILE, load_model

ROOT = Path(__file__).resolve().parents[1]


def windows(text, tokenizer, tokens, sequence):
    """ids [T] of the sequences of a text's beginning; a rest of one token predicts nothing and is left out."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids[:tokens])
    return [w for w in ids.split(sequence) if len(w) >= 2]


class Loss:
    """Negative log-likelihood of the next tokens, in nats."""

    def __init__(self):
        self.nats, self.tokens, self.same_best, self.off = 0.0, 0, 0, 0.0

    def add(self, logits, ids, wanted):
        """logits [T, V] after ids [T]; wanted: those of fp32."""
        self.nats += float(F.cross_entropy(logits[:-1].double(), ids[1:], reduction="sum"))
        self.tokens += len(ids) - 1
        self.same_best += int((logits[:-1].argmax(-1) == wanted[:-1].argmax(-1)).sum())
        self.off += float((logits[:-1].double() - wanted[:-1].double()).abs().mean(-1).sum())

    def perplexity(self):
        return math.exp(self.nats / self.tokens)


@torch.no_grad()
def torch_logits(model, sequences, what):
    return [model(ids[None]).logits[0] for ids in tqdm(sequences, desc=what, leave=False)]


def simulated_logits(lapidary, artifact, sequences):
    """From `lapidary simulate`, all sequences in one call."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = os.path.join(folder, "ids.npz"), os.path.join(folder, "out.npz")
        np.savez(given, **{f"prompt.{i:03}.ids": ids.numpy() for i, ids in enumerate(sequences)})
        command = [lapidary, "-q", "simulate", artifact, "--input", f"ids=@{given}", "--output", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(out) as arrays:
            return [torch.from_numpy(arrays[f"prompt.{i:03}.logits"]) for i in range(len(sequences))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "tests" / "models" / "gem-mini")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--tokens", type=int, default=4096, help="of each domain")
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--emulate", default="hybrid", help="what PyTorch computes beside fp32: hybrid, npu, both with a comma, or none")
    parser.add_argument("--lapidary", help="the command")
    parser.add_argument("--artifact", help="for an NPU, of the model in recipe hybrid")
    parser.add_argument("--within", type=float, default=2.0, help="percent")
    args = parser.parse_args()
    if bool(args.lapidary) != bool(args.artifact):
        parser.error("--lapidary and --artifact: wanted both or none")
    torch.set_num_threads(1)
    fp32 = load_model(args.model)
    quantized = QuantizedGem(fp32)
    emulations = {"hybrid": quantized, "npu": NpuGem(quantized)}
    chosen = [] if args.emulate == "none" else args.emulate.split(",")
    if unknown := [name for name in chosen if name not in emulations]:
        parser.error(f"--emulate: wanted hybrid, npu or none, found {', '.join(unknown)}")
    sources = chosen + (["simulated"] if args.artifact else [])
    tokenizer = Tokenizer.from_file(str(args.model / TOKENIZER_FILE))

    print("| domain | tokens | fp32 | " + " | ".join(f"{s} | change | same best | mean \\|Δlogit\\|" for s in sources) + " |")
    print("|---|---|---|" + "---|---|---|---|" * len(sources))
    worst = 0.0
    for domain in fp32.config.domain_names:
        text = (args.corpus / f"{domain}.{args.split}.txt").read_text(encoding="utf-8")
        sequences = windows(text, tokenizer, args.tokens, args.sequence)
        wanted = torch_logits(fp32, sequences, f"{domain}, fp32")
        losses = {name: Loss() for name in ("fp32", *sources)}
        for name, loss in losses.items():
            if name == "fp32":
                logits = wanted
            elif name == "simulated":
                logits = simulated_logits(args.lapidary, args.artifact, sequences)
            else:
                logits = torch_logits(emulations[name], sequences, f"{domain}, {name}")
            for row in zip(logits, sequences, wanted, strict=True):
                loss.add(*row)
        base = losses["fp32"].perplexity()
        cells = [domain, str(losses["fp32"].tokens), f"{base:.3f}"]
        for name in sources:
            loss = losses[name]
            change = 100 * (loss.perplexity() / base - 1)
            worst = max(worst, abs(change))
            same = 100 * loss.same_best / loss.tokens
            cells += [f"{loss.perplexity():.3f}", f"{change:+.2f} %", f"{same:.1f} %", f"{loss.off / loss.tokens:.4f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nlargest change {worst:.2f} %, wanted at most {args.within:g} %")
    sys.exit(worst > args.within)


if __name__ == "__main__":
    main()

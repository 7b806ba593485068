"""Trains gem-mini, the bundled model, and writes its whole folder: weights, tokenizer, evaluation, references.

    python -m gem.mini --corpus ../shared/corpus --run /tmp/gem-mini-run --out tests/models/gem-mini
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .data import encode_split, read_passages
from .evaluate import measure, report
from .export import compact_json, export
from .model import Gem
from .npu import NpuGem
from .presets import DOMAINS, RECIPES, preset
from .quantized import load_quantized
from .quantized_reference import stored_prompts, write_quantized_references
from .reference import precision, write_references
from .tokenizer import train_tokenizer
from .train import LOG_FILE, Trainer
from .weights import TOKENIZER_FILE, WEIGHTS_FILE, count_parameters, load_model

CONFIG, RECIPE = preset("gem-mini"), RECIPES["gem-mini"]
VALID_PASSAGES_PER_DOMAIN = 16  # measured while training; the whole split is measured at the end


def trained_tokenizer(corpus: Path, run: Path) -> Tokenizer:
    path = run / TOKENIZER_FILE
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        texts = (text for domain in DOMAINS for text in read_passages(corpus, domain, "train"))
        train_tokenizer(texts, CONFIG.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def train(corpus: Path, run: Path) -> Gem:
    tokenizer = trained_tokenizer(corpus, run)
    passages = encode_split(corpus, DOMAINS, "train", tokenizer)
    valid = encode_split(corpus, DOMAINS, "valid", tokenizer)
    few = [p for d in range(len(DOMAINS)) for p in [q for q in valid if q.domain == d][:VALID_PASSAGES_PER_DOMAIN]]
    return Trainer(CONFIG, RECIPE, passages, few, run).run(progress=True)


def evaluate(corpus: Path, out: Path) -> dict:
    """evaluation.json: the stored model, its weights rounded to fp16 and its sums in fp32."""
    model = load_model(out)
    model.fast = True
    tokenizer = Tokenizer.from_file(str(out / TOKENIZER_FILE))
    test, valid = (
        report(model, measure(model, encode_split(corpus, DOMAINS, split, tokenizer), progress=True))
        for split in ("test", "valid")
    )
    return {
        "parameters": count_parameters(model),
        "weights_bytes": (out / WEIGHTS_FILE).stat().st_size,
        "trained_tokens": RECIPE.steps * RECIPE.batch_size * RECIPE.length,
        "test": test,
        "valid": {key: valid[key] for key in ("bits_per_byte", "token_router_accuracy")},
        "float32_against_float64": precision(out),
    }


def write_log(run: Path, path: Path) -> None:
    rows = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    columns = [*rows[0], "valid_bits_per_byte"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(columns)), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_readme(evaluation: dict, threads: int, path: Path) -> None:
    test = evaluation["test"]
    counts = test["modules_per_token"]
    most = max(i for i, n in enumerate(counts["histogram"]) if n)
    total = sum(counts["histogram"])
    share = {d: [n / sum(h) for n in h[: most + 1]] for d, h in counts["histogram_by_domain"].items()}
    share["all"] = [n / total for n in counts["histogram"][: most + 1]]
    lines = [
        "# gem-mini",
        "",
        f"A really trained GEM of {evaluation['parameters'] / 1e6:.1f} M parameters: eight domains, sixteen clusters, "
        f"{CONFIG.num_hidden_layers} blocks, weights in fp16. It is the model of `lapidary demo` and of the end-to-end tests.",
        "",
        "Test split, weights rounded to fp16, sums in fp32, each passage behind one separator. The test split was used for",
        "this table and for the prompts of the reference outputs, and for nothing else.",
        "",
        "| domain | bits per byte | token router right | modules per token | "
        + " | ".join(f"{i}" for i in range(most + 1))
        + " |",
        "|---|---|---|---|" + "---|" * (most + 1),
    ]
    for domain in (*DOMAINS, "all"):
        key = "mean" if domain == "all" else domain
        mean = counts["mean"] if domain == "all" else counts["mean_by_domain"][domain]
        cells = [f"{test['bits_per_byte'][key]:.3f}", f"{100 * test['token_router_accuracy'][key]:.1f} %", f"{mean:.2f}"]
        lines.append(f"| {domain} | " + " | ".join(cells + [f"{100 * s:.1f} %" for s in share[domain]]) + " |")
    lines += [
        "",
        f"The columns 0 to {most} are the share of (token, block) pairs that visit so many modules. `evaluation.json` has the",
        "same by block, and which domain visits which module.",
        "",
        "| file | what |",
        "|---|---|",
        "| `config.json`, `model.safetensors`, `tokenizer.json` | the model; the tokenizer is a byte-level BPE, id 0 separates passages |",
        "| `evaluation.json` | everything measured, and how far fp32 is from fp64 |",
        "| `training-log.csv` | losses, rate, speed, and bits per byte on a part of the valid split |",
        "| `reference.npz`, `prompts.json` | outputs for 64 prompts; key names stand in `models/gem/gem/reference.py` |",
        "| `reference-hybrid.npz` | the same prompts in recipe `hybrid`; names stand in `models/gem/gem/quantized_reference.py` |",
        "",
        "One command makes all of it, from the repository's root:",
        "",
        f"    PYTHONPATH=models/gem $(models/gem/venv.sh) -m gem.mini --threads {threads} --corpus ../shared/corpus \\",
        "        --run /tmp/gem-mini-run --out tests/models/gem-mini",
        "",
        "The training text is real and carries its own licences (attribution, some of them share-alike); the corpus's README",
        "lists them.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def finish(corpus: Path, run: Path, out: Path, threads: int) -> None:
    """The folder of the trained model, from the run's last checkpoint."""
    export(run, out, "fp16")
    write_references(out, corpus, progress=True)
    write_quantized_references(out, NpuGem(load_quantized(out)), stored_prompts(out), progress=True)
    evaluation = evaluate(corpus, out)
    (out / "evaluation.json").write_text(compact_json(evaluation) + "\n", encoding="utf-8")
    write_log(run, out / "training-log.csv")
    write_readme(evaluation, threads, out / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--run", required=True, type=Path, help="checkpoints and log; a stopped run continues here")
    parser.add_argument("--out", required=True, type=Path, help="the model's folder")
    parser.add_argument("--threads", type=int, default=2, help="part of what makes a run repeatable")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.corpus, args.run)
    finish(args.corpus, args.run, args.out, args.threads)


if __name__ == "__main__":
    main()

"""Trains a preset on a folder of labelled text for as long as there is time, and writes the model's folder.

    python -m gem.train --preset gem-tiny --corpus ../shared/corpus --minutes 2 --out out/tiny

OUT receives config.json, model.safetensors (fp16), tokenizer.json and evaluation.json, and under OUT/run the checkpoint
and the log. The same command again continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .config import GemConfig
from .data import Passage, cut, domains_of, encode_split, read_passages, some
from .evaluate import evaluate, load_for_measuring, passages_of, tables
from .export import compact_json, export
from .presets import PRESETS, RECIPES, preset
from .tokenizer import train_tokenizer
from .train import Recipe, Trainer
from .weights import TOKENIZER_FILE, count_parameters

RECIPE_FILE = "recipe.json"
FOR_STEPS = 0.8
"""Share of the time that steps are planned for; the rest is for measuring, and for a machine that gets busier."""
VALID_TOKENS, TEST_TOKENS = 8192, 32768


def planned(recipe: Recipe, steps: int) -> Recipe:
    """The preset's schedule, its shares of the steps kept."""
    share = steps / recipe.steps
    return dataclasses.replace(
        recipe,
        steps=steps,
        warmup_steps=max(1, min(recipe.warmup_steps, round(share * recipe.warmup_steps) or 1)),
        horizon_steps=max(steps, round(share * recipe.horizon_steps)),
        cooldown_steps=round(share * recipe.cooldown_steps),
        evaluate_every=max(25, steps // 6),
        log_every=max(1, min(25, steps // 20)),
    )


def seconds_per_step(config: GemConfig, recipe: Recipe, passages: list[Passage], steps: int = 5) -> float:
    """Measured on a model that is thrown away; the first steps, which are slower, are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, recipe, passages, [], folder)
        trainer.run(until=2)
        started = time.monotonic()
        trainer.run(until=2 + steps)
        return (time.monotonic() - started) / steps


def train_on(corpus: Path, name: str, minutes: float, out: Path, seed: int = 0, progress: bool = True) -> dict:
    """Returns the test figures, which are in OUT/evaluation.json as well."""
    started = time.monotonic()
    run = out / "run"
    run.mkdir(parents=True, exist_ok=True)
    domains = domains_of(corpus)
    config = preset(name, domains)
    if not (run / TOKENIZER_FILE).exists():
        texts = (text for domain in domains for text in read_passages(corpus, domain, "train"))
        train_tokenizer(texts, config.vocab_size).save(str(run / TOKENIZER_FILE))
    tokenizer = Tokenizer.from_file(str(run / TOKENIZER_FILE))
    train = encode_split(corpus, domains, "train", tokenizer)
    valid = encode_split(corpus, domains, "valid", tokenizer)
    valid = some(cut(valid, config.max_position_embeddings - 1, tokenizer), VALID_TOKENS)
    if (run / RECIPE_FILE).exists():
        recipe = Recipe(**json.loads((run / RECIPE_FILE).read_text(encoding="utf-8")))
    else:
        recipe = dataclasses.replace(RECIPES[name], seed=seed)
        pace = seconds_per_step(config, recipe, train)
        left = 60 * minutes - (time.monotonic() - started)
        recipe = planned(recipe, max(10, int(FOR_STEPS * left / pace)))
        (run / RECIPE_FILE).write_text(json.dumps(dataclasses.asdict(recipe), indent=1) + "\n", encoding="utf-8")
    trainer = Trainer(config, recipe, train, valid, run)
    if progress:
        millions = count_parameters(trainer.model) / 1e6
        print(f"{name}: {millions:.2f} M parameters, {len(domains)} domains, {recipe.steps} steps, now at {trainer.step}")
    trainer.run(progress=progress, deadline=started + 60 * minutes)
    if trainer.step == 0:  # an hour or a second: a model comes out
        trainer.run(until=1)
    if progress and trainer.step < recipe.steps:
        print(f"stopped at step {trainer.step} of {recipe.steps}; the same command continues")
    export(run, out, "fp16")
    model, tokenizer = load_for_measuring(out)
    figures = evaluate(model, passages_of(corpus, "test", model, tokenizer, TEST_TOKENS))
    told = {"preset": name, "steps": trainer.step, "of_steps": recipe.steps, "test": figures}
    (out / "evaluation.json").write_text(compact_json(told) + "\n", encoding="utf-8")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="gem.train", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gem-tiny", choices=PRESETS)
    parser.add_argument("--corpus", required=True, type=Path, help="folder with <domain>.{train,valid,test}.txt")
    parser.add_argument("--minutes", type=float, default=10, help="for everything (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="the model's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="part of what makes a run repeatable (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = train_on(args.corpus, args.preset, args.minutes, args.out, args.seed)
    print(f"\n{args.out}: its test split, the first {TEST_TOKENS} tokens\n\n{tables(figures)}")

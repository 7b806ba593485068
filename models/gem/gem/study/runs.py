"""One run of a plan: train, export, measure. A folder each, OUT/runs/NAME:

run.json           what the run is; another run is refused the folder
checkpoint.pt      where training stands
log.jsonl          losses and speed
model/             the trained model, fp16
evaluation.json    what was measured; with it the run is done
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..config import GemConfig
from ..cost import token_cost, total_parameters
from ..data import Passage, cut, encode_split, read_passages, some
from ..evaluate import evaluate, load_for_measuring, measure, report
from ..export import compact_json, export
from ..preservation import FineTuner
from ..tokenizer import train_tokenizer
from ..train import LOG_FILE, Trainer
from ..variants import is_dense, silence_modules
from ..weights import TOKENIZER_FILE
from .plan import ROUTED, Plan, Run

EVALUATION_FILE, RUN_FILE = "evaluation.json", "run.json"


@dataclass
class Text:
    """The corpus as all runs of a plan see it."""

    fingerprint: str
    tokenizer: Tokenizer
    train: list[Passage]
    valid: list[Passage]
    test: list[Passage]

    @staticmethod
    def load(plan: Plan, corpus: Path, out: Path) -> Text:
        config = plan.runs[0].config
        domains = config.domain_names
        digest = hashlib.sha256()
        for domain in domains:
            for split in ("train", "valid", "test"):
                digest.update((corpus / f"{domain}.{split}.txt").read_bytes())
        path = plan.tokenizer or out / TOKENIZER_FILE
        if not path.exists():
            texts = (text for domain in domains for text in read_passages(corpus, domain, "train"))
            train_tokenizer(texts, config.vocab_size).save(str(path))
        tokenizer = Tokenizer.from_file(str(path))
        digest.update(path.read_bytes())
        splits = (
            cut(encode_split(corpus, domains, split, tokenizer), config.max_position_embeddings - 1, tokenizer)
            for split in ("train", "valid", "test")
        )
        return Text(digest.hexdigest()[:16], tokenizer, *splits)


def identity(plan: Plan, run: Run, text: Text) -> dict:
    """What the figures of a run depend on, apart from the machine."""
    return {
        "plan": plan.name,
        "name": run.name,
        "part": run.part,
        "text": text.fingerprint,
        "test_tokens": [test_tokens(plan, run), plan.fine_tuned_test_tokens],
        "config": run.config.to_dict(),
        "recipe": dataclasses.asdict(run.recipe),
        "preservation": dataclasses.asdict(run.preservation) if run.preservation else None,
    }


def test_tokens(plan: Plan, run: Run) -> int | None:
    return plan.fine_tuned_test_tokens if run.preservation else plan.test_tokens


def model_folder(out: Path, run: Run) -> Path:
    return run.given or out / "runs" / run.name / "model"


def evaluation_of(folder: Path) -> dict | None:
    path = folder / EVALUATION_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def execute(plan: Plan, run: Run, text: Text, out: Path, minutes: float | None = None, progress: bool = False) -> bool:
    """Brings the run as far as it gets in `minutes` of training (None: to its end). True: it is done."""
    folder = out / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, identity(plan, run, text))
    if evaluation_of(folder) is not None:
        return True
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    model = model_folder(out, run)
    if run.given:
        if GemConfig.load(model / "config.json") != run.config:
            raise ValueError(f"{model}: wanted the config of run {run.name}, found another")
    else:
        trainer = trainer_of(plan, run, text, out, folder)
        trainer.run(progress=progress, deadline=deadline)
        if trainer.step < run.recipe.steps:
            return False
        text.tokenizer.save(str(folder / TOKENIZER_FILE))
        export(folder, model, "fp16")
    write_evaluation(plan, run, text, folder, model, progress)
    return True


def claim(folder: Path, wanted: dict) -> None:
    path = folder / RUN_FILE
    if not path.exists():
        path.write_text(compact_json(wanted) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        raise ValueError(f"{path}: wanted the same {', '.join(differing)} as this plan's, found another: use another --out")


def trainer_of(plan: Plan, run: Run, text: Text, out: Path, folder: Path) -> Trainer:
    if run.preservation:
        routed = next(r for r in plan.runs if r.name == ROUTED)
        teacher, _ = load_for_measuring(model_folder(out, routed))
        probe = some(text.valid, plan.probe_tokens)
        return FineTuner(teacher, run.preservation, run.recipe, text.train, probe, folder)
    trainer = Trainer(run.config, run.recipe, text.train, some(text.valid, plan.probe_tokens), folder)
    if trainer.step == 0 and is_dense(run.config):
        silence_modules(trainer.model)
    return trainer


def write_evaluation(plan: Plan, run: Run, text: Text, folder: Path, trained: Path, progress: bool) -> None:
    model, _ = load_for_measuring(trained)
    figures = evaluate(model, some(text.test, test_tokens(plan, run)), progress=progress)
    config = run.config
    keys = statistics.fmean(figures["attended_keys_by_layer"])
    cost = token_cost(config, figures["modules_per_token"]["mean"], keys)
    log = folder / LOG_FILE
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    told = {
        "name": run.name,
        "part": run.part,
        "seed": run.recipe.seed,
        "steps": run.recipe.steps,
        "trained_tokens": run.recipe.steps * run.recipe.batch_size * run.recipe.length,
        "train_tokens_per_s": statistics.median(r["tokens_per_s"] for r in rows) if rows else None,
        "threads": torch.get_num_threads(),
        "parameters": total_parameters(config),
        "intermediate_size": config.intermediate_size,
        "attended_keys": round(keys, 2),
        "touched_parameters": round(cost.touched_parameters),
        "bytes_touched": round(cost.bytes_touched),
        "multiply_adds": round(cost.multiply_adds),
        "test": figures,
    }
    if run.preservation:
        told["preservation"] = dataclasses.asdict(run.preservation)
    if run.name == ROUTED:  # what fine-tuned models are compared with, on the same passages
        told["fine_tuned_test"] = report(model, measure(model, some(text.test, plan.fine_tuned_test_tokens)))
    part = folder / (EVALUATION_FILE + ".part")
    part.write_text(compact_json(told) + "\n", encoding="utf-8")
    part.replace(folder / EVALUATION_FILE)

"""How fast the trained models really are, compiled by `lapidary`: on this machine, and in cycles on a simulated NPU.

All are timed on the same text: the longest passage of each domain's test split. On this machine a call of `lapidary bench`
times one model on one of them, so that its caches are its own as they are when it generates, and models take turns, so that what
else the machine does meets all of them alike; a figure is the mean time of a token over the domains. `speed.json` has it all,
and a call of the study with `--lapidary` makes it anew.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data import Passage
from ..export import compact_json
from .plan import Plan
from .runs import evaluation_of, model_folder

SPEED_FILE = "speed.json"
MACHINE = "edge-32"
NPU_RECIPE = "hybrid"
ROUNDS, REPETITIONS = 3, 40
PASSAGE_TOKENS = 128
PROMPT_TOKENS, NEW_TOKENS = 64, 8
"""Of each passage in the simulator: read in one call, then generated one by one."""


def passages(test: Sequence[Passage]) -> list[np.ndarray]:
    """The beginning of each domain's longest passage."""
    longest = [max((p for p in test if p.domain == d), key=lambda p: len(p.ids)) for d in sorted({p.domain for p in test})]
    return [p.ids[:PASSAGE_TOKENS].astype(np.int64) for p in longest]


def measure(plan: Plan, test: Sequence[Passage], out: Path, lapidary: Path, rounds: int = ROUNDS) -> dict:
    """Compiles and times what is trained, fine-tuned models left out, since they cost what their teacher costs."""
    folder = out / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [r for r in plan.runs if r.preservation is None and evaluation_of(out / "runs" / r.name) is not None]
    texts = passages(test)
    for i, ids in enumerate(texts):
        np.save(folder / f"ids.{i}.npy", ids)
    np.savez(folder / "prompts.npz", **{f"prompt.{i:03}.ids": ids[:PROMPT_TOKENS] for i, ids in enumerate(texts)})

    told = {"machine": MACHINE, "npu_recipe": NPU_RECIPE, "rounds": rounds, "models": {}}
    for run in runs:
        model = model_folder(out, run)
        call(lapidary, "compile", model, "--target", "native", "-o", folder / f"{run.name}.lapis")
        npu = folder / f"{run.name}.{MACHINE}.lapis"
        call(lapidary, "compile", model, "--target", f"npu:{MACHINE}", "--quant", NPU_RECIPE, "-o", npu)
        told["models"][run.name] = simulated(lapidary, npu, folder / "prompts.npz")
    rates: dict = {}  # (run, test) → text → tokens/s of each round
    for _ in range(rounds):
        for i in range(len(texts)):
            for run in runs:
                for row in bench(lapidary, folder / f"{run.name}.lapis", folder / f"ids.{i}.npy"):
                    rates.setdefault((run.name, row["test"]), [[] for _ in texts])[i].append(row["tokens_per_s"])
    for (name, test_name), by_text in rates.items():
        medians = [statistics.median(found) for found in by_text]
        told["models"][name][f"{test_name}_tokens_per_s"] = round(statistics.harmonic_mean(medians), 1)
        told["models"][name][f"{test_name}_tokens_per_s_of_texts"] = [round(min(medians), 1), round(max(medians), 1)]
    (out / SPEED_FILE).write_text(compact_json(told) + "\n", encoding="utf-8")
    return told


def simulated(lapidary: Path, artifact: Path, inputs: Path) -> dict:
    found = call(
        lapidary, "simulate", artifact, "--input", f"ids=@{inputs}", "--max-new", NEW_TOKENS, "--ignore-eos", "--format", "json"
    )  # fmt: skip
    phases = {phase["phase"]: phase for phase in json.loads(found)["phases"]}
    return {
        "npu_prefill_cycles": round(phases["prefill"]["cycles"] / phases["prefill"]["runs"]),
        "npu_decode_cycles": round(phases["decode"]["cycles"] / phases["decode"]["runs"]),
        "npu_decode_dram_bytes": round(phases["decode"]["dram_read"] / phases["decode"]["runs"]),
        "npu_decode_energy_uj": round(phases["decode"]["energy_uj"] / phases["decode"]["runs"], 2),
    }


def bench(lapidary: Path, artifact: Path, ids: Path) -> list[dict]:
    found = call(lapidary, "bench", artifact, "--ids", ids, "--reps", REPETITIONS, "--threads", 1, "--format", "json")
    return json.loads(found)["results"]


def call(lapidary: Path, *arguments) -> str:
    command = [str(lapidary), "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout

"""How fast the trained models really are, compiled by `lapidary`: on this machine, and in cycles on a simulated NPU.

All are timed on the same text, of the test split, one after the other and that several times over, so that what else
the machine does meets all of them alike; a figure is the median over the rounds. The simulator's need no repetition.
`speed.json` has it all, and a call of the study with `--lapidary` makes it anew.
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
from .runs import evaluation_of

SPEED_FILE = "speed.json"
MACHINE = "edge-32"
NPU_RECIPE = "hybrid"
ROUNDS, REPETITIONS = 5, 40
PROMPT_TOKENS, NEW_TOKENS = 64, 8
"""Of each domain's passage in the simulator: read in one call, then generated one by one."""


def model_folder(out: Path, run) -> Path:
    return run.given or out / "runs" / run.name / "model"


def prompts(test: Sequence[Passage], tokens: int) -> list[np.ndarray]:
    """The beginning of each domain's first passage that is long enough."""
    out = []
    for domain in sorted({p.domain for p in test}):
        found = next((p.ids[:tokens] for p in test if p.domain == domain and len(p.ids) >= tokens), None)
        if found is None:
            raise ValueError(f"domain {domain}: wanted a test passage of at least {tokens} tokens, found none")
        out.append(found.astype(np.int64))
    return out


def measure(plan: Plan, test: Sequence[Passage], out: Path, lapidary: Path, rounds: int = ROUNDS) -> dict:
    """Compiles and times what is trained, fine-tuned models left out, since they cost what their teacher costs."""
    folder = out / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [r for r in plan.runs if r.preservation is None and evaluation_of(out / "runs" / r.name) is not None]
    texts = prompts(test, PROMPT_TOKENS)
    np.save(folder / "ids.npy", np.concatenate(texts))
    np.savez(folder / "prompts.npz", **{f"prompt.{i:03}.ids": ids for i, ids in enumerate(texts)})

    native = {r.name: folder / f"{r.name}.lapis" for r in runs}
    told = {"machine": MACHINE, "npu_recipe": NPU_RECIPE, "rounds": rounds, "models": {}}
    for run in runs:
        model = model_folder(out, run)
        call(lapidary, "compile", model, "--target", "native", "-o", native[run.name])
        npu = folder / f"{run.name}.{MACHINE}.lapis"
        call(lapidary, "compile", model, "--target", f"npu:{MACHINE}", "--quant", NPU_RECIPE, "-o", npu)
        told["models"][run.name] = simulated(lapidary, npu, folder / "prompts.npz")
    timed = [bench(lapidary, list(native.values()), folder / "ids.npy") for _ in range(rounds)]
    for name, path in native.items():
        for test_name in ("decode", "prefill"):
            rates = [row["tokens_per_s"] for row in sum(timed, []) if row["artifact"] == str(path) and row["test"] == test_name]
            told["models"][name][f"{test_name}_tokens_per_s"] = round(statistics.median(rates), 1)
            told["models"][name][f"{test_name}_tokens_per_s_range"] = [round(min(rates), 1), round(max(rates), 1)]
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


def bench(lapidary: Path, artifacts: Sequence[Path], ids: Path) -> list[dict]:
    found = call(lapidary, "bench", *artifacts, "--ids", ids, "--reps", REPETITIONS, "--threads", 1, "--format", "json")
    return json.loads(found)["results"]


def call(lapidary: Path, *arguments) -> str:
    command = [str(lapidary), "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout

"""Trains and measures everything that docs/gem-study.md reports, as far as it is not done yet, and makes its tables.

    python -m gem.study --smoke --out out/study                   # all parts, tiny, a few minutes
    python -m gem.study --corpus ../shared/corpus --mini tests/models/gem-mini --out out/gem-study

A stopped study continues when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from ..export import compact_json
from . import made_up, plots, speed, tables
from .plan import DISTILLATION_WEIGHT, ROUTED, Plan, full_plan, smoke_plan
from .runs import Text, execute

TABLES_FILE, MARKDOWN_FILE, PLOTS_FOLDER = "tables.json", "tables.md", "plots"


def study(
    plan: Plan,
    corpus: Path,
    out: Path,
    only: list[str] | None = None,
    minutes: float | None = None,
    lapidary: Path | None = None,
    progress: bool = False,
) -> dict:
    """Every run of the plan, or those of `only` and what they need; then tables and plots of all that is done."""
    out.mkdir(parents=True, exist_ok=True)
    text = Text.load(plan, corpus, out)
    runs = plan.named(only) if only else plan.runs
    unfinished = set()
    for i, run in enumerate(runs):
        if run.preservation and ROUTED in unfinished:
            continue  # its teacher is not there yet
        started = time.monotonic()
        done = execute(plan, run, text, out, minutes, progress)
        if not done:
            unfinished.add(run.name)
        if progress:
            state = "done" if done else "not done, continues with the same command"
            print(f"[{i + 1}/{len(runs)}] {run.name}: {state}, {time.monotonic() - started:.0f} s", flush=True)
    if lapidary is not None:
        speed.measure(plan, text.test, out, lapidary)
    return write_tables(plan, out)


def write_tables(plan: Plan, out: Path) -> dict:
    told = tables.collect(plan, out)
    (out / TABLES_FILE).write_text(compact_json(told) + "\n", encoding="utf-8")
    (out / MARKDOWN_FILE).write_text(tables.render(told), encoding="utf-8")
    plots.write(told, out / PLOTS_FOLDER)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="gem.study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--corpus", type=Path, help="default with --smoke: a made-up one in OUT/corpus")
    parser.add_argument("--mini", type=Path, help="gem-mini's folder, for its tokenizer and to be measured; not needed with --smoke")
    parser.add_argument("--smoke", action="store_true", help="everything at gem-tiny's size, in under three minutes")
    parser.add_argument("--only", action="append", metavar="NAME", help="this run (may be given more than once)")
    parser.add_argument("--minutes-per-run", type=float, help="a run that takes longer is left for the next call")
    parser.add_argument("--seeds", type=int, default=1, help="trains what is trained from scratch so often")
    parser.add_argument("--threads", type=int, help="part of what makes a run repeatable; default: 2, 1 with --smoke")
    parser.add_argument(
        "--distillation-weight", type=float, default=DISTILLATION_WEIGHT, help="of preserved runs (default: %(default)s)"
    )
    parser.add_argument("--lapidary", type=Path, help="the command (target/release/lapidary): times what is trained, compiled")
    parser.add_argument("--list", action="store_true", help="names the runs and ends")
    args = parser.parse_args()
    if args.lapidary is not None and shutil.which(args.lapidary) is None:
        parser.error(f"--lapidary: wanted a program, found none at {args.lapidary}")
    torch.set_num_threads(args.threads or (1 if args.smoke else 2))
    if args.smoke:
        plan = smoke_plan(weight=args.distillation_weight)
    elif args.mini is None or args.corpus is None:
        parser.error("--mini and --corpus are needed without --smoke")
    else:
        plan = full_plan(args.mini, args.seeds, args.distillation_weight)
    if args.list:
        print(json.dumps([{"name": r.name, "part": r.part, "steps": r.recipe.steps} for r in plan.runs], indent=1))
        return
    corpus = args.corpus
    if corpus is None:
        corpus = args.out / "corpus"
        made_up.write_corpus(corpus, plan.runs[0].config.domain_names)
    study(plan, corpus, args.out, args.only, args.minutes_per_run, args.lapidary, progress=True)
    print(f"\n{(args.out / MARKDOWN_FILE).read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()

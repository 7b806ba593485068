"""Writes the newest checkpoint of a training run as a Hugging Face style folder.

    python -m gem.export --run /tmp/gem-mini-run --out /tmp/gem-mini --dtype fp16
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

from .config import GemConfig
from .model import Gem
from .train import CHECKPOINT_FILE
from .weights import DTYPES, TOKENIZER_FILE, save_model


def export(run: Path, out: Path, dtype: str) -> int:
    """Returns the step of the checkpoint."""
    state = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    model = Gem(GemConfig.from_dict(state["config"])).requires_grad_(False)
    model.load_state_dict(state["model"])
    save_model(model, out, dtype)
    shutil.copyfile(run / TOKENIZER_FILE, out / TOKENIZER_FILE)
    return state["step"]


def compact_json(value: dict) -> str:
    """Indented, but with lists of numbers on one line."""
    text = json.dumps(value, indent=1)
    return re.sub(r"\[[\d\s,.]*\]", lambda m: "[" + " ".join(m.group()[1:-1].split()) + "]", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--dtype", default="fp16", choices=DTYPES)
    args = parser.parse_args()
    step = export(args.run, args.out, args.dtype)
    print(f"{args.out}: step {step} as {args.dtype}")


if __name__ == "__main__":
    main()

"""Reference outputs of a model in recipe `hybrid`, as the NPU computes it: reference-hybrid.npz, for the prompts of reference.npz.

Prompt i, three digits, m greedy tokens:

    prompt.iii.logits         f32 [V]      of the prompt's last token
    prompt.iii.greedy         int64 [m]    the greedy continuation
    prompt.iii.greedy_margin  f32 [m]      best minus second best logit at each step
    prompt.iii.greedy_logits  f32 [m, n]   at each step the logits of the tokens `greedy_columns`
    greedy_columns            int64 [n]    every COLUMN_STEP-th token
    weights.names             text of the quantized tensors, joined by newlines, as u8
    weights.codes, .scales    u32          CRC-32 of each one's codes (int8, row by row) and scales (little-endian, row by row)

    python -m gem.quantized_reference --model tests/models/gem-mini

prints how far apart the same model is in ordinary arithmetic, and from f32.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .model import Cache, Gem
from .npu import NpuGem
from .quantized import QuantizedGem
from .reference import GREEDY_TOKENS, REFERENCE_FILE
from .weights import load_model

QUANTIZED_REFERENCE_FILE = "reference-hybrid.npz"
COLUMN_STEP = 64


def stored_prompts(folder: Path) -> list[Tensor]:
    """The prompts' ids [T] of reference.npz."""
    with np.load(folder / REFERENCE_FILE) as stored:
        return [torch.from_numpy(stored[name]) for name in sorted(stored.files) if name.endswith(".ids")]


@torch.no_grad()
def prompt_arrays(model: NpuGem, ids: Tensor, num_greedy: int) -> dict[str, np.ndarray]:
    """The arrays of one prompt, by the part of their name after `prompt.iii.`: prefill, then single tokens."""
    cache: Cache = model.new_cache()
    row = model(ids[None], cache).logits[0, -1]
    arrays = {"logits": row.numpy()}
    tokens, margins, rows = [], [], []
    for i in range(num_greedy):
        best = torch.sort(row, descending=True, stable=True)
        tokens.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        rows.append(row[::COLUMN_STEP].numpy())
        if i + 1 < num_greedy:
            row = model(torch.tensor([[tokens[-1]]]), cache).logits[0, -1]
    arrays["greedy"] = np.array(tokens, np.int64)
    arrays["greedy_margin"] = np.array(margins, np.float32)
    arrays["greedy_logits"] = np.stack(rows)
    return arrays


def weight_arrays(model: QuantizedGem) -> dict[str, np.ndarray]:
    codes = [zlib.crc32(c.codes.tobytes()) for c in model.coded.values()]
    scales = [zlib.crc32(c.scales.astype(c.scales.dtype.newbyteorder("<")).tobytes()) for c in model.coded.values()]
    return {
        "weights.names": np.frombuffer("\n".join(model.coded).encode(), np.uint8),
        "weights.codes": np.array(codes, np.uint32),
        "weights.scales": np.array(scales, np.uint32),
    }


def write_quantized_references(folder: Path, model: NpuGem, prompts: list[Tensor], progress: bool = False) -> None:
    arrays = weight_arrays(model.model)
    arrays["greedy_columns"] = np.arange(0, model.config.vocab_size, COLUMN_STEP)
    for i, ids in enumerate(tqdm(prompts, desc="references", disable=not progress)):
        for name, array in prompt_arrays(model, ids, GREEDY_TOKENS).items():
            arrays[f"prompt.{i:03}.{name}"] = array
    np.savez_compressed(folder / QUANTIZED_REFERENCE_FILE, **arrays)


@torch.no_grad()
def distances(models: dict[str, Gem | NpuGem], prompts: list[Tensor]) -> list[str]:
    """Lines of a table: of each pair of models, over all tokens of the prompts, how far logits are apart."""
    names = list(models)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    same: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    for ids in prompts:
        logits = {name: model(ids[None]).logits[0].double() for name, model in models.items()}
        for a, b in pairs:
            rows[a, b].append((logits[a] - logits[b]).abs())
            same[a, b].append(logits[a].argmax(-1) == logits[b].argmax(-1))
    lines = ["| | mean \\|Δlogit\\| | largest | rows with mean below 1e-5 | their mean | same best |", "|---|---|---|---|---|---|"]
    for a, b in pairs:
        off = torch.cat(rows[a, b])
        means = off.mean(-1)
        near = means < 1e-5
        of_near = f"{float(means[near].mean()):.1e}" if near.any() else "–"
        share, equal = 100 * float(near.double().mean()), 100 * float(torch.cat(same[a, b]).double().mean())
        lines.append(f"| {a}, {b} | {float(means.mean()):.2e} | {float(off.max()):.2e} | {share:.1f} % | {of_near} | {equal:.2f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--distances-only", action="store_true", help="write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tensors are small: threads would only wait for each other
    single = load_model(args.model)
    quantized, prompts = QuantizedGem(single), stored_prompts(args.model)
    npu = NpuGem(quantized)
    if not args.distances_only:
        write_quantized_references(args.model, npu, prompts, progress=True)
    double = QuantizedGem(load_model(args.model, torch.float64))
    models = {"NPU's order": npu, "ordinary f32": quantized, "ordinary f64": double, "not quantized": single}
    print("\n".join(distances(models, prompts)))


if __name__ == "__main__":
    main()

"""Reference outputs: what any implementation of a model has to reproduce, as arrays under fixed names.

Prompt i, three digits, T tokens, layer l:

    prompt.iii.ids            int64 [T]
    prompt.iii.domains        f32 [T, D]    π
    prompt.iii.scores.l       f32 [T, C]    a, to judge how near a decision was
    prompt.iii.modules.l      u8  [T, C]    1 = selected
    prompt.iii.gates.l        f32 [T, C]    0 where not selected
    prompt.iii.logits         f32 [n, V]    language models: rows `logits_rows`, the last row always among them
    prompt.iii.logits_rows    int64 [n]
    prompt.iii.greedy         int64 [m]     where generating is possible: the greedy continuation
    prompt.iii.greedy_margin  f32 [m]       best minus second best logit at each step
    prompt.iii.output         f32 [labels] or [d], of the other heads

    python -m gem.reference --model tests/models/gem-mini --corpus ../shared/corpus
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from .config import GenerationError
from .data import read_passages
from .margins import routing_margin
from .model import Gem, generate_greedy
from .weights import TOKENIZER_FILE, load_model

REFERENCE_FILE, PROMPTS_FILE = "reference.npz", "prompts.json"

GREEDY_TOKENS = 64
LOGITS_BUDGET_BYTES = 5_600_000
MARGIN = 1e-5  # prompts with a decision nearer to a tie are passed over; rounding error in scores is below 1e-6
# Eight a domain: one token, both sides of 16, 32 and 64, and past gem-mini's window of 64.
LENGTHS = (
    (1, 2, 15, 16, 17, 33, 65, 80),
    (1, 3, 16, 31, 32, 34, 64, 79),
    (1, 5, 17, 32, 33, 48, 66, 77),
    (1, 4, 14, 16, 31, 33, 63, 81),
    (2, 6, 15, 17, 32, 40, 65, 76),
    (1, 7, 16, 18, 31, 33, 64, 78),
    (2, 8, 15, 17, 33, 47, 67, 80),
    (3, 9, 16, 32, 33, 63, 64, 75),
)


def can_generate(model: Gem) -> bool:
    try:
        model.config.check_generation()
    except GenerationError:
        return False
    return True


def prompt_arrays(model: Gem, ids: Tensor, rows: list[int], num_greedy: int) -> dict[str, np.ndarray]:
    """ids [T] → the arrays of one prompt, by the part of their name after `prompt.iii.`"""
    with torch.no_grad():
        out = model(ids[None])
    arrays = {"ids": ids, "domains": out.domains[0]}
    for layer, routing in enumerate(out.routing):
        arrays[f"scores.{layer}"] = routing.scores[0]
        arrays[f"modules.{layer}"] = routing.modules[0].to(torch.uint8)
        arrays[f"gates.{layer}"] = routing.gates[0]
    if out.logits is None:
        arrays["output"] = out.output[0]
    else:
        arrays["logits_rows"] = torch.tensor(rows)
        arrays["logits"] = out.logits[0, rows]
        if num_greedy and can_generate(model):
            greedy = generate_greedy(model, ids, num_greedy)
            arrays["greedy"], arrays["greedy_margin"] = greedy.tokens, greedy.margins
    return {name: t.numpy() for name, t in arrays.items()}


def save_prompts(path: Path, prompts: list[dict[str, np.ndarray]]) -> None:
    named = {f"prompt.{i:03}.{name}": a for i, arrays in enumerate(prompts) for name, a in arrays.items()}
    np.savez_compressed(path, **named)


def logits_rows(lengths: list[int], vocab_size: int) -> list[list[int]]:
    """Rows to store per prompt: the last of each, then evenly spread ones until the budget is used up."""
    budget = LOGITS_BUDGET_BYTES // (4 * vocab_size)
    per_prompt = 1
    while sum(min(n, per_prompt + 1) for n in lengths) <= budget and per_prompt < max(lengths):
        per_prompt += 1
    return [sorted({round((i + 1) * n / min(n, per_prompt)) - 1 for i in range(min(n, per_prompt))}) for n in lengths]


def clear_of_ties(model: Gem, arrays: dict[str, np.ndarray], margin: float) -> bool:
    """Whether every module, cluster and greedy token of this prompt is decided by more than `margin`."""
    ids = torch.from_numpy(arrays["ids"])
    if "greedy" in arrays:
        if arrays["greedy_margin"].min() < margin:
            return False
        ids = torch.cat((ids, torch.from_numpy(arrays["greedy"])))
    with torch.no_grad():
        return routing_margin(model(ids[None]).routing, model.config.scar) > margin


def prompts_of_length(tokenizer: Tokenizer, passages: Iterator[str], length: int) -> Iterator[tuple[str, list[int]]]:
    """Beginnings of passages, as (text, ids), whose text encodes to just these ids."""
    for passage in passages:
        ids = tokenizer.encode(passage, add_special_tokens=False).ids[:length]
        text = tokenizer.decode(ids)
        if len(ids) == length and tokenizer.encode(text, add_special_tokens=False).ids == ids:
            yield text, ids


def write_references(folder: Path, corpus: Path, progress: bool = False) -> None:
    """reference.npz and prompts.json of a trained language model, from its stored (rounded) weights in fp32."""
    model = load_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    domains = model.config.domain_names
    wanted = [(domain, n) for d, domain in enumerate(domains) for n in LENGTHS[d % len(LENGTHS)]]
    rows = logits_rows([n for _, n in wanted], model.config.vocab_size)
    passages = {domain: iter(read_passages(corpus, domain, "test")) for domain in domains}
    stored, listed = [], []
    for (domain, length), kept in zip(tqdm(wanted, desc="references", disable=not progress), rows):
        for text, ids in prompts_of_length(tokenizer, passages[domain], length):
            arrays = prompt_arrays(model, torch.tensor(ids), kept, GREEDY_TOKENS)
            if clear_of_ties(model, arrays, MARGIN):
                break
        else:
            raise ValueError(f"{domain}: wanted a test passage for a prompt of {length} tokens, found none left")
        greedy_text = tokenizer.decode(arrays["greedy"].tolist(), skip_special_tokens=False)
        name = f"prompt.{len(listed):03}"
        listed.append({"name": name, "domain": domain, "num_tokens": length, "text": text, "greedy_text": greedy_text})
        stored.append(arrays)
    save_prompts(folder / REFERENCE_FILE, stored)
    text = json.dumps(listed, indent=1, ensure_ascii=False)
    (folder / PROMPTS_FILE).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def precision(folder: Path) -> dict[str, float | int]:
    """The stored prompts computed again in float64: how far single precision is off, and what it decides otherwise."""
    single, double = load_model(folder), load_model(folder, torch.float64)
    logits, gates, decisions, differing = 0.0, 0.0, 0, 0
    with np.load(folder / REFERENCE_FILE) as stored:
        prompts = [torch.from_numpy(stored[key]) for key in stored.files if key.endswith(".ids")]
    for ids in prompts:
        a, b = single(ids[None]), double(ids[None])
        logits = max(logits, float((a.logits.double() - b.logits).abs().max()))
        for r, s in zip(a.routing, b.routing):
            gates = max(gates, float((r.scores.double() - s.scores).abs().max()))
            decisions += r.modules.numel()
            differing += int((r.modules != s.modules).sum())
    return {
        "max_abs_logit_difference": logits,
        "max_abs_score_difference": gates,
        "module_decisions": decisions,
        "module_decisions_that_differ": differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes reference.npz and prompts.json into a model's folder.")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--corpus", required=True, type=Path)
    args = parser.parse_args()
    write_references(args.model, args.corpus, progress=True)
    print(json.dumps(precision(args.model), indent=2))


if __name__ == "__main__":
    main()

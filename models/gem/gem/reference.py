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
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from .config import GenerationError
from .data import read_passages
from .model import Gem, GemOutput, generate_greedy
from .weights import TOKENIZER_FILE, load_model

REFERENCE_FILE, PROMPTS_FILE = "reference.npz", "prompts.json"

GREEDY_TOKENS = 64
LOGITS_BUDGET_BYTES = 5_600_000
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


def prompt_arrays(model: Gem, ids: Tensor, rows: list[int], num_greedy: int) -> tuple[dict[str, np.ndarray], GemOutput]:
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
    return {name: t.numpy() for name, t in arrays.items()}, out


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


def choose_prompts(tokenizer: Tokenizer, corpus: Path, domains: tuple[str, ...]) -> list[dict]:
    """Eight beginnings of test passages per domain whose text encodes to exactly the wanted number of tokens."""
    prompts = []
    for d, domain in enumerate(domains):
        passages = iter(read_passages(corpus, domain, "test"))
        for length in LENGTHS[d % len(LENGTHS)]:
            for text in passages:
                ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
                cut = tokenizer.decode(ids)
                if len(ids) == length and tokenizer.encode(cut, add_special_tokens=False).ids == ids:
                    prompts.append({"domain": domain, "text": cut, "ids": ids})
                    break
            else:
                raise ValueError(f"{domain}: wanted a test passage that has a prompt of {length} tokens, found none")
    return prompts


def write_references(folder: Path, corpus: Path, progress: bool = False) -> None:
    """reference.npz and prompts.json of a trained language model, from its stored (rounded) weights in fp32."""
    model = load_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    prompts = choose_prompts(tokenizer, corpus, model.config.domain_names)
    rows = logits_rows([len(p["ids"]) for p in prompts], model.config.vocab_size)
    arrays = [
        prompt_arrays(model, torch.tensor(p["ids"]), r, GREEDY_TOKENS)[0]
        for p, r in zip(tqdm(prompts, desc="references", disable=not progress), rows)
    ]
    save_prompts(folder / REFERENCE_FILE, arrays)
    listed = [
        {
            "name": f"prompt.{i:03}",
            "domain": p["domain"],
            "num_tokens": len(p["ids"]),
            "text": p["text"],
            "greedy_text": tokenizer.decode(a["greedy"].tolist(), skip_special_tokens=False),
        }
        for i, (p, a) in enumerate(zip(prompts, arrays))
    ]
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

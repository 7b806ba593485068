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

from .config import GemConfig
from .data import encode_split, read_passages
from .evaluate import measure, report
from .tokenizer import train_tokenizer
from .train import LOG_FILE, Recipe, Trainer
from .weights import TOKENIZER_FILE, count_parameters, load_model, save_model

DOMAINS = ("adaptive", "commonsense", "conversation", "finance", "healthcare", "law", "multilingual", "stem")

CONFIG = GemConfig.from_dict(
    {
        "model_type": "gem",
        "architectures": ["GemForCausalLM"],
        "is_causal": True,
        "vocab_size": 4096,
        "hidden_size": 192,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "module_intermediate_size": 96,
        "num_domains": len(DOMAINS),
        "domain_names": list(DOMAINS),
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "num_labels": 0,
        "scar": {
            "num_clusters": 16,
            "dim": 32,
            "lambda": 0.5,
            "policy": "top_p",
            "k_min": 1,
            "k_max": 6,
            "p": 0.7,
            "tau": 0.1,
            "capacity_factor": 1.25,
            "norm_gates": False,
            "memory": True,
        },
        "attention": {"kind": "clustered", "window": 64, "sinks": 4, "cluster_cap": 64},
        "token_router": {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 128,
            "causal": True,
            "window": 64,
        },
    }
)

RECIPE = Recipe(steps=3600, batch_size=12, length=384, learning_rate=3e-3, warmup_steps=100)
VALID_PASSAGES_PER_DOMAIN = 16  # measured while training; the whole split is measured at the end


def trained_tokenizer(corpus: Path, run: Path) -> Tokenizer:
    path = run / TOKENIZER_FILE
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        texts = (text for domain in DOMAINS for text in read_passages(corpus, domain, "train"))
        train_tokenizer(texts, CONFIG.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def train(corpus: Path, run: Path) -> None:
    tokenizer = trained_tokenizer(corpus, run)
    passages = encode_split(corpus, DOMAINS, "train", tokenizer)
    valid = encode_split(corpus, DOMAINS, "valid", tokenizer)
    few = [p for d in range(len(DOMAINS)) for p in [q for q in valid if q.domain == d][:VALID_PASSAGES_PER_DOMAIN]]
    model = Trainer(CONFIG, RECIPE, passages, few, run).run(progress=True)
    save_model(model, run / "final", "fp16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--run", required=True, type=Path, help="checkpoints and log; a stopped run continues here")
    parser.add_argument("--threads", type=int, default=2, help="part of what makes a run repeatable")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.corpus, args.run)


if __name__ == "__main__":
    main()

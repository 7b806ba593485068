"""A small corpus of made-up words: each domain has its own, beside some that all share. For trying the machinery only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

PASSAGES = {"train": 150, "valid": 12, "test": 24}
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(count)]


def write_corpus(folder: Path, domains: Sequence[str], seed: int = 0) -> None:
    """The same files for the same arguments."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shared = _words(rng, 60)
    for domain in domains:
        words = shared + _words(rng, 60)
        # Of each word a few may follow, so that there is an order to learn.
        following = rng.integers(0, len(words), (len(words), 6))
        for split, count in PASSAGES.items():
            passages = []
            for _ in range(count):
                at, text = int(rng.integers(len(words))), []
                for _ in range(int(rng.integers(15, 60))):
                    text.append(words[at])
                    at = int(rng.choice(following[at]))
                passages.append(" ".join(text).capitalize() + ".")
            (folder / f"{domain}.{split}.txt").write_text("\n\n".join(passages) + "\n", encoding="utf-8")

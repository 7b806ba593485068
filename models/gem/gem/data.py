"""The domain corpus: `<domain>.<split>.txt`, passages divided by one blank line; and the batches cut from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .tokenizer import SEPARATOR_ID

NO_DOMAIN = -100
"""The label of separators: they belong to no domain (and cross entropy skips this value)."""


def read_passages(corpus: str | Path, domain: str, split: str) -> list[str]:
    path = Path(corpus) / f"{domain}.{split}.txt"
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n\n")


def domains_of(corpus: str | Path) -> tuple[str, ...]:
    """The domains a folder has text of, in the order of their names. Each needs all three splits."""
    corpus = Path(corpus)
    domains = tuple(sorted(path.name.removesuffix(".train.txt") for path in corpus.glob("*.train.txt")))
    if not domains:
        raise ValueError(f"{corpus}: wanted files named <domain>.train.txt, found none")
    for domain in domains:
        for split in ("valid", "test"):
            if not (corpus / f"{domain}.{split}.txt").exists():
                raise ValueError(f"{corpus}: wanted {domain}.{split}.txt beside {domain}.train.txt, found none")
    return domains


@dataclass
class Passage:
    domain: int
    ids: np.ndarray  # int64 [n], without the separator
    num_bytes: int


def encode_split(corpus: str | Path, domains: tuple[str, ...], split: str, tokenizer: Tokenizer) -> list[Passage]:
    out = []
    for d, domain in enumerate(domains):
        texts = read_passages(corpus, domain, split)
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False)):
            out.append(Passage(d, np.array(encoding.ids, np.int64), len(text.encode())))
    return out


def cut(passages: list[Passage], longest: int, tokenizer: Tokenizer) -> list[Passage]:
    """Passages of more than `longest` tokens in pieces of at most so many, each of which then stands alone.

    Byte-level pieces have one character a byte, which says how many bytes of the text each token is.
    """
    out = []
    for p in passages:
        if len(p.ids) <= longest:
            out.append(p)
            continue
        for start in range(0, len(p.ids), longest):
            ids = p.ids[start : start + longest]
            out.append(Passage(p.domain, ids, sum(len(tokenizer.id_to_token(int(i))) for i in ids)))
    return out


def some(passages: list[Passage], max_tokens: int | None) -> list[Passage]:
    """The first passages of each domain, one of each in turn, until `max_tokens` tokens would be passed (None: all)."""
    if max_tokens is None:
        return passages
    queues = [[p for p in passages if p.domain == d] for d in sorted({p.domain for p in passages})]
    out, tokens = [], 0
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue):
                tokens += len(queue[turn].ids)
                if out and tokens > max_tokens:
                    return out
                out.append(queue[turn])
    return out


@dataclass
class Batch:
    ids: Tensor  # int64 [B, T]
    targets: Tensor  # int64 [B, T], the token after each
    domains: Tensor  # int64 [B, T], of the passage each token of `ids` is from


class Batches:
    """Batch `step` of an endless run, a function of (passages, shape, seed, step) alone, so a run can resume anywhere.

    Each epoch shuffles the passages of all domains into one stream, a separator before each, and cuts it into
    pieces of T tokens. Most pieces start inside a passage, as a prompt does.
    """

    def __init__(self, passages: list[Passage], batch_size: int, length: int, seed: int):
        self.passages, self.batch_size, self.length, self.seed = passages, batch_size, length, seed
        num_tokens = sum(len(p.ids) + 1 for p in passages)
        self.steps_per_epoch = (num_tokens - 1) // (length * batch_size)
        if self.steps_per_epoch == 0:
            raise ValueError(f"corpus: wanted at least {length * batch_size + 1} tokens, found {num_tokens}")
        self._epoch = -1

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        start, n = index * self.batch_size * self.length, self.batch_size * self.length
        shape = (self.batch_size, self.length)
        return Batch(
            self._ids[start : start + n].view(shape),
            self._ids[start + 1 : start + n + 1].view(shape),
            self._domains[start : start + n].view(shape),
        )

    def _shuffle(self, epoch: int) -> None:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.passages))
        ids, domains = [], []
        for i in order:
            passage = self.passages[i]
            ids += [[SEPARATOR_ID], passage.ids]
            domains += [[NO_DOMAIN], np.full(len(passage.ids), passage.domain)]
        self._ids = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        self._domains = torch.from_numpy(np.concatenate(domains).astype(np.int64))
        self._epoch = epoch

"""Byte-level BPE: every string has an encoding, nothing is added to a prompt, id 0 separates passages."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"
SEPARATOR_ID = 0


def train_tokenizer(passages: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    if tokenizer.get_vocab_size() != vocab_size or tokenizer.token_to_id(SEPARATOR) != SEPARATOR_ID:
        raise ValueError(f"tokenizer: wanted {vocab_size} pieces, found {tokenizer.get_vocab_size()}: too little text")
    return tokenizer

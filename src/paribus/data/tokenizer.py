"""Byte-level BPE: any text in, the same out; special tokens for turns and tools that text can never forge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from paribus import config
from paribus.errors import UserError

SPECIAL = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>",
           "<|tool|>", "<|tool_end|>", "<|result|>", "<|result_end|>")

# GPT-2's on FineWeb-Edu, as published with nanochat's first run (its report: 4,208,518 bytes in 900,364 tokens). On
# other text than English of the web it is a landmark, no comparison.
GPT2_BYTES_PER_TOKEN = 4.674


def pre_split(max_digits: int) -> str:
    """The expression that cuts text into the pieces within which merges happen, in the manner of GPT-4's.

    In order: English contractions; a word with the one mark or space before it; at most `max_digits` digits;
    punctuation with the line ends after it; line ends; other white space, its last blank left to a next word.
    """
    return (r"'(?i:[sdmt]|ll|ve|re)"
            r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
            rf"|\p{{N}}{{1,{max_digits}}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+")


class Tokenizer:
    """`tokenizers.Tokenizer` with the few things the rest needs.

    vocab_size: special tokens included. bos: id that opens every document and conversation.
    special: name -> id. token_bytes: (vocab,) int32, bytes of text each token stands for, 0 for special ones.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        # Text that spells a special token is text: it is split and merged like any other.
        inner.encode_special_tokens = True
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size()
        vocabulary = inner.get_vocab()
        self.special = {name: vocabulary[name] for name in SPECIAL}
        self.bos = self.special["<|bos|>"]
        self.token_bytes = np.zeros(self.vocab_size, np.int32)
        for token, index in vocabulary.items():
            # The byte-level alphabet writes each byte as one character.
            self.token_bytes[index] = 0 if token in self.special else len(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text; never a special one."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, on as many threads as RAYON_NUM_THREADS allows."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens, special ones by name; bytes that are not UTF-8 show as U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json. Raises UserError if it is absent, unreadable or lacks the special tokens."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such tokenizer file")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path}: not a tokenizer: {error}") from None
        missing = [name for name in SPECIAL if inner.token_to_id(name) is None]
        if missing:
            raise UserError(f"{path}: lacks the special tokens {', '.join(missing)}")
        return cls(inner)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json that the `tokenizers` library reads."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._inner.save(str(path))


def train_tokenizer(texts: Iterable[str], cfg: config.Tokenizer) -> Tokenizer:
    """Learn merges from the first `cfg.train_megabytes` of `texts`; the same texts give the same tokenizer.

    Raises UserError when the text has too little variety for `cfg.vocab_size`.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(pre_split(cfg.max_digits)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=cfg.vocab_size, special_tokens=list(SPECIAL),
                                  show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(first_bytes(texts, round(cfg.train_megabytes * 1e6)), trainer)
    tokenizer = Tokenizer(inner)
    if tokenizer.vocab_size != cfg.vocab_size:
        raise UserError(f"tokenizer.vocab_size: the text yields only {tokenizer.vocab_size} tokens, not "
                        f"{cfg.vocab_size}; lower it, or give more text (corpus.*, tokenizer.train_megabytes)")
    return tokenizer


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Whole texts until `limit` bytes are reached; at least one."""
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return


def compression(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Bytes of UTF-8 per token over all `texts`: higher is fewer tokens for the same text."""
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    return sum(len(text.encode()) for text in texts) / max(tokens, 1)

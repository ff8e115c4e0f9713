"""The tokenizer of a corpus, and how many bytes of its text a token holds."""

from __future__ import annotations

import itertools
from pathlib import Path

from paribus import config
from paribus.data.shards import documents, sample_documents
from paribus.data.tokenizer import Tokenizer, compression, first_bytes, train_tokenizer

MOST_BYTES = 20_000_000  # of text that bytes per token is measured on
EVERY = 50  # one document of so many is measured


def trained_on(corpus: Path, cfg: config.Tokenizer) -> Tokenizer:
    """The tokenizer of a corpus.

    Args:
        corpus: its folder.
        cfg: the section `tokenizer`.
    """
    return train_tokenizer(sample_documents(corpus / "documents", cfg.train_megabytes), cfg)


def bytes_per_token(tokenizer: Tokenizer, corpus: Path) -> float:
    """Bytes of text that a token holds in the mean, over an even sample of a corpus's documents.

    Args:
        tokenizer: trained.
        corpus: its folder.
    """
    sample = itertools.islice(documents(corpus / "documents"), 0, None, EVERY)
    return compression(tokenizer, list(first_bytes(sample, MOST_BYTES)))

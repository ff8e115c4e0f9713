"""The keys of params.yaml about text: the corpus and its embedded world, the tokenizer, the token shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paribus.config import conditions as when
from paribus.config import limits
from paribus.config.keys import key
from paribus.config.limits import Limit


@dataclass(frozen=True)
class World:
    """The embedded synthetic world."""

    seed: int = key("names the world: its cast, facts, texts and problems", ge=0, le=limits.SEED)
    megabytes: float = key(
        "size of the pretraining documents, MB",
        gt=0,
        le=limits.WORLD_MEGABYTES,
        acts_when=when.WORLD_TEXT,
    )
    problems: int = key(
        "word problems to train on", ge=1, le=limits.WORLD, acts_when=when.WORLD_PROBLEMS
    )
    test_problems: int = key(
        "held-out word problems for the report",
        ge=1,
        le=limits.WORLD_HELD_OUT,
        acts_when=when.WORLD_PROBLEMS,
    )
    conversations: int = key("conversations of each kind", ge=1, le=limits.WORLD)
    core_items: int = key(
        "items of each CORE-format task", ge=8, le=limits.WORLD_ITEMS, acts_when=when.WORLD_CORE
    )


@dataclass(frozen=True)
class Corpus:
    """Where text, problems and tasks come from. Relative paths start at the main checkout."""

    source: Literal["world", "text", "local", "hub"] = key(
        "documents: the embedded world, the English that comes with the package (9 MB, public domain), "
        "files of your own, or Hugging Face"
    )
    paths: list[str] = key(
        "local: files, folders or globs of .txt, .jsonl, .parquet (also .gz, .zst); "
        "hub: OWNER/NAME@COMMIT:PATTERN of such files in a dataset repository",
        acts_when=when.OWN_FILES,
    )
    text_column: str = key(
        "column that holds the text in .jsonl and .parquet", acts_when=when.OWN_TEXT
    )
    megabytes: float | None = key(
        "text to take, MB (4.8: about a million tokens of English), of each corpus; null: all",
        gt=0,
        le=Limit(10**8, "100 TB, several times all published text"),
        acts_when=when.TEXT,
    )
    texts: dict[str, str] = key(
        "more documents, for pretrain.mixture: name -> `text` (the package's English), a path, or OWNER/NAME@COMMIT:PATTERN"
    )
    drop_contaminated: bool = key(
        "leave out documents that share 13 words in a row with a test problem or a CORE item",
        acts_when=when.TEXT,
    )
    drop_near_duplicates: bool = key(
        "leave out documents that share most of their runs of 5 words with an earlier one (MinHash, "
        "arXiv:2406.17557)",
        acts_when=when.TEXT,
    )
    conversations: dict[str, str] = key(
        "more sources for the mixtures: name -> a path, or OWNER/NAME@COMMIT:PATTERN; "
        "rows of messages (SmolTalk), choices (MMLU, ARC) or GSM8K problems"
    )
    problems: str = key(
        "word problems: `world`, a folder with train.jsonl and test.jsonl in GSM8K's format, "
        "or OWNER/NAME@COMMIT:PATTERN of files named train* and test*"
    )
    validation_problems: int = key(
        "problems held out of train, for tuning and for watching RL", ge=8, le=limits.WORLD_HELD_OUT
    )
    core: str = key(
        "CORE tasks: `world`, a folder in the layout of the public DCLM bundle, or https://…/x.zip#sha256=HEX of one"
    )
    world: World = key("the embedded world")


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes tokens: pieces by a pattern, then subwords of bytes that are learned from the documents."""

    vocab_size: int = key(
        "tokens, special ones included",
        ge=300,
        le=Limit(1_000_000, "four times the largest published vocabularies"),
    )
    max_digits: int = key(
        "longest run of digits that may become one token",
        ge=1,
        le=Limit(9, "a billion numbers; no vocabulary holds more"),
    )
    train_megabytes: float = key(
        "text the merges are learned from, MB",
        gt=0,
        le=Limit(100_000.0, "all of it is held in memory: 100 GB"),
    )
    kind: Literal["bpe", "unigram"] = key(
        "byte-level subwords: merges of frequent pairs (arXiv:1508.07909), or a unigram language model (arXiv:1804.10959)"
    )
    pre_split: Literal["gpt2", "gpt4", "gpt4o"] = key(
        "pieces that no token crosses, in the manner of the pattern of this name: gpt2 keeps white space apart, gpt4 gives "
        "a word one mark before it, gpt4o also parts words where capitals begin"
    )


@dataclass(frozen=True)
class Tokens:
    """Token shards of the pretraining documents."""

    val_fraction: float = key(
        "share of documents held out for bits per byte, chosen by their hash",
        gt=0,
        le=Limit(0.5, "the rest, at least half, is trained on"),
    )
    shard_tokens: int = key(
        "tokens of one shard file", ge=1_000, le=Limit(2**31, "8 GB a file, written from memory")
    )

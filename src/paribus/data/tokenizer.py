"""Byte-level subwords: any text in, the same out; special tokens for turns and tools that text can never forge."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from paribus import config
from paribus.data.sealed import check_sealed_files, read_sealed, sealed_by_files
from paribus.errors import UserError
from paribus.files import write_atomic

SPECIAL = (
    "<|bos|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|tool|>",
    "<|tool_end|>",
    "<|result|>",
    "<|result_end|>",
)

# GPT-2's on FineWeb-Edu: 4,208,518 bytes in 900,364 tokens, as nanochat's evaluation of tokenizers prints it (model card
# of nanochat-students/nanochat-tokenizer-2B, pull request 328 of karpathy/nanochat). On other text than English of the
# web it is a landmark, no comparison.
GPT2_BYTES_PER_TOKEN = 4.674

# What follows bounds memory. The library needs 80 bytes for each byte of a text it is splitting, and 1.15 kB for each
# different word of those that merges are learned from (measured).
REMAKE = "remove it and run `dvc checkout data/tokenizer`, or learn the tokenizer again (`dvc repro --force tokenizer`)"
PIECE = 100_000  # characters of a text handed over at once
LONGEST_PIECE = 1_000_000  # characters: text without a place to cut (one word of that length) is cut here all the same
ENCODED_AT_ONCE = (
    1_000_000  # characters whose tokens the library holds at once: 0.1 kB for each token (measured)
)
COUNTED_AT_ONCE = 25_000_000  # characters
SCORE_DIGITS = 6  # kept of a unigram token's logarithm of probability
MOST_WORDS = 4_000_000  # different words counted
FED_MEGABYTES = (
    250  # text that merges are learned from as it is; of more the words are counted first
)
FED_WORDS = 50_000_000  # as many as that of English: of more counted ones, their counts are divided
# Where `pre_split` ends a piece whatever comes before and behind: at a blank, in every script that parts words by
# blanks; else at the end of a word or number, before a line end or a mark of scripts without blanks.
_BEFORE_BLANK = re.compile(r"(?<=\S)(?= )")
_AFTER_WORD = re.compile(r"(?<=[^\W_])(?=[\r\n。，、！？；：…।۔؟،])")


CONTRACTION = r"'(?i:[sdmt]|ll|ve|re)"
MARK = r"[^\r\n\p{L}\p{M}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# What comes first in a pattern: English contractions, and a word with the one mark or blank before it. GPT-4o's words end
# before a capital that follows a small letter, and have the contraction in them.
WORDS = {
    "gpt2": rf"{CONTRACTION}| ?[\p{{L}}\p{{M}}]+",
    "gpt4": rf"{CONTRACTION}|{MARK}[\p{{L}}\p{{M}}]+",
    "gpt4o": rf"{MARK}{UPPER}*{LOWER}+(?:{CONTRACTION})?|{MARK}{UPPER}+{LOWER}*(?:{CONTRACTION})?",
}
# What follows the digits: punctuation, which GPT-4 keeps together with the line ends after it; line ends; other white space,
# its last blank left to a next word.
REST = {
    "gpt2": r"| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o": r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def pre_split(max_digits: int, kind: str = "gpt4") -> str:
    """The expression that cuts text into the pieces that no token crosses: words, digits, and the rest.

    Args:
        max_digits: longest run of digits.
        kind: `tokenizer.pre_split`, after the published patterns of these names (https://github.com/openai/tiktoken,
          tiktoken_ext/openai_public.py), with marks as letters.
    """
    blank = " ?" if kind == "gpt2" else ""
    return rf"{WORDS[kind]}|{blank}\p{{N}}{{1,{max_digits}}}{REST[kind]}"


class Tokenizer:
    """`tokenizers.Tokenizer` with the few things the rest needs.

    vocab_size: special tokens included. bos: id that opens every document and conversation.
    special: name -> id. token_bytes: (vocab,) int32, bytes of each token's text, 0 for special ones.
    sha256: of its tokenizer.json, by which token shards name it.
    """

    def __init__(self, inner: tokenizers.Tokenizer, sha256: str | None = None) -> None:
        """sha256: of the file that it was read from; None: it was not, and is as `save` will write it."""
        self.sha256 = sha256 or hashlib.sha256(inner.to_str(pretty=True).encode()).hexdigest()
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
        return [
            encoding.ids
            for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def encode_documents(self, texts: list[str], dtype: np.dtype[Any]) -> list[np.ndarray]:
        """<|bos|> and the token ids of each text, (n,) of `dtype`; long texts are split among the threads.

        ENCODED_AT_ONCE bounds what the library holds, however long a text is.
        """
        # An array takes a list in a third of the time that numpy does, or an array of "H".
        documents = [array("I", [self.bos]) for _ in texts]
        for owners, parts in _groups(texts):
            encodings = self._inner.encode_batch_fast(parts, add_special_tokens=False)
            for owner, encoding in zip(owners, encodings, strict=True):
                documents[owner].fromlist(encoding.ids)
            del encodings, encoding  # else they are held while the next ones are made
        return [np.array(ids, dtype) for ids in documents]

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
        if problem := _damage(inner):
            raise UserError(f"{path}: damaged: {problem}")
        return cls(inner, hashlib.sha256(Path(path).read_bytes()).hexdigest())

    @classmethod
    def load_trained(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a folder that the stage `tokenizer` wrote. Raises UserError also if it was altered since."""
        check_trained(folder)
        return cls.load(folder / "tokenizer.json")

    def save_trained(self, folder: Path) -> None:
        """Write tokenizer.json, and manifest.json that vouches for it."""
        self.save(folder / "tokenizer.json")
        manifest = sealed_by_files({"vocab_size": self.vocab_size}, [folder / "tokenizer.json"])
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json that the `tokenizers` library reads."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._inner.save(str(path))


def check_trained(folder: Path) -> None:
    """Raises UserError where the tokenizer in a folder is not as the stage `tokenizer` wrote it.

    A flipped digit in the pattern that splits text leaves a tokenizer that works, and gives other tokens.
    """
    manifest = read_sealed(folder / "manifest.json", REMAKE, required=True)
    check_sealed_files(folder, manifest, REMAKE)


def _damage(inner: tokenizers.Tokenizer) -> str | None:
    """What a tokenizer that `train_tokenizer` made cannot be like; None if there is nothing.

    A flip in a number, a letter or a name is JSON still, and the library takes it. A trained tokenizer gives the
    tokens of its merges their ids in the order of the merges, which few damaged ones do.
    """
    ids = inner.get_vocab()
    if sorted(ids.values()) != list(range(len(ids))):
        return f"the ids of its {len(ids):,} tokens are not 0 to {len(ids) - 1:,}, each once"
    if not ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        return "it lacks some of the 256 bytes"
    about = json.loads(inner.to_str())
    if about["model"]["type"] == "BPE" and not _merges_make(ids, about["model"]["merges"]):
        return "its merges do not make its tokens in their order"
    expected = [("pre_tokenizer", "Sequence"), ("decoder", "ByteLevel"), ("normalizer", None)]
    for part, kind in expected:
        if (about[part] or {}).get("type") != kind:
            return f"its {part} is {about[part]!r:.80}; expected {kind}"
    return None


def _merges_make(ids: dict[str, int], merges: list[list[str]]) -> bool:
    """Whether the tokens of merges have the last ids, in the order of the merges."""
    merged = dict.fromkeys("".join(pair) for pair in merges)
    order = [ids.get(token, -1) for token in merged]
    return order == list(range(len(ids) - len(order), len(ids)))


def _groups(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    """(which text, piece of it) of all texts in order, ENCODED_AT_ONCE characters together."""
    owners: list[int] = []
    parts: list[str] = []
    length = 0
    for owner, text in enumerate(texts):
        for part in pieces(text):
            owners.append(owner)
            parts.append(part)
            length += len(part)
            if length >= ENCODED_AT_ONCE:
                yield owners, parts
                owners, parts, length = [], [], 0
    if parts:
        yield owners, parts


def pieces(text: str) -> Iterator[str]:
    """A long text in pieces of about PIECE characters, cut where it is split anyway; in the last resort at LONGEST_PIECE."""
    start = 0
    while len(text) - start > PIECE and (cut := _cut(text, start)) < len(text):
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


def _cut(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends."""
    first, last = start + PIECE, start + LONGEST_PIECE
    for pattern, reach in (
        (_BEFORE_BLANK, first + PIECE),
        (_AFTER_WORD, last),
        (_BEFORE_BLANK, last),
    ):
        # A look behind sees what is before `first`, a look ahead what is before `reach`.
        if match := pattern.search(text, first, min(reach, len(text))):
            return match.start()
    return last


def train_tokenizer(texts: Iterable[str], cfg: config.Tokenizer) -> Tokenizer:
    """Learn the tokens from the first `cfg.train_megabytes` of `texts`; the same texts give the same tokenizer.

    The words of more than FED_MEGABYTES are counted first; merges are then learned from FED_WORDS of them, in proportion.
    Raises UserError when the text has too little variety for `cfg.vocab_size`.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(pre_split(cfg.max_digits, cfg.pre_split)), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner = tokenizers.Tokenizer(models.BPE() if cfg.kind == "bpe" else models.Unigram())
    inner.pre_tokenizer, inner.decoder = split, decoders.ByteLevel()
    make_trainer = trainers.BpeTrainer if cfg.kind == "bpe" else trainers.UnigramTrainer
    trainer = make_trainer(
        vocab_size=cfg.vocab_size,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    feed: Iterator[str] = (
        piece
        for text in first_bytes(texts, round(cfg.train_megabytes * 1e6))
        for piece in pieces(text)
    )
    if cfg.train_megabytes > FED_MEGABYTES:
        feed = in_proportion(count_words(feed, split), FED_WORDS)
        inner.pre_tokenizer = (
            pre_tokenizers.WhitespaceSplit()
        )  # counted words are split, and in the byte-level alphabet
    inner.train_from_iterator(feed, trainer)
    if cfg.kind == "unigram":
        inner.model = _in_fixed_order(inner)
    inner.pre_tokenizer = split
    tokenizer = Tokenizer(inner)
    if tokenizer.vocab_size != cfg.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: the text yields only {tokenizer.vocab_size} tokens, not "
            f"{cfg.vocab_size}; lower it, or give more text (corpus.*, tokenizer.train_megabytes)"
        )
    return tokenizer


def _in_fixed_order(inner: tokenizers.Tokenizer) -> models.Unigram:
    """A trained unigram model with its tokens in a fixed order: special ones, then by probability.

    The library sums in an order of chance, so that logarithms of probabilities differ from one training to the next in their
    eleventh digit (measured), and tokens that are as likely change places. Bytes that the text lacks get the lowest values, one
    after another in an order of chance.
    """
    vocabulary = json.loads(inner.to_str())["model"]["vocab"]
    scores = {
        token: round(score, SCORE_DIGITS) for token, score in vocabulary if token not in SPECIAL
    }
    least = min((score for token, score in scores.items() if len(token) > 1), default=0.0)
    rare = sorted(token for token, score in scores.items() if len(token) == 1 and score <= least)
    lowest = sorted((scores[token] for token in rare), reverse=True)
    scores |= zip(rare, lowest, strict=True)
    plain = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return models.Unigram([*((name, 0.0) for name in SPECIAL), *plain])


def count_words(texts: Iterable[str], split: pre_tokenizers.PreTokenizer) -> Counter[str]:
    """How often each word occurs, written in the byte-level alphabet.

    Where there are more than MOST_WORDS, the rarest so far are forgotten: should one come again, its count restarts.

    Args:
        texts: of the documents.
        split: cuts a text into words.
    """
    counts: Counter[str] = Counter()
    for chunk in chunks(texts, COUNTED_AT_ONCE):
        counter = tokenizers.Tokenizer(models.WordLevel())
        counter.pre_tokenizer = split
        trainer = trainers.WordLevelTrainer(vocab_size=0, show_progress=False)
        counter.train_from_iterator(chunk, trainer)
        # The library counts on all cores, and gives its counts only in the trainer's state, which is JSON.
        counts.update(json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"])
        least = 1
        while len(counts) > MOST_WORDS:
            least += 1
            counts = Counter({word: count for word, count in counts.items() if count >= least})
    return counts


def in_proportion(counts: Counter[str], most: int) -> Iterator[str]:
    """Lines of words: each as often as counted where that is at most `most` words in all, else in proportion.

    A fraction of a time is one or none by the word's hash: of words that rare a fair sample is kept, and so what they
    have in common is counted right.

    Args:
        counts: word -> how often it occurs.
        most: words that the lines hold in all.
    """
    share = min(most / max(counts.total(), 1), 1.0)
    lines = (
        part
        for word, count in sorted(counts.items())
        for part in _times(word, int(count * share + _fraction(word)))
    )
    return ("".join(line) for line in chunks(lines, PIECE))


def _times(word: str, times: int) -> Iterator[str]:
    at_once = PIECE // (len(word) + 1) + 1
    for done in range(0, times, at_once):
        yield f"{word} " * min(at_once, times - done)


def _fraction(word: str) -> float:
    """In [0, 1), evenly spread."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big") / 2**48


def chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of successive texts of at least `size` characters together, but the last."""
    chunk: list[str] = []
    length = 0
    for text in texts:
        chunk.append(text)
        length += len(text)
        if length >= size:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Whole texts until `limit` bytes are reached; at least one."""
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= limit:
            return


def compression(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Bytes of UTF-8 per token over all `texts`: higher is fewer tokens for the same text.

    Args:
        tokenizer: that encodes.
        texts: to encode; at least one with text.
    """
    documents = tokenizer.encode_documents(texts, np.dtype("<u4"))
    tokens = sum(len(ids) - 1 for ids in documents)  # without <|bos|>
    return sum(len(text.encode()) for text in texts) / max(tokens, 1)

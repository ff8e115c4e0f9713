"""Token shards: documents as one long run of token ids in memory-mapped files, checked by a manifest.

Layout of a folder: {train,val}-00000.bin ... (little-endian uint16, or uint32 for vocabularies over 65,536),
each of `shard_tokens` ids but the last, and manifest.json. Every document opens with <|bos|>.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paribus import config
from paribus.data import Progress, load_jsonl, sha256_file, whole_folder
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError

CHUNK_BYTES = 4_000_000  # text encoded at once: enough to keep many cores busy, little enough to bound memory
SPLITS = ("train", "val")


def documents(folder: Path) -> Iterator[str]:
    """The text of every document of a folder of .jsonl, in order of file name and line."""
    for path in sorted(folder.glob("*.jsonl")):
        for row in load_jsonl(path):
            yield row["text"]


def sample_documents(folder: Path, megabytes: float) -> Iterator[str]:
    """About so many megabytes of documents spread over the whole folder, chosen by their hash."""
    share = megabytes * 1e6 / max(sum(path.stat().st_size for path in folder.glob("*.jsonl")), 1)
    return (text for text in documents(folder) if share >= 1 or _hash_fraction("sample:" + text) < share)


def split_of(text: str, val_fraction: float) -> str:
    """train or val, by the document's own hash: no matter where it stands or what else there is."""
    return "val" if _hash_fraction(text) < val_fraction else "train"


def _hash_fraction(text: str) -> float:
    """In [0, 1), evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


class _Writer:
    """Appends token ids to the shards of one split."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.entry: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0, "shards": []}
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        """One document."""
        self.entry["documents"] += 1
        self.entry["tokens"] += len(ids)
        self.entry["bytes"] += text_bytes
        self._waiting.append(np.array(ids, self.dtype))
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= self.shard_tokens:
            self._flush(self.shard_tokens)

    def close(self) -> dict[str, Any]:
        """Write what is left; the split's part of the manifest."""
        self._flush(1)
        return self.entry

    def _flush(self, least: int) -> None:
        tokens = np.concatenate(self._waiting) if self._waiting else np.empty(0, self.dtype)
        while len(tokens) >= least:
            shard, tokens = tokens[:self.shard_tokens], tokens[self.shard_tokens:]
            name = f"{self.split}-{len(self.entry['shards']):05d}.bin"
            data = shard.tobytes()
            (self.folder / name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            self.entry["shards"].append({"file": name, "tokens": len(shard), "sha256": digest})
        self._waiting, self._waiting_tokens = [tokens], len(tokens)


def write_shards(folder: Path, tokenizer: Tokenizer, cfg: config.Tokens, out: Path,
                 progress: Progress | None = None) -> dict[str, Any]:
    """Encode the documents of `folder` into token shards in `out`; returns the manifest.

    The manifest has dtype, vocab_size and for each split documents, tokens, bytes (of text), shards.
    Raises UserError when a split gets no document; `out` is then left as it was.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    total = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    with whole_folder(out) as partial:
        writers = {split: _Writer(partial, split, dtype, cfg.shard_tokens) for split in SPLITS}
        done = 0
        for chunk in _chunks(documents(folder), CHUNK_BYTES):
            for text, ids in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
                size = len(text.encode())
                writers[split_of(text, cfg.val_fraction)].add([tokenizer.bos, *ids], size)
                done += size
            if progress is not None:
                progress("tokens", min(done, total), total)
        manifest: dict[str, Any] = {"dtype": dtype.str, "vocab_size": tokenizer.vocab_size}
        manifest |= {split: writer.close() for split, writer in writers.items()}
        _check_splits(manifest, folder, cfg.val_fraction)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
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


def _check_splits(manifest: dict[str, Any], folder: Path, val_fraction: float) -> None:
    documents = sum(manifest[split]["documents"] for split in SPLITS)
    empty = [split for split in SPLITS if not manifest[split]["documents"]]
    if empty:
        raise UserError(f"{folder}: of {documents} documents none fell into {' and '.join(empty)}; "
                        f"give more documents, or change tokens.val_fraction ({val_fraction})")


class TokenShards:
    """The tokens of one split, read through memory maps: `len(shards)` of them, in order, as one array.

    Raises UserError naming every shard that is missing or not of the size (with `verify`: the sha256) that
    the manifest states.
    """

    def __init__(self, folder: str | Path, split: str, verify: bool = False) -> None:
        self.folder, self.split = Path(folder), split
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{path}: missing; no token shards in {self.folder}")
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.dtype = np.dtype(self.manifest["dtype"])
        shards = self.manifest[split]["shards"]
        problems = [problem for shard in shards if (problem := self._problem(shard, verify))]
        if problems:
            raise UserError(problems)
        # np.asarray: a plain view of the map, whose slices cost a third of those of np.memmap.
        maps = [np.memmap(self.folder / shard["file"], self.dtype, "r") for shard in shards]
        self._arrays = [np.asarray(array) for array in maps]
        self._starts = np.cumsum([0] + [len(array) for array in self._arrays])

    def _problem(self, shard: dict[str, Any], verify: bool) -> str | None:
        path, size = self.folder / shard["file"], shard["tokens"] * self.dtype.itemsize
        advice = "write the shards again (paribus tokens, or dvc repro --force tokens)"
        if not path.is_file():
            return f"{path}: missing; {advice}"
        if path.stat().st_size != size:
            return f"{path}: {path.stat().st_size} bytes, the manifest says {size}; {advice}"
        if verify and sha256_file(path) != shard["sha256"]:
            return f"{path}: its sha256 is not the manifest's; {advice}"
        return None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` (n,) with the tokens from `start` on."""
        shard = int(np.searchsorted(self._starts, start, "right")) - 1
        filled = 0
        while filled < len(out):
            offset = start + filled - int(self._starts[shard])
            part = self._arrays[shard][offset:offset + len(out) - filled]
            out[filled:filled + len(part)] = part
            filled += len(part)
            shard += 1

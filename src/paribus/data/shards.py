"""Token shards: documents as one long run of token ids in memory-mapped files, checked by a manifest.

Layout of a folder: {train,val}-00000.bin ... (little-endian uint16, or uint32 for vocabularies over 65,536),
each of `shard_tokens` ids but the last; {train,val}-documents.bin, where each document begins (little-endian int64,
in tokens of the split); and manifest.json. Every document opens with <|bos|>. Of several corpora one follows the other, and the
manifest has where each ends.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from paribus import config
from paribus.data import Progress, load_jsonl, say, sha256_file
from paribus.data.contents import check_files
from paribus.data.paths import inside
from paribus.data.sealed import read_sealed, seal
from paribus.data.tokenizer import Tokenizer, chunks
from paribus.errors import UserError
from paribus.files import whole_folder
from paribus.launched import launched

CHUNK_BYTES = (
    4_000_000  # text encoded at once: enough to keep many cores busy, little enough to bound memory
)
AHEAD = 2  # chunks being encoded
RELEASE_BYTES = 512_000_000  # read through the maps before their pages are given back; one read counts its neighbours too
SAID_BYTES = 10_000_000_000  # of shards whose check is announced
SPLITS = ("train", "val")
MAIN = "main"  # the corpus of corpus.source


def documents(folder: Path) -> Iterator[str]:
    """The text of every document of a corpus, source by source, in order of file name and line; checked file by file."""
    for source in sources(folder):
        yield from _documents_of(folder, source)


def sources(folder: Path) -> list[str]:
    """The corpora in a folder of documents: MAIN's files are in it, those of each other one in a folder of its name."""
    return [MAIN, *sorted(path.name for path in folder.iterdir() if path.is_dir())]


def _documents_of(folder: Path, source: str) -> Iterator[str]:
    place = folder if source == MAIN else folder / source
    for path in sorted(place.glob("*.jsonl")):
        check_files(folder.parent, [path])
        for number, row in enumerate(load_jsonl(path), 1):
            if not isinstance(row.get("text"), str):
                raise UserError(
                    f"{path}: row {number} holds no text; make the corpus again (`dvc checkout data/corpus`, or "
                    "`dvc repro --force corpus`)"
                )
            yield row["text"]


def sample_documents(folder: Path, megabytes: float) -> Iterator[str]:
    """About so many megabytes of documents spread over the whole folder, chosen by their hash."""
    share = megabytes * 1e6 / max(sum(path.stat().st_size for path in folder.rglob("*.jsonl")), 1)
    return (
        text
        for text in documents(folder)
        if share >= 1 or _hash_fraction(b"sample:" + text.encode()) < share
    )


def split_of(text: str, val_fraction: float) -> str:
    """The split of a document, train or val, by its own hash: its place and the other documents do not matter.

    Args:
        text: of the document.
        val_fraction: share of documents held out (`tokens.val_fraction`).
    """
    return "val" if _hash_fraction(text.encode()) < val_fraction else "train"


def _hash_fraction(text: bytes) -> float:
    """In [0, 1), evenly spread."""
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


class _Writer:
    """Appends documents to the shards of one split, and where each begins to its index."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.entry: dict[str, Any] = {"documents": 0, "tokens": 0, "bytes": 0, "shards": []}
        self._shard: _Hashed | None = None
        self._index = _Hashed(folder / f"{split}-documents.bin")

    def add(self, documents: list[np.ndarray], text_bytes: int) -> None:
        """Whole documents, each opened by <|bos|>."""
        starts = np.cumsum([self.entry["tokens"], *map(len, documents)])
        self._index.write(starts[:-1].astype("<i8").tobytes())
        self.entry["documents"] += len(documents)
        self.entry["tokens"] = int(starts[-1])
        self.entry["bytes"] += text_bytes
        tokens = np.concatenate(documents) if documents else np.empty(0, self.dtype)
        while len(tokens):
            self._shard = self._shard or _Hashed(
                self.folder / f"{self.split}-{len(self.entry['shards']):05d}.bin"
            )
            room = self.shard_tokens - self._shard.size // self.dtype.itemsize
            self._shard.write(tokens[:room].tobytes())
            tokens = tokens[room:]
            if len(tokens):
                self._end_shard()

    def end_source(self, source: str) -> None:
        """Note that the tokens since the source before are those of this one."""
        self.entry.setdefault("sources", {})[source] = self.entry["tokens"]

    def close(self) -> dict[str, object]:
        """The split's part of the manifest."""
        self._end_shard()
        return self.entry | {"index": self._index.close()}

    def _end_shard(self) -> None:
        if self._shard is not None:
            entry = self._shard.close()
            tokens = self._shard.size // self.dtype.itemsize
            self.entry["shards"].append(
                {"file": entry["file"], "tokens": tokens, "sha256": entry["sha256"]}
            )
            self._shard = None


class _Hashed:
    """A file written piece by piece, its sha256 taken on the way."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._file, self._digest = path.open("wb"), hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> dict[str, object]:
        self._file.close()
        return {"file": self.path.name, "sha256": self._digest.hexdigest()}


def write_shards(
    folder: Path,
    tokenizer: Tokenizer,
    cfg: config.Tokens,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Encode the documents of `folder` into token shards in `out`; returns the manifest.

    The manifest has dtype, vocab_size, tokenizer (sha256 of its tokenizer.json) and for each split documents, tokens,
    bytes (of text), shards, index.
    Raises UserError when a split gets no document; `out` is then left as it was.

    Args:
        folder: the corpus, with documents.jsonl and the files beside it.
        tokenizer: that encodes them.
        cfg: section `tokens` of params.yaml.
        out: the folder to make.
        progress: that counts documents on the terminal; None: nobody looks.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    total = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    corpora = sources(folder)
    with whole_folder(out) as partial:
        writers = {split: _Writer(partial, split, dtype, cfg.shard_tokens) for split in SPLITS}
        done = 0
        for source in corpora:
            for chunk, encoded in _encoded(tokenizer, _documents_of(folder, source), dtype):
                done += _write_chunk(writers, chunk, encoded, cfg.val_fraction)
                if progress is not None:
                    progress("tokens", min(done, total), total)
            if len(corpora) > 1:
                for writer in writers.values():
                    writer.end_source(source)
        manifest: dict[str, object] = {
            "dtype": dtype.str,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.sha256,
        }
        manifest |= {split: writer.close() for split, writer in writers.items()}
        _check_splits(manifest, folder, cfg.val_fraction)
        manifest = seal(manifest)
        (partial / "manifest.json").write_text(
            json.dumps(manifest, indent=1) + "\n", encoding="utf-8"
        )
    return manifest


def _write_chunk(
    writers: dict[str, _Writer], chunk: list[str], encoded: list[np.ndarray], val_fraction: float
) -> int:
    """Add texts to the split of each; bytes of them all."""
    found: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for text, ids in zip(chunk, encoded, strict=True):
        split = split_of(text, val_fraction)
        found[split].append(ids)
        sizes[split] += len(text.encode())
    for split, writer in writers.items():
        writer.add(found[split], sizes[split])
    return sum(sizes.values())


def _encoded(
    tokenizer: Tokenizer, texts: Iterable[str], dtype: np.dtype[Any]
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Chunks of texts with their token ids, opened by <|bos|>, in order.

    Two chunks are in progress at a time: while the library's threads encode, Python writes out what came before, and
    no core waits for the longest document of a chunk.
    """
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[tuple[list[str], Future[list[np.ndarray]]]] = deque()
        for chunk in chunks(texts, CHUNK_BYTES):
            waiting.append((chunk, pool.submit(tokenizer.encode_documents, chunk, dtype)))
            if len(waiting) > AHEAD:
                done, encoded = waiting.popleft()
                yield done, encoded.result()
        for done, encoded in waiting:
            yield done, encoded.result()


def _check_splits(manifest: dict[str, Any], folder: Path, val_fraction: float) -> None:
    documents = sum(manifest[split]["documents"] for split in SPLITS)
    empty = [split for split in SPLITS if not manifest[split]["documents"]]
    if empty:
        raise UserError(
            f"{folder}: of {documents} documents none fell into {' and '.join(empty)}; "
            f"give more documents, or change tokens.val_fraction ({val_fraction})"
        )


_ADVICE = "write the shards again (paribus tokens, or dvc repro --force tokens)"


def _map(path: Path) -> mmap.mmap:
    """A file's bytes. Rows are read in random order: reading ahead costs 24 times the time (measured, 192 rows of 100 GB)."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _manifest(folder: Path, split: str) -> dict[str, Any]:
    """The manifest of a folder of shards. Raises UserError if it is absent, damaged, or names files elsewhere."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path}: missing; no token shards in {folder}")
    manifest = read_sealed(path, _ADVICE)
    try:
        entry = manifest[split]
        whole = manifest["dtype"] in ("<u2", "<u4")
        for shard in entry["shards"]:
            inside(folder, shard["file"], str(path), links=True)
            whole = whole and isinstance(shard["tokens"], int) and shard["tokens"] > 0
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged: it does not describe the shards of {split}; {_ADVICE}")
    return manifest


def check_tokenizer(folder: Path, tokenizer: Tokenizer, where: Path) -> None:
    """Raises UserError where the token shards in a folder were written with another tokenizer.

    Their ids would be those of other words, also where both have as many tokens.

    Args:
        folder: of the shards.
        tokenizer: that the model is to be used with.
        where: its file, for the message.
    """
    manifest = _manifest(folder, "train")
    named = manifest.get("tokenizer")
    if named == tokenizer.sha256:
        return
    wrote = f"with tokenizer {named[:12]}" if isinstance(named, str) else "by an earlier paribus"
    raise UserError(
        f"{folder / 'manifest.json'}: the shards were written {wrote} ({manifest.get('vocab_size')} tokens), and {where} "
        f"is {tokenizer.sha256[:12]} ({tokenizer.vocab_size} tokens), which has other words; `dvc repro` makes what "
        f"belongs together, or {_ADVICE}"
    )


# Path, size, time of change and sha256 of this process's.
_VERIFIED: set[tuple[str, int, int, str]] = set()


def damaged(folder: Path, entries: list[dict[str, Any]]) -> list[str]:
    """A line on each file whose sha256 is not the one in its entry; an entry without one is not looked at.

    A process hashes a file once. Nothing is remembered from one process to the next: rot on a disk leaves a file's
    times as they were. Of several processes on a machine the first one looks.

    Args:
        folder: that the files are in.
        entries: of a manifest: each has `name`, and `sha256` where it is known.
    """
    if launched().local_rank:
        return []
    known = {}
    for entry in entries:
        path = folder / entry["file"]
        if entry.get("sha256"):
            about = path.stat()
            known[str(path.resolve()), about.st_size, about.st_ctime_ns, entry["sha256"]] = path
    todo = {key: path for key, path in known.items() if key not in _VERIFIED}
    size = sum(size for _, size, _, _ in todo)
    if size >= SAID_BYTES:
        say(f"{folder}: checking {size / 1e9:,.0f} GB against their checksums")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(sha256_file, todo.values()))
    wrong = []
    for (key, path), digest in zip(todo.items(), digests, strict=True):
        if digest == key[3]:
            _VERIFIED.add(key)
        else:
            wrong.append(
                f"{path}: its sha256 is not the manifest's: the file is damaged; remove it and run "
                f"`dvc checkout data/tokens`, or {_ADVICE}"
            )
    return wrong


class TokenShards:
    """The tokens of one split, read through memory maps: `len(shards)` of them, in order, as one array.

    Raises UserError naming every shard that is missing or not of the size (with `verify`: the sha256) that
    the manifest states, and for a damaged manifest.
    """

    def __init__(self, folder: str | Path, split: str, verify: bool = False) -> None:
        self.folder, self.split, self._verify = Path(folder), split, verify
        self.manifest = _manifest(self.folder, split)
        self.dtype = np.dtype(self.manifest["dtype"])
        shards = self.manifest[split]["shards"]
        problems = [problem for shard in shards if (problem := self._problem(shard))]
        if not problems and verify:
            problems = damaged(self.folder, shards)
        if problems:
            raise UserError(problems)
        self._maps = [_map(self.folder / shard["file"]) for shard in shards]
        self._arrays = [np.frombuffer(mapped, self.dtype) for mapped in self._maps]
        self._starts = [0, *itertools.accumulate(map(len, self._arrays))]
        self._read = 0

    def parts(self) -> list[tuple[int, int]]:
        """Where the documents of each corpus begin and end, in tokens of the split; without empty ones."""
        ends = self._source_ends()
        bounds = [0, *ends.values()]
        return [(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]

    def extent(self, source: str | None) -> tuple[int, int]:
        """Where the documents of a corpus begin and end, in tokens of the split; None: of all. Raises UserError."""
        if source is None:
            return 0, len(self)
        ends = self._source_ends()
        if source not in ends:
            raise UserError(
                f"{self.folder / 'manifest.json'}: no documents of {source}; there are: {', '.join(ends)}; {_ADVICE}"
            )
        names = list(ends)
        place = names.index(source)
        return (ends[names[place - 1]] if place else 0), ends[source]

    def _source_ends(self) -> dict[str, int]:
        """Corpus -> where its documents end; a manifest that names none is of the main one."""
        return dict(self.manifest[self.split].get("sources") or {MAIN: len(self)})

    def document_starts(self) -> np.ndarray:
        """(documents,) int64, memory-mapped: where each document begins, in tokens of the split."""
        entry = self.manifest[self.split]
        where = str(self.folder / "manifest.json")
        path = inside(self.folder, entry["index"]["file"], where, links=True)
        if not path.is_file() or path.stat().st_size != 8 * entry["documents"]:
            raise UserError(
                f"{path}: missing or not of 8 bytes for each of {entry['documents']:,} documents; {_ADVICE}"
            )
        if self._verify and (problems := damaged(self.folder, [entry["index"]])):
            raise UserError(problems)
        return np.frombuffer(_map(path), "<i8")

    def _problem(self, shard: dict[str, Any]) -> str | None:
        path, size = self.folder / shard["file"], shard["tokens"] * self.dtype.itemsize
        if not path.is_file():
            return f"{path}: missing; {_ADVICE}"
        if path.stat().st_size != size:
            return f"{path}: {path.stat().st_size} bytes, the manifest says {size}; {_ADVICE}"
        return None

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` (n,) with the tokens from `start` on."""
        shard = bisect.bisect_right(self._starts, start) - 1
        filled = 0
        while filled < len(out):
            offset = start + filled - self._starts[shard]
            part = self._arrays[shard][offset : offset + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1
        self._read += out.size * self.dtype.itemsize + (1 << 16)
        if self._read > RELEASE_BYTES:
            self._release()

    def _release(self) -> None:
        """Release the pages read so far: they stay in the system's cache, but no longer count as this process's memory."""
        self._read = 0
        for mapped in self._maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)

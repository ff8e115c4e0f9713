"""The corpus's documents, checked for near-duplicates and for the items that evaluations ask."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paribus import config
from paribus.data import Progress, english, hub
from paribus.data.contamination import Items, read_items
from paribus.data.corpus.described import DOWNLOADS, Entry, NamedFile, describe
from paribus.data.duplicates import Seen
from paribus.data.finding import find_files, say_left_out
from paribus.data.paths import inside
from paribus.data.reading import read_documents
from paribus.errors import UserError

SHARD_BYTES = 64_000_000  # of one documents file
CHECK_BYTES = 4_000_000  # of text compared with the test items at once


class _DocumentWriter:
    """documents/*.jsonl, one file after the other; counts what it wrote, what test items are in, what came before."""

    def __init__(self, folder: Path, items: Items | None, cfg: config.Corpus) -> None:
        folder.mkdir(parents=True)
        self.folder, self.documents, self.bytes, self.empty = folder, 0, 0, 0
        self._items, self._seen, self._cfg = items, Seen(), cfg
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._file: io.TextIOBase | None = None
        self._files = self._room = 0

    def add(self, text: str | None) -> int:
        """One document; one without anything but white space is counted and left out. Bytes of text so far."""
        if not text or text.isspace():
            self.empty += 1
        else:
            self._waiting.append(text)
            self._waiting_bytes += len(text.encode())
        if self._waiting_bytes >= CHECK_BYTES:
            self.flush()
        return self.bytes + self._waiting_bytes

    def flush(self) -> None:
        """Check and write what waits."""
        drop = self._seen.duplicates(self._waiting) & self._cfg.drop_near_duplicates
        if self._items is not None:
            drop |= self._items.contaminated(self._waiting) & self._cfg.drop_contaminated
        for text, dropped in zip(self._waiting, drop.tolist(), strict=True):
            if not dropped:
                self._write(text)
        self._waiting, self._waiting_bytes = [], 0

    def _write(self, text: str) -> None:
        if self._file is None or self._room <= 0:
            self._close_file()
            path = self.folder / f"{self._files:05d}.jsonl"
            self._file = path.open("w", encoding="utf-8", newline="\n")
            self._files += 1
            self._room = SHARD_BYTES
        size = len(text.encode())
        self._file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        self.documents += 1
        self.bytes += size
        self._room -= size

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> Entry:
        """Write the rest; the counts."""
        self.flush()
        self._close_file()
        counts: Entry = {"documents": self.documents, "bytes": self.bytes, "empty": self.empty}
        counts["near_duplicates"] = self._seen.summary() | {
            "dropped": self._cfg.drop_near_duplicates
        }
        if self._items is not None:
            counts["contamination"] = self._items.summary() | {
                "dropped": self._cfg.drop_contaminated
            }
        return counts


@dataclass
class _Sources:
    """Files of documents: as they come, and what is known of all of them beforehand."""

    files: Iterator[NamedFile]
    column: str
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes: int | None = None  # unknown of those that are fetched one by one


def build_texts(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None
) -> tuple[dict[str, Entry], list[str]]:
    """A folder of documents for every corpus in `corpus.texts`: the entry of each, and the problems met."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for name, text in cfg.texts.items():
        key = f"corpus.texts.{name}"
        of_hub = isinstance(config.parse_source(text), config.HubFiles)
        source: Literal["text", "local", "hub"] = "hub" if of_hub else "local"
        if text == "text":
            source = "text"
        own = dataclasses.replace(cfg, source=source, paths=[text])
        try:
            folder = inside(out, name, key)
            entry = build_documents(own, folder, root, progress, out.parent, key)
            entries[name] = {"source": text} | entry
        except UserError as error:
            problems += error.problems
    return entries, problems


def build_documents(
    cfg: config.Corpus,
    out: Path,
    root: Path,
    progress: Progress | None,
    corpus: Path | None = None,
    key: str = "corpus.paths",
) -> Entry:
    """The first `corpus.megabytes` of the package's own English, or of the files that `corpus.paths` names.

    corpus: the folder with the problems and tasks that documents are compared with; by default the parent of `out`.
    key: that names the files, for messages.
    """
    sources = _sources(cfg, root, progress, key)
    problems = sources.problems
    writer = _DocumentWriter(out, _test_items(cfg, corpus or out.parent), cfg)
    limit = math.inf if cfg.megabytes is None else cfg.megabytes * 1e6
    entries: list[Entry] = []
    done = 0
    for name, path in sources.files:
        entries.append(_take(writer, name, path, sources.column, limit, problems))
        done += path.stat().st_size
        if progress is not None:
            progress(*_done(writer, done, sources.bytes, cfg.megabytes))
        if writer.bytes >= limit:
            break
    counts = writer.close()
    if not problems and not writer.documents:
        problems.append(f"{key}: {', '.join(cfg.paths)} hold no text in all")
    if not problems and writer.documents == 1:
        problems.append(_one_document(cfg, key, was_cut=writer.bytes >= limit))
    if problems:
        raise UserError(problems)
    _say_findings(counts)
    return counts | {"files": entries, "left_out": sources.left_out}


def _sources(cfg: config.Corpus, root: Path, progress: Progress | None, key: str) -> _Sources:
    """The files that the configuration names."""
    if cfg.source == "hub":
        return _Sources(_hub_files(cfg, root, progress), cfg.text_column)
    if cfg.source == "text":
        return _Sources(iter(english.files()), english.COLUMN)
    found = find_files(cfg.paths, root, key, (cfg.text_column,))
    say_left_out(found.left_out, key)
    size = sum(path.stat().st_size for _, path in found.files)
    files = iter(found.files)
    return _Sources(files, cfg.text_column, found.problems, found.left_out, size)


def _done(
    writer: _DocumentWriter, done: int, total: int | None, megabytes: float | None
) -> tuple[str, float, float]:
    """What `progress` takes: (part, done, of how many); bytes of files read, else MB of text."""
    if total is not None:
        return "documents", done, total
    goal = megabytes * 1e6 if megabytes else max(writer.bytes, 1)
    return "text MB", min(writer.bytes, goal) // 1e6, goal // 1e6


def _hub_files(cfg: config.Corpus, root: Path, progress: Progress | None) -> Iterator[NamedFile]:
    """Name and path of the Hub's files of documents, each fetched when its turn comes."""
    parsed = [config.parse_source(path) for path in cfg.paths]
    sources = [source for source in parsed if isinstance(source, config.HubFiles)]
    fetched = hub.documents(sources, cfg.text_column, cfg.megabytes, root / DOWNLOADS, progress)
    return ((file.name, file.path) for file in fetched)


def _one_document(cfg: config.Corpus, key: str, was_cut: bool) -> str:
    """key: that names the files. was_cut: whether corpus.megabytes left the rest out."""
    if was_cut:
        return (
            f"corpus.megabytes: {cfg.megabytes} ends the corpus with its first document, and training and validation each "
            "need their own: raise it"
        )
    return (
        f"{key}: {', '.join(cfg.paths)} hold one document in all, and training and validation each need their own: "
        "a .txt is one document; where a mark such as <|endoftext|> stands between texts, write each text as a line "
        '{"text": ...} of a .jsonl'
    )


def _take(
    writer: _DocumentWriter, name: str, path: Path, column: str, limit: float, problems: list[str]
) -> Entry:
    """Write the documents of one file until `limit` bytes are reached; what is wrong goes to `problems`."""
    before = writer.documents
    try:
        for text in read_documents(path, column):
            if writer.add(text) >= limit:  # the exact figure is known once what waits is written
                writer.flush()
                if writer.bytes >= limit:
                    break
    except UserError as error:
        problems += error.problems
    writer.flush()
    return describe(path, name, documents=writer.documents - before)


def _test_items(cfg: config.Corpus, folder: Path) -> Items | None:
    """What documents are checked against; None: nothing.

    Those of the world are left out: its documents are made of the same templates, and share their wording.
    """
    own_problems, own_core = cfg.problems != "world", cfg.core != "world"
    if cfg.drop_contaminated and not own_problems and not own_core:
        raise UserError(
            "corpus.drop_contaminated: nothing to compare with: corpus.problems and corpus.core are the world's"
        )
    problems, core = folder / "problems", folder / "core"
    checked_problems = problems if own_problems and (problems / "test.jsonl").is_file() else None
    checked_core = core if own_core and (core / "eval_data").is_dir() else None
    if checked_problems is None and checked_core is None:
        return None
    return Items(read_items(checked_problems, checked_core))


def _say_findings(counts: Entry) -> None:
    """Near-duplicates and test items among the documents, a line each."""
    repeated = counts["near_duplicates"]
    near = f"{repeated['documents']:,} documents are near-duplicates of an earlier one"
    hub.say(near + _left_out(repeated))
    found = counts.get("contamination")
    if not found:
        return
    worst = sorted(found["benchmarks"].items(), key=lambda pair: -pair[1]["found"])[:3]
    shown = [f"{name} {of['found']} of {of['checked']}" for name, of in worst if of["found"]]
    examples = f" (items found: {', '.join(shown)})" if shown else ""
    hub.say(
        f"{found['documents']:,} documents share {found['words']} words in a row with test items"
        f"{_left_out(found)}{examples}"
    )


def _left_out(found: Entry) -> str:
    return " and were left out" if found["dropped"] else ""

"""The corpus folder: documents, problems, conversations and CORE tasks from wherever the configuration says.

Layout, whatever the source: documents/*.jsonl {"text"}, problems/{train,validation,test}.jsonl {"question",
"answer"}, conversations/<source>.jsonl {"messages"}, core/ as in the public DCLM bundle, and manifest.json: what
it was made from, with size and sha256 of every file. The conversations of the embedded world are always there.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import json
import math
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from paribus import config
from paribus.data import (
    Progress,
    hub,
    load_jsonl,
    open_bytes,
    open_text,
    sha256_file,
    whole_folder,
    world,
    write_jsonl,
)
from paribus.data.contamination import Items, read_items
from paribus.data.conversations import read_rows, to_conversation
from paribus.data.duplicates import Seen
from paribus.errors import UserError

FORMATS = (".txt", ".jsonl", ".parquet")
PACKED = (".gz", ".zst")
DOWNLOADS = Path(
    ".paribus/downloads"
)  # in the main checkout: what was fetched outlives the corpus made of it
SHARD_BYTES = 64_000_000  # of one documents file
CHECK_BYTES = 4_000_000  # of text compared with the test items at once
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    zlib.error,
)  # what corrupt files raise
Entry = dict[str, Any]


def build_corpus(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the corpus folder `out` and return its manifest. Relative paths of `cfg` start at `root`.

    Raises UserError that lists everything wrong with every source (missing, corrupt, broken lines with file and
    line, no text column, nothing in it); `out` is then left as it was.
    """
    # Documents last: they are checked against the test items. What is wrong is told in the order of the configuration.
    builders = {
        "problems": (cfg.problems, _problems),
        "core": (cfg.core, _core_bundle),
        "documents": (cfg.source, _documents),
    }
    manifest: dict[str, Any] = {"world": dataclasses.asdict(cfg.world)}
    wrong: dict[str, list[str]] = {}
    with whole_folder(out) as partial:
        for name, (source, build) in builders.items():
            try:
                if source != "world":
                    manifest[name] = {"source": source} | build(cfg, partial / name, root, progress)
            except UserError as error:
                wrong[name] = error.problems
        own, wrong["conversations"] = _own_conversations(cfg, partial / "own", root, progress)
        problems = [
            problem
            for name in ("documents", "conversations", "problems", "core")
            for problem in wrong.get(name, [])
        ]
        if problems:
            raise UserError(problems)
        manifest |= _add_world(cfg, partial, {"conversations", *builders} - manifest.keys())
        for path in sorted((partial / "own").glob("*")):
            path.rename(partial / "conversations" / path.name)
        (partial / "own").rmdir()
        manifest["conversations"]["files"] = own
        for name in ("problems", "conversations"):
            manifest[name]["counts"] = _count_rows(partial / name)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return manifest


def _add_world(cfg: config.Corpus, out: Path, parts: set[str]) -> dict[str, Entry]:
    """Generate the named parts of the world (one that is not wanted at size 0) into `out`; their manifest."""
    problems = "problems" in parts
    temporary = out / "world"
    counts = world.generate(
        temporary,
        seed=cfg.world.seed,
        megabytes=cfg.world.megabytes if "documents" in parts else 0,
        problems=cfg.world.problems if problems else 0,
        validation_problems=cfg.validation_problems if problems else 0,
        test_problems=cfg.world.test_problems if problems else 0,
        conversations=cfg.world.conversations,
        core_items=cfg.world.core_items,
    )
    for name in parts:
        (temporary / name).rename(out / name)
    shutil.rmtree(temporary)
    more: dict[str, Entry] = {
        "documents": {
            "documents": counts["documents"],
            "bytes": counts["document_bytes"],
            "empty": 0,
        },
        "core": {"bundle": "synthetic", "missing": []},
    }
    return {name: {"source": "world", "files": []} | more.get(name, {}) for name in sorted(parts)}


def _count_rows(folder: Path) -> dict[str, int]:
    return {path.stem: sum(1 for _ in load_jsonl(path)) for path in sorted(folder.glob("*.jsonl"))}


def _describe(path: Path, name: str, **more: Any) -> Entry:
    return {"path": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} | more


# ---------------------------------------------------------------- documents


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
            self._file = (self.folder / f"{self._files:05d}.jsonl").open(
                "w", encoding="utf-8", newline="\n"
            )
            self._files, self._room = self._files + 1, SHARD_BYTES
        size = len(text.encode())
        self._file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        self.documents, self.bytes, self._room = (
            self.documents + 1,
            self.bytes + size,
            self._room - size,
        )

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


def _documents(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """The first `corpus.megabytes` of the documents of the files that `corpus.paths` names, in their order."""
    if cfg.source == "hub":
        sources = [
            source
            for path in cfg.paths
            if isinstance(source := config.parse_source(path), config.HubFiles)
        ]
        fetched = hub.documents(sources, cfg.text_column, cfg.megabytes, root / DOWNLOADS, progress)
        files: Iterable[tuple[str, Path]] = ((file.name, file.path) for file in fetched)
        total, problems = None, list[str]()
    else:
        found, problems = find_files(cfg.paths, root)
        files, total = found, sum(path.stat().st_size for _, path in found)
    writer = _DocumentWriter(out, _test_items(cfg, out.parent), cfg)
    limit = math.inf if cfg.megabytes is None else cfg.megabytes * 1e6
    entries: list[Entry] = []
    done = 0
    for name, path in files:
        entries.append(_take(writer, name, path, cfg.text_column, limit, problems))
        done += path.stat().st_size
        if progress is not None and total is not None:
            progress("documents", done, total)
        elif progress is not None:
            progress(
                "text MB",
                min(writer.bytes, limit) // 1e6,
                (limit if cfg.megabytes else max(writer.bytes, 1)) // 1e6,
            )
        if writer.bytes >= limit:
            break
    counts = writer.close()
    if not problems and not writer.documents:
        problems.append(f"corpus.paths: {', '.join(cfg.paths)} hold no text in all")
    if problems:
        raise UserError(problems)
    _say_findings(counts)
    return counts | {"files": entries}


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
    except UNREADABLE as error:
        problems.append(f"{path}: cannot be read: {error}")
    writer.flush()
    return _describe(path, name, documents=writer.documents - before)


def _test_items(cfg: config.Corpus, folder: Path) -> Items | None:
    """What documents are checked against; those of the world are templates that share their wording with its tests."""
    problems, core = cfg.problems != "world", cfg.core != "world"
    there = (folder / "problems/test.jsonl").is_file(), (folder / "core/eval_data").is_dir()
    if not (problems and there[0]) and not (core and there[1]):
        if cfg.drop_contaminated and not problems and not core:
            raise UserError(
                "corpus.drop_contaminated: nothing to compare with: corpus.problems and corpus.core are the world's"
            )
        return None
    return Items(
        read_items(
            folder / "problems" if problems and there[0] else None,
            folder / "core" if core and there[1] else None,
        )
    )


def _say_findings(counts: Entry) -> None:
    """Near-duplicates and test items among the documents, a line each."""
    repeated = counts["near_duplicates"]
    hub.say(
        f"{repeated['documents']:,} documents are near-duplicates of an earlier one{_left_out(repeated)}"
    )
    if found := counts.get("contamination"):
        worst = sorted(found["benchmarks"].items(), key=lambda pair: -pair[1]["found"])[:3]
        shown = ", ".join(
            f"{name} {one['found']} of {one['checked']}" for name, one in worst if one["found"]
        )
        hub.say(
            f"{found['documents']:,} documents share {found['words']} words in a row with test items"
            f"{_left_out(found)}{f' (items found: {shown})' if shown else ''}"
        )


def _left_out(found: Entry) -> str:
    return " and were left out" if found["dropped"] else ""


# ---------------------------------------------------------------- files


def find_files(paths: Iterable[str], root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """The (name as written, path) of each file that `paths` name, once, and the problems met.

    Order: as listed, and by name within a folder or glob, so that it does not depend on where `root` is.
    """
    found: dict[Path, str] = {}
    problems = []
    for spec in paths:
        base = root / Path(spec).expanduser()
        if base.is_dir():
            files = sorted(
                path for path in base.rglob("*") if path.is_file() and _format(path) in FORMATS
            )
        elif base.is_file():
            files = [base] if _format(base) in FORMATS else []
        else:
            files = sorted(
                path
                for name in glob.glob(str(base), recursive=True)
                if (path := Path(name)).is_file() and _format(path) in FORMATS
            )
        if not files:
            what = (
                "holds no file"
                if base.is_dir()
                else "is not a file"
                if base.is_file()
                else "names no file"
            )
            allowed = f"{', '.join(FORMATS)}, alone or with {' or '.join(PACKED)}"
            problems.append(
                f"corpus.paths: {spec} {what} that can be read (looked at {base}; readable: {allowed})"
            )
        for path in files:
            name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
            found.setdefault(path.resolve(), name)
    return [(name, path) for path, name in found.items()], problems


def _format(path: Path) -> str:
    """The suffix that tells the format, that of the packing set aside."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def read_documents(path: Path, text_column: str) -> Iterator[str | None]:
    """The documents of one file: a .txt is one; of .jsonl and .parquet each row's `text_column`.

    Raises UserError (no such column, broken lines) and what UNREADABLE lists (corrupt files).
    """
    if _format(path) == ".txt":
        with open_text(path) as file:
            yield file.read()
    elif _format(path) == ".jsonl":
        yield from _jsonl_texts(path, text_column)
    else:
        yield from _parquet_texts(path, text_column)


def _jsonl_texts(path: Path, column: str) -> Iterator[str | None]:
    for number, row in enumerate(load_jsonl(path), 1):
        if column not in row or not isinstance(row[column], str | None):
            raise UserError(
                f"{path}: row {number} has no text in column {column!r} (corpus.text_column); "
                f"it has: {', '.join(row)}"
            )
        yield row[column]


def _parquet_texts(path: Path, column: str) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.parquet

    packed = (
        path.suffix in PACKED
    )  # a packed one has to be unpacked in memory: parquet is read from its end
    source = io.BytesIO(open_bytes(path).read()) if packed else path
    with pyarrow.parquet.ParquetFile(source) as file:
        if column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: no column {column!r} (corpus.text_column); it has: {names}")
        kind = file.schema_arrow.field(column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text")
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from batch.column(0).to_pylist()


# ---------------------------------------------------------------- conversations


def _own_conversations(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None
) -> tuple[list[Entry], list[str]]:
    """<name>.jsonl of every source in `corpus.conversations`: the files they come from, and the problems met."""
    out.mkdir()
    entries: list[Entry] = []
    problems: list[str] = []
    for name, text in cfg.conversations.items():
        try:
            files = _conversation_files(text, f"corpus.conversations.{name}", root, progress)
            counts: Counter[str] = Counter()
            rows = (row for _, path in files for row in _conversations(path, counts))
            if not write_jsonl(out / f"{name}.jsonl", rows):
                problems.append(f"corpus.conversations.{name}: {text} holds no conversation")
            entries += [
                _describe(path, file, source=name) | {"skipped": counts[str(path)]}
                for file, path in files
            ]
        except UserError as error:
            problems += error.problems
        except UNREADABLE as error:
            problems.append(f"corpus.conversations.{name}: {text}: cannot be read: {error}")
    return entries, problems


def _conversation_files(
    text: str, key: str, root: Path, progress: Progress | None
) -> list[tuple[str, Path]]:
    source = config.parse_source(text)
    if isinstance(source, config.HubFiles):
        files = hub.list_files(source, root / DOWNLOADS)
        hub.fetch(files, progress)
        return [(file.name, file.path) for file in files]
    found, problems = find_files([text], root)
    if problems:
        raise UserError(problem.replace("corpus.paths", key) for problem in problems)
    return found


def _conversations(path: Path, counts: Counter[str]) -> Iterator[Entry]:
    """The conversations of a file; rows that hold none are counted."""
    for number, row in enumerate(read_rows(path), 1):
        messages = to_conversation(row, f"{path}: row {number}")
        if messages is None:
            counts[str(path)] += 1
        else:
            yield {"messages": messages}


# ---------------------------------------------------------------- problems


def _problems(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """GSM8K-format problems; `validation_problems` of train, chosen by the hash of the question, are held out.

    A training problem whose question is also in test is left out and counted.
    """
    files = _problem_files(cfg, root, progress)
    rows: dict[str, list[dict[str, Any]]] = {}
    wrong: list[str] = []
    for split, parts in files.items():
        try:
            rows[split] = [row for _, path in parts for row in _read_problems(path)]
        except UserError as error:
            wrong += error.problems
    if wrong:
        raise UserError(wrong)
    tested = {row["question"] for row in rows["test"]}
    train = [row for row in rows["train"] if row["question"] not in tested]
    if len(train) <= cfg.validation_problems:
        raise UserError(
            f"corpus.validation_problems: {cfg.validation_problems} of the {len(train)} training problems "
            f"of {cfg.problems} leave none to train on"
        )
    held_out = set(
        sorted((row["question"] for row in train), key=_digest)[: cfg.validation_problems]
    )
    write_jsonl(out / "train.jsonl", (row for row in train if row["question"] not in held_out))
    write_jsonl(out / "validation.jsonl", (row for row in train if row["question"] in held_out))
    write_jsonl(out / "test.jsonl", rows["test"])
    entries = [_describe(path, name) for parts in files.values() for name, path in parts]
    return {"files": entries, "in_test_too": len(rows["train"]) - len(train)}


def _problem_files(
    cfg: config.Corpus, root: Path, progress: Progress | None
) -> dict[str, list[tuple[str, Path]]]:
    """(name, path) of the files of train and test."""
    source = config.parse_source(cfg.problems)
    if not isinstance(source, config.HubFiles):
        folder = root / Path(cfg.problems).expanduser()
        return {
            split: [(f"{cfg.problems}/{split}.jsonl", folder / f"{split}.jsonl")]
            for split in ("train", "test")
        }
    files = hub.list_files(source, root / DOWNLOADS)
    by_split = {
        split: [file for file in files if file.path.name.startswith(split)]
        for split in ("train", "test")
    }
    if lacking := [split for split, some in by_split.items() if not some]:
        raise UserError(
            f"corpus.problems: {cfg.problems}: no file of it is named {split}*" for split in lacking
        )
    hub.fetch([file for some in by_split.values() for file in some], progress)
    return {split: [(file.name, file.path) for file in some] for split, some in by_split.items()}


def _read_problems(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(
            f"{path}: missing (corpus.problems names a folder with train.jsonl and test.jsonl)"
        )
    rows = list(read_rows(path))
    for number, row in enumerate(rows, 1):
        texts = isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
        if not texts or "####" not in row["answer"]:
            raise UserError(
                f"{path}: row {number} is not a problem: expected a text `question` and an `answer` "
                "that ends in `#### ` and the result"
            )
    if not rows:
        raise UserError(f"{path}: no problem in it")
    return rows


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- CORE


def _core_bundle(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """The files of a DCLM-layout bundle that its core.yaml names; `missing` are the tasks without their file."""
    source = config.parse_source(cfg.core)
    folder = root / Path(cfg.core).expanduser()
    if isinstance(source, config.Archive):
        folder = hub.archive(source, root / DOWNLOADS, progress)
    tasks = _core_tasks(folder)
    wanted = {task["label"]: f"eval_data/{task['dataset_uri']}" for task in tasks}
    inside = folder.resolve()
    outside = [
        uri for uri in wanted.values() if not (folder / uri).resolve().is_relative_to(inside)
    ]
    if outside:
        raise UserError(
            f"{folder / 'core.yaml'}: dataset_uri {uri} leads out of the bundle" for uri in outside
        )
    missing = [label for label, uri in wanted.items() if not (folder / uri).is_file()]
    if len(missing) == len(wanted):
        raise UserError(f"corpus.core: {folder} holds the data of none of its {len(wanted)} tasks")
    present = {uri for label, uri in wanted.items() if label not in missing}
    files = []
    for uri in ("core.yaml", "eval_meta_data.csv", *sorted(present)):
        (out / uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / uri, out / uri)
        files.append(_describe(folder / uri, uri))
    bundle = _digest("".join(f"{entry['path']} {entry['sha256']}\n" for entry in files))
    return {"bundle": bundle, "files": files, "missing": missing}


def _core_tasks(folder: Path) -> list[dict[str, Any]]:
    needed = (folder / "core.yaml", folder / "eval_meta_data.csv")
    absent = [path for path in needed if not path.is_file()]
    if absent:
        raise UserError(
            f"{path}: missing (corpus.core names a folder in the DCLM bundle's layout)"
            for path in absent
        )
    tasks = config.read_yaml(needed[0]).get("icl_tasks")
    if not isinstance(tasks, list) or not tasks or not all(map(_is_task, tasks)):
        raise UserError(
            f"{needed[0]}: expected a list `icl_tasks`, each with a `label` and a `dataset_uri`"
        )
    return tasks


def _is_task(task: Any) -> bool:
    return (
        isinstance(task, dict)
        and isinstance(task.get("label"), str)
        and isinstance(task.get("dataset_uri"), str)
    )

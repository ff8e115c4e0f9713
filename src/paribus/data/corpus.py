"""The corpus folder: documents, problems, conversations and CORE tasks from wherever the configuration says.

Layout, whatever the source: documents/*.jsonl {"text"}, problems/{train,validation,test}.jsonl {"question",
"answer"}, conversations/<source>.jsonl {"messages"}, core/ as in the public DCLM bundle, and manifest.json: what
it was made from, with size and sha256 of every file. The conversations of the embedded world are always there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paribus import config, world
from paribus.data import (
    MOST_PROBLEMS,
    Progress,
    english,
    hub,
    load_jsonl,
    say,
    sha256_file,
    whole_folder,
    write_jsonl,
)
from paribus.data.answers import final_answer
from paribus.data.contamination import Items, read_items
from paribus.data.contents import CONTENTS, digests_of
from paribus.data.conversations import KNOWN_COLUMNS, Unfit, to_conversation
from paribus.data.core_bundle import read_bundle, read_entries
from paribus.data.disk import check_room
from paribus.data.duplicates import Seen
from paribus.data.finding import ROW_FORMATS, find_files, say_left_out
from paribus.data.paths import inside, own_path
from paribus.data.reading import read_documents, read_rows
from paribus.data.sealed import seal
from paribus.errors import UserError

DOWNLOADS = Path(
    ".paribus/downloads"
)  # in the main checkout: what was fetched outlives the corpus made of it
SHARD_BYTES = 64_000_000  # of one documents file
CHECK_BYTES = 4_000_000  # of text compared with the test items at once
Entry = dict[str, Any]


def build_corpus(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the corpus folder `out` and return its manifest. Relative paths of `cfg` start at `root`.

    Raises UserError that lists everything wrong with every source (missing, corrupt, broken lines with file and
    line, no text column, nothing in it); `out` is then left as it was.
    """
    # Documents last: they are checked against the test items. Problems are reported in the order of the configuration.
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
        manifest |= _add_world(
            cfg, partial, {"conversations", *builders} - manifest.keys(), progress
        )
        for path in sorted((partial / "own").glob("*")):
            path.rename(partial / "conversations" / path.name)
        (partial / "own").rmdir()
        manifest["conversations"]["files"] = own
        for name in ("problems", "conversations"):
            manifest[name]["counts"] = _count_rows(partial / name)
        manifest[CONTENTS] = digests_of(partial)
        manifest = seal(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return manifest


def _add_world(
    cfg: config.Corpus, out: Path, parts: set[str], progress: Progress | None
) -> dict[str, Entry]:
    """Generate the named parts of the world (one that is not wanted at size 0) into `out`; their manifest."""
    problems = "problems" in parts
    if "documents" in parts:
        size = cfg.world.megabytes * 1e6
        check_room(out, size, f"corpus.world.megabytes: {cfg.world.megabytes:,g}")
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
        progress=progress or (lambda *_: None),
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
    """The first `corpus.megabytes` of the package's own English, or of the files that `corpus.paths` names."""
    left_out: dict[str, str] = {}
    problems: list[str] = []
    total = None  # bytes of all files; not known of those that are fetched one by one
    column = cfg.text_column
    if cfg.source == "hub":
        files = _hub_files(cfg, root, progress)
    elif cfg.source == "text":
        files = iter(english.files())
        column = english.COLUMN
    else:
        found = find_files(cfg.paths, root, columns=(cfg.text_column,))
        files, problems, left_out = iter(found.files), found.problems, found.left_out
        total = sum(path.stat().st_size for _, path in found.files)
        say_left_out(left_out, "corpus.paths")
    writer = _DocumentWriter(out, _test_items(cfg, out.parent), cfg)
    limit = math.inf if cfg.megabytes is None else cfg.megabytes * 1e6
    entries: list[Entry] = []
    done = 0
    for name, path in files:
        entries.append(_take(writer, name, path, column, limit, problems))
        done += path.stat().st_size
        if progress is not None and total is not None:
            progress("documents", done, total)
        elif progress is not None:
            goal = limit if cfg.megabytes else max(writer.bytes, 1)
            progress("text MB", min(writer.bytes, limit) // 1e6, goal // 1e6)
        if writer.bytes >= limit:
            break
    counts = writer.close()
    if not problems and not writer.documents:
        problems.append(f"corpus.paths: {', '.join(cfg.paths)} hold no text in all")
    if not problems and writer.documents == 1:
        problems.append(_one_document(cfg.paths))
    if problems:
        raise UserError(problems)
    _say_findings(counts)
    return counts | {"files": entries, "left_out": left_out}


def _hub_files(
    cfg: config.Corpus, root: Path, progress: Progress | None
) -> Iterator[tuple[str, Path]]:
    """Name and path of the Hub's files of documents, each fetched when its turn comes."""
    parsed = [config.parse_source(path) for path in cfg.paths]
    sources = [source for source in parsed if isinstance(source, config.HubFiles)]
    fetched = hub.documents(sources, cfg.text_column, cfg.megabytes, root / DOWNLOADS, progress)
    return ((file.name, file.path) for file in fetched)


def _one_document(paths: list[str]) -> str:
    return (
        f"corpus.paths: {', '.join(paths)} hold one document in all, and training and validation each need their own: "
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
    return _describe(path, name, documents=writer.documents - before)


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


# ---------------------------------------------------------------- conversations


def _own_conversations(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None
) -> tuple[list[Entry], list[str]]:
    """<name>.jsonl of every source in `corpus.conversations`: the files they come from, and the problems met."""
    out.mkdir()
    entries: list[Entry] = []
    problems: list[str] = []
    for name, text in cfg.conversations.items():
        key = f"corpus.conversations.{name}"
        try:
            path = inside(out, f"{name}.jsonl", key)
            files = _conversation_files(text, key, root, progress)
            entries += _own_source(path, name, files, f"{key}: {text}")
        except UserError as error:
            problems += error.problems
    return entries, problems


def _own_source(out: Path, name: str, files: list[tuple[str, Path]], what: str) -> list[Entry]:
    """Write the conversations of one source; its files, with how many rows of each were left out, and why."""
    left_out = {path: Counter[str]() for _, path in files}
    wrong: list[str] = []
    rows = (row for _, path in files for row in _conversations(path, left_out[path], wrong))
    written = write_jsonl(out, rows)
    if wrong:
        raise UserError(wrong)
    total = sum(left_out.values(), Counter[str]())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in total.most_common())
    if not written:
        why = f": rows left out: {reasons}" if reasons else ""
        raise UserError(f"{what} holds no conversation{why}")
    if reasons:
        rows_read = total.total() + written
        say(f"{what}: {total.total():,} of {rows_read:,} rows are left out: {reasons}")
    entries = []
    for file, path in files:
        why_not = left_out[path]
        entries.append(
            _describe(path, file, source=name, skipped=why_not.total(), why=dict(why_not))
        )
    return entries


def _conversation_files(
    text: str, key: str, root: Path, progress: Progress | None
) -> list[tuple[str, Path]]:
    source = config.parse_source(text)
    if isinstance(source, config.HubFiles):
        files = hub.list_files(source, root / DOWNLOADS)
        hub.fetch(files, progress)
        return [(file.name, file.path) for file in files]
    found = find_files([text], root, key, KNOWN_COLUMNS, ROW_FORMATS)
    if found.problems:
        raise UserError(found.problems)
    say_left_out(found.left_out, key)
    return found.files


def _conversations(path: Path, left_out: Counter[str], wrong: list[str]) -> Iterator[Entry]:
    """The conversations of a file; rows that the chat format does not hold are counted by reason, others go to `wrong`."""
    try:
        for number, row in enumerate(read_rows(path), 1):
            try:
                yield {"messages": to_conversation(row, f"{path}: row {number}")}
            except Unfit as unfit:
                left_out[str(unfit)] += 1
            except UserError as error:
                wrong += error.problems
            if len(wrong) >= MOST_PROBLEMS:
                return
    except UserError as error:
        wrong += error.problems


# ---------------------------------------------------------------- problems


def _problems(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """GSM8K-format problems; `validation_problems` of train, chosen by the hash of the question, are held out.

    A training problem whose question is also in test is left out and counted.
    """
    files = _problem_files(cfg, root, progress)
    rows = _read_splits(files)
    tested = {row["question"] for row in rows["test"]}
    train = [row for row in rows["train"] if row["question"] not in tested]
    if len(train) <= cfg.validation_problems:
        raise UserError(
            f"corpus.validation_problems: {cfg.validation_problems} of the {len(train)} training problems "
            f"of {cfg.problems} leave none to train on"
        )
    by_hash = sorted((row["question"] for row in train), key=_digest)
    held_out = set(by_hash[: cfg.validation_problems])
    write_jsonl(out / "train.jsonl", (row for row in train if row["question"] not in held_out))
    write_jsonl(out / "validation.jsonl", (row for row in train if row["question"] in held_out))
    write_jsonl(out / "test.jsonl", rows["test"])
    entries = [_describe(path, name) for parts in files.values() for name, path in parts]
    return {"files": entries, "in_test_too": len(rows["train"]) - len(train)}


def _read_splits(files: dict[str, list[tuple[str, Path]]]) -> dict[str, list[dict[str, Any]]]:
    """Split -> the problems of its files. Raises UserError with everything that is wrong in any file."""
    rows: dict[str, list[dict[str, Any]]] = {}
    wrong: list[str] = []
    for split, parts in files.items():
        try:
            rows[split] = [row for _, path in parts for row in read_problems(path)]
        except UserError as error:
            wrong += error.problems
    if wrong:
        raise UserError(wrong)
    return rows


def _problem_files(
    cfg: config.Corpus, root: Path, progress: Progress | None
) -> dict[str, list[tuple[str, Path]]]:
    """(name, path) of the files of train and test."""
    source = config.parse_source(cfg.problems)
    if isinstance(source, config.HubFiles):
        return _hub_problem_files(cfg, source, root, progress)
    folder = own_path(root, cfg.problems, "corpus.problems")
    return {
        split: [(f"{cfg.problems}/{split}.jsonl", folder / f"{split}.jsonl")]
        for split in ("train", "test")
    }


def _hub_problem_files(
    cfg: config.Corpus, source: config.HubFiles, root: Path, progress: Progress | None
) -> dict[str, list[tuple[str, Path]]]:
    """The same of files on the Hub, fetched; a file's name says its split."""
    files = hub.list_files(source, root / DOWNLOADS)
    by_split = {}
    for split in ("train", "test"):
        by_split[split] = [file for file in files if file.path.name.startswith(split)]
    lacking = [split for split, of_split in by_split.items() if not of_split]
    if lacking:
        raise UserError(
            f"corpus.problems: {cfg.problems}: no file of it is named {split}*" for split in lacking
        )
    hub.fetch([file for of_split in by_split.values() for file in of_split], progress)
    return {
        split: [(file.name, file.path) for file in of_split] for split, of_split in by_split.items()
    }


def read_problems(path: Path) -> list[dict[str, Any]]:
    """{question, answer} of each row of a file of problems, other columns left out.

    Raises UserError with every row that is not a problem, or whose answer cannot be scored.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: missing (corpus.problems names a folder with train.jsonl and test.jsonl)"
        )
    rows = list(read_rows(path))
    wrong = []
    for number, row in enumerate(rows, 1):
        problem = _problem_of(row)
        if problem:
            wrong.append(f"{path}: row {number} {problem}")
    if len(wrong) > MOST_PROBLEMS:
        wrong[MOST_PROBLEMS:] = [f"{path}: {len(wrong) - MOST_PROBLEMS:,} more rows like these"]
    if not rows:
        wrong = [f"{path}: no problem in it"]
    if wrong:
        raise UserError(wrong)
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _problem_of(row: dict[str, Any]) -> str | None:
    """What keeps a row from being a problem that answers can be scored by."""
    expected = "expected a text `question` and an `answer` that ends in `#### ` and the result"
    texts = isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
    if not texts or "####" not in row["answer"]:
        return f"is not a problem: {expected}"
    if final_answer(row["answer"]) is None:
        ending = row["answer"].rpartition("####")[2].strip()
        return f"has no answer that can be scored: {ending!r:.60} is no number"
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- CORE


def _core_bundle(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """The files of a DCLM-layout bundle that its core.yaml names; `missing` are the tasks without their file."""
    source = config.parse_source(cfg.core)
    if isinstance(source, config.Archive):
        folder = hub.archive(source, root / DOWNLOADS, progress)
    else:
        folder = own_path(root, cfg.core, "corpus.core")
    absent = [name for name in ("core.yaml", "eval_meta_data.csv") if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder / name}: missing (corpus.core names a folder in the DCLM bundle's layout)"
            for name in absent
        )
    missing = read_bundle(folder).missing  # all that would keep `paribus eval core` from running it
    if missing:
        say(
            f"corpus.core: {len(missing)} tasks lack their data and are left out: {', '.join(missing)}"
        )
    present = {
        f"eval_data/{entry['dataset_uri']}"
        for entry in read_entries(folder / "core.yaml", [])
        if entry["label"] not in missing
    }
    files = []
    for uri in ("core.yaml", "eval_meta_data.csv", *sorted(present)):
        source_file = inside(folder, uri, str(folder / "core.yaml"))
        copy = inside(out, uri, str(folder / "core.yaml"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source_file, copy)
        files.append(_describe(source_file, uri))
    bundle = _digest("".join(f"{entry['path']} {entry['sha256']}\n" for entry in files))
    return {"bundle": bundle, "files": files, "missing": list(missing)}

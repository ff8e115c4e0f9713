"""The corpus's word problems in GSM8K's format: train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paribus import config
from paribus.data import MOST_PROBLEMS, Progress, hub, write_jsonl
from paribus.data.answers import final_answer
from paribus.data.corpus.described import DOWNLOADS, Entry, NamedFile, describe
from paribus.data.paths import own_path
from paribus.data.reading import read_rows
from paribus.errors import UserError

Problem = dict[str, str]  # question, answer


def build_problems(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
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
    entries = [describe(path, name) for parts in files.values() for name, path in parts]
    return {"files": entries, "in_test_too": len(rows["train"]) - len(train)}


def _read_splits(files: dict[str, list[NamedFile]]) -> dict[str, list[Problem]]:
    """Split -> the problems of its files. Raises UserError with everything that is wrong in any file."""
    rows: dict[str, list[Problem]] = {}
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
) -> dict[str, list[NamedFile]]:
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
) -> dict[str, list[NamedFile]]:
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


def read_problems(path: Path) -> list[Problem]:
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


def _problem_of(row: Mapping[str, Any]) -> str | None:
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

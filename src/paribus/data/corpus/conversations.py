"""The corpus's conversations from files and the Hub, beside those of the embedded world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from paribus import config
from paribus.data import MOST_PROBLEMS, Progress, hub, say, write_jsonl
from paribus.data.conversations import KNOWN_COLUMNS, Unfit, to_conversation
from paribus.data.corpus.described import DOWNLOADS, Entry, NamedFile, describe
from paribus.data.finding import ROW_FORMATS, find_files, say_left_out
from paribus.data.paths import inside
from paribus.data.reading import read_rows
from paribus.errors import UserError


def build_conversations(
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


def _own_source(out: Path, name: str, files: list[NamedFile], what: str) -> list[Entry]:
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
            describe(path, file, source=name, skipped=why_not.total(), why=dict(why_not))
        )
    return entries


def _conversation_files(
    text: str, key: str, root: Path, progress: Progress | None
) -> list[NamedFile]:
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

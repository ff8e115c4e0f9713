"""The embedded synthetic world: everything the default curriculum learns from and is tested on, without a network.

Byte-identical for a seed on every machine, Python version and hash seed. The words and sentences lie in YAML files
beside the modules. A larger world continues a smaller one: document, problem, conversation and item number i are the
same whatever the totals are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from paribus.world.core import TASKS, write_core
from paribus.world.documents import document
from paribus.world.facts import World, build_world
from paribus.world.problems import SPLITS, canonical, problems, prose
from paribus.world.rng import stream
from paribus.world.talk import KINDS, messages

__all__ = ["generate", "prose"]

SHARD_BYTES = 8_000_000
ROWS_BETWEEN = 1_000  # of problems and conversations between two words of progress

T = TypeVar("T")


def generate(
    out: Path,
    *,
    seed: int,
    megabytes: float,
    problems: int,
    validation_problems: int,
    test_problems: int,
    conversations: int,
    core_items: int,
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> dict[str, int]:
    """Writes the world under `out` and returns what it wrote, in rows and bytes.

    out/documents/NNNN.jsonl        {"text"}, shards of about 8 MB, `megabytes` (10^6 bytes of text) together
    out/problems/<split>.jsonl      {"question", "answer"} in GSM8K's format; splits: train, validation, test
    out/conversations/<kind>.jsonl  {"messages"}; kinds: facts, smalltalk, instructions; `conversations` of each
    out/core/                       the layout of the DCLM bundle, `core_items` rows a task

    progress: called with (part, done, of how many) as its rows are made; of documents these are bytes.

    Raises RuntimeError if a problem were in two splits.
    """
    world = build_world(seed)
    counts = _write_documents(out / "documents", world, seed, megabytes, progress)
    sizes = dict(zip(SPLITS, (problems, validation_problems, test_problems), strict=True))
    _write_problems(out / "problems", seed, sizes, progress)
    _write_conversations(out / "conversations", world, seed, conversations, progress)
    write_core(out / "core", world, seed, core_items)
    counts.update((f"{split}_problems", size) for split, size in sizes.items())
    counts["conversations"] = conversations * len(KINDS)
    return counts | {"core_tasks": len(TASKS), "core_items": core_items * len(TASKS)}


def _write_rows(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _counted(
    rows: Iterable[T], part: str, total: int, progress: Callable[[str, int, int], None]
) -> Iterator[T]:
    """The rows; reports to `progress` at regular intervals."""
    for done, row in enumerate(rows):
        if done and done % ROWS_BETWEEN == 0:
            progress(part, done, total)
        yield row


def _write_documents(
    out: Path,
    world: World,
    seed: int,
    megabytes: float,
    progress: Callable[[str, int, int], None],
) -> dict[str, int]:
    """Shard after shard, so that memory does not grow with the world."""
    out.mkdir(parents=True, exist_ok=True)
    for old in sorted(out.glob("*.jsonl")):  # of a larger world that was here before
        old.unlink()
    total = count = shards = 0
    while total < megabytes * 1e6:
        size = 0
        with (out / f"{shards:04d}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            while size < SHARD_BYTES and total + size < megabytes * 1e6:
                text = document(world, seed, count)
                file.write(json.dumps({"text": text}) + "\n")
                size += len(text.encode())
                count += 1
        total += size
        shards += 1
        progress("documents", total, max(total, int(megabytes * 1e6)))
    return {"documents": count, "document_bytes": total, "document_shards": shards}


def _write_problems(
    out: Path, seed: int, sizes: dict[str, int], progress: Callable[[str, int, int], None]
) -> None:
    """The splits; documents draw from the training split alone."""
    owner: dict[str, str] = {}
    for split, size in sizes.items():
        rows = list(_counted(problems(seed, split, size), f"{split} problems", size, progress))
        for problem in rows:
            if owner.setdefault(canonical(problem.question), split) != split:
                raise RuntimeError(
                    f"a problem is in two splits, {owner[canonical(problem.question)]} and {split}"
                )
        _write_rows(out / f"{split}.jsonl", (problem._asdict() for problem in rows))


def _write_conversations(
    out: Path,
    world: World,
    seed: int,
    count: int,
    progress: Callable[[str, int, int], None],
) -> None:
    for name, make in KINDS.items():
        streams = (stream(seed, f"conversation/{name}", index) for index in range(count))
        counted = _counted(streams, f"conversations of {name}", count, progress)
        _write_rows(out / f"{name}.jsonl", (messages(make(world, rng)) for rng in counted))

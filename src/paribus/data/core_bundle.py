"""Reading a CORE bundle: core.yaml, eval_meta_data.csv and eval_data/**.jsonl, checked whole before any compute.

The layout is that of the public DCLM evaluation bundle (arXiv:2406.11794). Rows by kind of task:
multiple_choice {query, choices, gold}; schema {context_options, continuation, gold};
language_modeling {context, continuation}.
"""

from __future__ import annotations

import csv
import hashlib
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import read_yaml
from paribus.data import error_text, not_utf8, parse_json, replace_surrogates
from paribus.data.paths import file_name_problem, inside, name_problem
from paribus.errors import UserError, did_you_mean, escaped

KINDS = ("multiple_choice", "schema", "language_modeling")
# Of a task in core.yaml. The public bundle says `has_categories` of one task; scores by category are not among CORE.
TASK_KEYS = (
    "label",
    "dataset_uri",
    "num_fewshot",
    "icl_task_type",
    "continuation_delimiter",
    "has_categories",
)
SHUFFLE_SEED = 1337
PROBLEMS_SHOWN = 10  # of one file: a file of the wrong kind has one for every line

CORE_LABELS = frozenset((
    "hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge", "copa", "commonsense_qa",
    "piqa", "openbook_qa", "lambada_openai", "hellaswag", "winograd", "winogrande", "bigbench_dyck_languages",
    "agi_eval_lsat_ar", "bigbench_cs_algorithms", "bigbench_operators", "bigbench_repeat_copy_logic", "squad", "coqa",
    "boolq", "bigbench_language_identification"))  # fmt: skip

Row = dict[str, Any]
_File = tuple[list[Row], str]  # its rows and sha256


@dataclass(frozen=True)
class Task:
    """One task. The first `n` of `rows` (already shuffled) are asked; few-shot examples come from all `rows`.

    baseline: share that guessing gets right; population: items in the file; digest: sha256 of the file.
    """

    label: str
    kind: str
    shots: int
    delimiter: str
    baseline: float
    rows: tuple[Row, ...]
    n: int
    population: int
    digest: str


@dataclass(frozen=True)
class Bundle:
    """What can run, what lacks its data, and the sha256 of all files read."""

    tasks: tuple[Task, ...]
    missing: tuple[str, ...]
    digest: str

    @property
    def partial(self) -> bool:
        """True unless the tasks are exactly the 22 of CORE."""
        return {task.label for task in self.tasks} != CORE_LABELS


def read_bundle(folder: Path, max_per_task: int | None = None, complete: bool = False) -> Bundle:
    """Read and check a bundle; `complete`: a task without its file is an error, not a gap.

    Sub-sampling keeps the first `max_per_task` items after the shuffle, and few-shot examples then come from these
    alone, as in nanochat's base_eval (which cannot run when they are no more than the examples: here as many
    further items as needed serve as examples only). Raises UserError with every problem of every file at once.
    """
    problems: list[str] = []
    where = folder / "core.yaml"
    entries = read_entries(where, problems)
    labels = [entry["label"] for entry in entries]
    baselines = _baselines(folder / "eval_meta_data.csv", labels, problems)
    files: dict[tuple[str, str], _File | None] = {}
    tasks, missing = [], []
    for entry in entries:
        uri, kind = entry["dataset_uri"], entry["icl_task_type"]
        path = inside(folder, f"eval_data/{uri}", str(where), links=True)
        if (uri, kind) not in files:
            files[uri, kind] = _rows(path, kind, problems) if path.is_file() else None
        file = files[uri, kind]
        if file is None:
            missing.append(entry["label"])
            if complete:
                problems.append(f"{path}: missing; task {entry['label']} needs it")
        elif entry["label"] in baselines:
            tasks.append(_task(entry, baselines[entry["label"]], *file, max_per_task))
    problems = problems or _too_few(folder, tasks, len(entries))
    if problems:
        raise UserError(problems)
    read = {f"eval_data/{uri}": file[1] for (uri, _), file in files.items() if file}
    return Bundle(tuple(tasks), tuple(missing), _bundle_digest(folder, read))


def _too_few(folder: Path, tasks: list[Task], entries: int) -> list[str]:
    """Tasks with too few items to ask any, and a bundle without a task."""
    if not tasks:
        data = folder / "eval_data"
        return [f"{data}: holds the data of none of the {entries} tasks in core.yaml"]
    return [
        f"{task.label}: {task.population} items are too few for {task.shots} examples and a question"
        for task in tasks
        if task.population <= task.shots
    ]


def _bundle_digest(folder: Path, read: dict[str, str]) -> str:
    """sha256 of the names and digests of all files of a bundle that were read. read: those of items."""
    digests = {name: _sha256(folder / name) for name in ("core.yaml", "eval_meta_data.csv")} | read
    listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def _task(
    entry: Row, baseline: float, rows: list[Row], digest: str, max_per_task: int | None
) -> Task:
    shots = entry["num_fewshot"][0]
    shuffled = list(rows)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    if max_per_task is not None:
        shuffled = shuffled[: max(max_per_task, shots + 1)]
    n = len(shuffled) if max_per_task is None else min(max_per_task, len(shuffled))
    return Task(
        entry["label"],
        entry["icl_task_type"],
        shots,
        entry.get("continuation_delimiter", " "),
        baseline,
        tuple(shuffled),
        n,
        len(rows),
        digest,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- core.yaml and the baselines


def read_entries(path: Path, problems: list[str]) -> list[Row]:
    """The well-formed entries of `icl_tasks` in core.yaml; what is wrong with the others goes to `problems`."""
    try:
        values = read_yaml(path)
    except UserError as error:
        problems += error.problems
        return []
    problems += [f"{path}: {text}" for text in _unknown_keys(values, ("icl_tasks",))]
    listed = values.get("icl_tasks")
    if not isinstance(listed, list) or not listed:
        problems.append(f"{path}: icl_tasks: expected a list of tasks, not {listed!r}")
        return []
    entries: list[Row] = []
    for number, entry in enumerate(listed, 1):
        wrong = _entry_problems(entry)
        if not wrong and entry["label"] in {other["label"] for other in entries}:
            wrong = [f"label: {entry['label']!r} is there twice"]
        problems += [f"{path}: task {number}: {text}" for text in wrong]
        if not wrong:
            entries.append(entry)
    return entries


def _unknown_keys(values: Mapping[str, object], known: tuple[str, ...]) -> list[str]:
    """A warning for each key that is not read: a slip, or something that this reader would ignore silently."""
    wrong = []
    for name in values:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"allowed: {', '.join(known)}"
            wrong.append(f"{escaped(str(name))}: unknown key; {hint}")
    return wrong


def _entry_problems(entry: object) -> list[str]:
    if not isinstance(entry, dict):
        return [f"expected keys and values, not {entry!r}"]
    wrong = _unknown_keys(entry, TASK_KEYS)
    wrong += [
        f"{name}: expected text, not {entry.get(name)!r}"
        for name in ("label", "dataset_uri")
        if not isinstance(entry.get(name), str)
    ]
    if isinstance(entry.get("label"), str) and isinstance(entry.get("dataset_uri"), str):
        wrong += _name_problems(entry)
    shots = entry.get("num_fewshot")
    if not (isinstance(shots, list) and len(shots) == 1 and _is_index(shots[0])):
        wrong.append(f"num_fewshot: expected a list of one whole number, not {shots!r}")
    if entry.get("icl_task_type") not in KINDS:
        wrong.append(
            f"icl_task_type: expected one of {', '.join(KINDS)}, not {entry.get('icl_task_type')!r}"
        )
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        wrong.append(
            f"continuation_delimiter: expected text, not {entry['continuation_delimiter']!r}"
        )
    return wrong


def _name_problems(entry: Row) -> list[str]:
    """A label names the file of the task's kept answers, a dataset_uri a file of the bundle: neither leads elsewhere."""
    wrong = []
    if problem := file_name_problem(entry["label"]):
        wrong.append(f"label: {entry['label']!r:.200} {problem}")
    if problem := name_problem(entry["dataset_uri"]):
        problem = problem.replace("its folder", "the bundle")
        wrong.append(f"dataset_uri: {entry['dataset_uri']!r:.200} {problem}")
    return wrong


def _problem_of_columns(columns: list[str]) -> str | None:
    """What is wrong with the header of a table of baselines; None where nothing is."""
    if columns and columns[0].startswith("\ufeff"):
        return "begins with a byte order mark; write it as UTF-8 without one"
    other = re.search("[;\t|]", columns[0]) if len(columns) == 1 else None
    if other:
        return f"its columns are parted by {other[0]!r}; expected commas"
    wanted = ("Eval Task", "Random baseline")
    absent = [name for name in wanted if name not in columns]
    if absent:
        return f"no column {' and '.join(map(repr, absent))}; there are {columns}"
    twice = [name for name in wanted if columns.count(name) > 1]
    if twice:
        return f"more than one column is named {' and '.join(map(repr, twice))}"
    return None


def _baselines(path: Path, labels: list[str], problems: list[str]) -> dict[str, float]:
    """Label -> share right by guessing, from the columns `Eval Task` and `Random baseline` (per cent)."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            lines = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        problems.append(not_utf8(path, error))
        return {}
    except (OSError, csv.Error) as error:
        problems.append(f"{path}: cannot be read: {error_text(error)}")
        return {}
    wrong_head = _problem_of_columns(columns)
    if wrong_head:
        problems.append(f"{path}:1: {wrong_head}")
        return {}
    found: dict[str, float] = {}
    for line, row in lines:
        label, text = row["Eval Task"], row["Random baseline"]
        if label not in labels:
            continue
        share = _per_cent(text)
        wrong = _wrong_baseline(share, text, found.get(label))
        if wrong:
            problems.append(f"{path}:{line}: Random baseline {text!r} of {label}{wrong}")
        found.setdefault(label, share)
    for label in labels:
        if label not in found:
            problems.append(f"{path}: no Random baseline for {label}")
    return found


def _wrong_baseline(share: float, text: str | None, before: float | None) -> str | None:
    """What is wrong with a baseline, in words; None where nothing is. before: the same task's further up."""
    if not 0 <= share < 1:
        return "; expected per cent >= 0 and < 100"
    if 0 < share < 0.01:
        return (
            " is less than one per cent; the column is in per cent, as in the public bundle: write "
            f"{100 * float(text or 0):g} for a share of {text}"
        )
    if before is not None and before != share:
        return f", after {100 * before:g} further up"
    return None


def _per_cent(text: str | None) -> float:
    """Per cent as a share; nan if it is not a number."""
    try:
        return float(text or "") / 100
    except ValueError:
        return math.nan


# ---------------------------------------------------------------- rows


def _rows(path: Path, kind: str, problems: list[str]) -> _File:
    """The rows of a file and its sha256; what is wrong, by line, goes to `problems`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error_text(error)}")
        return [], ""
    rows: list[Row] = []
    wrong: list[str] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row, problem = _row(line, kind)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            row, problem = {}, f"not JSON in UTF-8 ({error_text(error)})"
        if problem:
            wrong.append(f"{path}:{number}: {problem}")
        else:
            rows.append(row)
    if not rows and not wrong:
        wrong = [f"{path}: empty"]
    if len(wrong) > PROBLEMS_SHOWN:
        wrong[PROBLEMS_SHOWN:] = [f"{path}: {len(wrong) - PROBLEMS_SHOWN} more lines like these"]
    problems += wrong
    return rows, hashlib.sha256(data).hexdigest()


def _row(line: bytes, kind: str) -> tuple[Row, str | None]:
    """The row in a line, and what is wrong with it. Raises ValueError and RecursionError for what is no JSON in UTF-8."""
    if line.startswith(b"\xef\xbb\xbf"):
        return {}, "begins with a byte order mark; write it as UTF-8 without one"
    if not line.strip():
        return {}, "blank; every line is one row"
    row = parse_json(line.decode("utf-8"))
    problem = _row_problem(row, kind)
    if problem is None and replace_surrogates(row)[1]:
        problem = "holds half of a surrogate pair, which no text in UTF-8 can"
    return row, problem


def _row_problem(row: object, kind: str) -> str | None:
    """What keeps a row from being an item of this kind."""
    if not isinstance(row, dict):
        return f"expected a {kind} row, not {row!r:.60}"
    texts = {
        "multiple_choice": ["query"],
        "schema": ["continuation"],
        "language_modeling": ["context", "continuation"],
    }
    for name in texts[kind]:
        if not isinstance(row.get(name), str):
            return _column_problem(row, name, kind, "text")
    if kind == "language_modeling":
        return None if row["continuation"].strip() else "continuation is blank"
    name = "choices" if kind == "multiple_choice" else "context_options"
    options = row.get(name)
    if (
        not isinstance(options, list)
        or len(options) < 2
        or not all(isinstance(option, str) for option in options)
    ):
        return _column_problem(row, name, kind, "a list of two or more texts")
    if not _is_index(row.get("gold")) or row["gold"] >= len(options):
        return f"gold is {row.get('gold')!r}; expected a whole number from 0 to {len(options) - 1}"
    return None


def _column_problem(row: Row, name: str, kind: str, expected: str) -> str:
    if name not in row:
        return f"no column {name!r}, which a {kind} row needs; there are {', '.join(map(str, row)) or 'none'}"
    return f"{name} is {row[name]!r:.60}; expected {expected}"


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

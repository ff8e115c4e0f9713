"""DCLM CORE (arXiv:2406.11794) by its public protocol, with error bars.

An item becomes one prompt per option (few-shot examples, then the item), tokenised whole. The model's mean loss on
the option's own tokens picks the answer; in language modelling the continuation must be the greedy one. Accuracy is
centred so that guessing scores 0, and CORE is the mean over the 22 tasks. docs/core.md has the protocol in full.

It is quick because each token is forwarded once: options that share a prefix are scored against one cached copy
of it, prompts of like length share a forward pass, and logits are formed only where a loss is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paribus.data.core_bundle import Task, read_bundle
from paribus.data.paths import inside
from paribus.data.sealed import sealed_by_files
from paribus.data.tokenizer import Tokenizer
from paribus.evaluate.core_prompts import PROBES, Prompts, spans
from paribus.evaluate.core_scores import (
    CPU_TOKENS,
    OptionScore,
    Scores,
    Unit,
    batches,
    score_units,
    units_of,
)
from paribus.evaluate.intervals import clustered_stderr
from paribus.evaluate.kept import Kept, never, stop_if
from paribus.files import write_atomic
from paribus.model.gpt import GPT

TEXT = 200  # letters of a line from which on it is a text that several questions may be about
CHUNK_ITEMS = 256  # items tokenised and sorted by length together: bounds the tokens held in memory

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Item:
    """The outcome of one item.

    `index`: its place after the shuffle. `losses`: mean nats per token of each option (None: nothing of it could be scored).
    `prediction`: the option chosen, None in language modelling.
    """

    task: str
    index: int
    correct: bool
    prediction: int | None
    losses: tuple[float | None, ...]


@dataclass(frozen=True)
class TaskScore:
    """Accuracy on n of `population` items, and above guessing (`baseline`): (accuracy - b) / (1 - b).

    stderr: of the accuracy as an estimate for questions of this sort, sqrt(p (1 - p) / n): fewer items, wider. Questions about
    one text vary together and count as a cluster.
    subsample_stderr: the part of it that is due to leaving items out, 0 when all were asked.
    """

    accuracy: float
    centered: float
    stderr: float
    centered_stderr: float
    subsample_stderr: float
    baseline: float
    n: int
    population: int


@dataclass(frozen=True)
class CoreResult:
    """Scores by task and every item's outcome. `bundle`: "synthetic", or the sha256 of the bundle's files."""

    tasks: dict[str, TaskScore]
    items: tuple[Item, ...]
    missing: tuple[str, ...]
    partial: bool
    bundle: str

    def summary(self) -> dict[str, Any]:
        """Plain values for metrics/core.json. A partial bundle has no `core`, only `core_partial`."""
        scores = self.tasks.values()
        mean = sum(score.centered for score in scores) / len(scores)
        return {
            "core": None if self.partial else mean,
            "core_partial": mean if self.partial else None,
            "core_stderr": stderr_of_mean([score.centered_stderr for score in scores]),
            "core_subsample_stderr": stderr_of_mean(
                [s.subsample_stderr / (1 - s.baseline) for s in scores]
            ),
            "bundle": self.bundle,
            "partial": self.partial,
            "missing": list(self.missing),
            "tasks": {label: dataclasses.asdict(score) for label, score in self.tasks.items()},
        }


@torch.inference_mode()
def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    bundle: Path,
    *,
    max_per_task: int | None,
    batch_size: int,
    synthetic: bool = False,
    cache: Path | None = None,
    on_progress: Progress | None = None,
    stop: Callable[[], bool] = never,
) -> CoreResult:
    """Score a model on a bundle.

    Args:
        model: that scores.
        tokenizer: of the checkpoint.
        bundle: folder of the tasks.
        max_per_task: items of each; None: all.
        batch_size: most rows of one forward pass; changes nothing but rounding.
        synthetic: the embedded world's tasks, whose mean is `core` and whose files must all be there; otherwise the
            bundle counts as CORE only with all 22 tasks.
        cache: a folder that keeps what is scored, so that a run that was killed or stopped goes on where it was.
        on_progress: called with (label, done, n) after every forward pass.
        stop: asked before every forward pass.

    Raises:
        Stopped: where `stop` says yes.
        UserError: before any compute, with every missing or malformed file and line.
    """
    read = read_bundle(bundle, max_per_task, complete=synthetic)
    identity = _model_digest(model) if cache else ""
    items: list[Item] = []
    for task in read.tasks:
        path = cache and inside(cache, f"{task.label}.jsonl", "label")
        with Kept(path, _task_key(task, identity, tokenizer)) as kept:
            items += evaluate_task(model, tokenizer, task, batch_size, on_progress, kept, stop)
    scores = {
        task.label: score_task(
            [item.correct for item in items if item.task == task.label],
            task.baseline,
            task.population,
            texts_of(task.rows[: task.n]),
        )
        for task in read.tasks
    }
    partial = read.partial and not synthetic
    return CoreResult(
        scores, tuple(items), read.missing, partial, "synthetic" if synthetic else read.digest
    )


def write_items(folder: Path, result: CoreResult) -> None:
    """Write summary.json and items.parquet (task, index, correct, prediction, losses), for paired comparisons.

    Args:
        folder: of the evaluation.
        result: with every item.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        {
            "task": pa.string(),
            "index": pa.int32(),
            "correct": pa.bool_(),
            "prediction": pa.int32(),
            "losses": pa.list_(pa.float64()),
        }
    )
    table = pa.Table.from_pylist([dataclasses.asdict(item) for item in result.items], schema)
    pq.write_table(table, folder / "items.parquet", write_page_checksum=True)
    summary = sealed_by_files(result.summary(), [folder / "items.parquet"])
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


# ---------------------------------------------------------------- scores


def centre(accuracy: float, baseline: float) -> float:
    """Accuracy above guessing: 0 for a guess, 1 for all right.

    Args:
        accuracy: from 0 to 1.
        baseline: of a guess, from 0 to 1.
    """
    return (accuracy - baseline) / (1 - baseline)


def stderr_of_mean(stderrs: list[float]) -> float:
    """Standard error of the mean of independent estimates."""
    return math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(stderrs)


def score_task(
    correct: list[bool], baseline: float, population: int, texts: Sequence[int] | None = None
) -> TaskScore:
    """Accuracy, centred accuracy and their standard errors.

    Args:
        correct: the n outcomes.
        baseline: the accuracy of a guess.
        population: items of the task, asked or not.
        texts: the text that each item is about; None: each is about its own.
    """
    n = len(correct)
    accuracy = sum(correct) / n
    stderr = math.sqrt(accuracy * (1 - accuracy) / n)
    if texts is not None and len(set(texts)) < n:
        stderr = clustered_stderr(correct, texts)
    left_out = (population - n) / (population - 1) if population > 1 else 0.0
    return TaskScore(
        accuracy,
        centre(accuracy, baseline),
        stderr,
        stderr / (1 - baseline),
        stderr * math.sqrt(left_out),
        baseline,
        n,
        population,
    )


def texts_of(rows: Sequence[Mapping[str, object]]) -> list[int]:
    """The text that each item is about: items whose prompts share their longest line, of TEXT letters or more, share a text.

    So SQuAD's questions about one paragraph and CoQA's about one story are found without knowing how either writes its prompts.
    A line that most items have is an instruction and no text.
    """
    lines = []
    for row in rows:
        prompt = str(row.get("context") or row.get("query") or "")
        lines.append(max(prompt.splitlines(), key=len, default=""))
    counts = Counter(lines)
    shared = {line for line, count in counts.items() if 1 < count <= len(lines) / 2}
    numbers: dict[str, int] = {}
    texts = []
    for index, line in enumerate(lines):
        is_text = line in shared and len(line) >= TEXT
        texts.append(numbers.setdefault(line, len(lines) + index) if is_text else index)
    return texts


# ---------------------------------------------------------------- tasks


@torch.inference_mode()
def evaluate_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    batch_size: int,
    on_progress: Progress | None = None,
    kept: Kept | None = None,
    stop: Callable[[], bool] = never,
) -> list[Item]:
    """The outcome of the first `task.n` items, in order.

    Args:
        model: that scores.
        tokenizer: of the checkpoint.
        task: with its items, shuffled.
        batch_size: most rows of one forward pass.
        on_progress: called with (label, done, n) after every forward pass.
        kept: takes the scores of every forward pass, and has those of an earlier start, which are not computed again.
            The passes are the same either way.
        stop: asked before every forward pass.

    Raises:
        Stopped: between two passes, where `stop` says yes.
    """
    kept = kept or Kept(None, "")
    finished = _finished_items(task, kept)
    if finished:
        return finished
    scorer = _Scorer(model, task, batch_size, on_progress, kept, stop)
    prompts = Prompts(tokenizer, task)
    items: list[Item] = []
    for start in range(0, task.n, CHUNK_ITEMS):
        stop_if(stop)
        indices = range(start, min(start + CHUNK_ITEMS, task.n))
        options = [spans(task.kind, encoded) for encoded in prompts.encode(indices)]
        units: list[Unit] = []
        for index, of_item in zip(indices, options, strict=True):
            units += units_of(index, of_item, scorer.limit)
        scores = scorer.scores(units, indices)
        for index, of_item in zip(indices, options, strict=True):
            of_options = [scores.get((index, option)) for option in range(len(of_item))]
            items.append(_item(task, index, of_options))
    kept.add({"items": [[item.correct, item.prediction, item.losses] for item in items]})
    return items


class _Scorer:
    """Scores units of a task with a model, and keeps what it scored. limit: tokens of a row."""

    def __init__(
        self,
        model: GPT,
        task: Task,
        batch_size: int,
        on_progress: Progress | None,
        kept: Kept,
        stop: Callable[[], bool],
    ) -> None:
        self.model, self.task, self.batch_size = model, task, batch_size
        self.on_progress, self.kept, self.stop = on_progress, kept, stop
        self.known = _known_scores(kept)
        self.limit = model.config.seq_len

    def scores(self, units: list[Unit], indices: range) -> Scores:
        """The scores of every option of the units, which are those of the items `indices`."""
        tokens = CPU_TOKENS if self.model.device.type == "cpu" else self.batch_size * self.limit
        scores: Scores = {}
        done = 0
        for batch in batches(units, self.batch_size, tokens, self.limit):
            done += len(batch)
            owners = [(unit.item, option) for unit in batch for option, _ in unit.tails]
            if all(owner in self.known for owner in owners):
                scores |= {owner: self.known[owner] for owner in owners}
                continue
            stop_if(self.stop)
            fresh = score_units(self.model, batch)
            self.kept.add({"scores": [[*owner, *score] for owner, score in fresh.items()]})
            scores |= fresh
            if self.on_progress:
                reached = indices.start + len(indices) * done // len(units)
                self.on_progress(self.task.label, reached, self.task.n)
        return scores


def _item(task: Task, index: int, scores: list[OptionScore | None]) -> Item:
    losses = tuple(score[0] if score else None for score in scores)
    if task.kind == "language_modeling":
        return Item(task.label, index, scores[0] is not None and scores[0][1], None, losses)
    # An option without a loss counts as the reference protocol's nan does: chosen if first, else never.
    values = [math.nan if loss is None else loss for loss in losses]
    prediction = values.index(min(values))
    return Item(task.label, index, prediction == task.rows[index]["gold"], prediction, losses)


# ---------------------------------------------------------------- resume


def _model_digest(model: GPT) -> str:
    """Names the weights, their shape and the arithmetic."""
    digest = hashlib.sha256(repr((model.config, model.vocab_size, model.compute_dtype)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _task_key(task: Task, identity: str, tokenizer: Tokenizer) -> str:
    """Names all that a task's outcomes are a function of."""
    sample = tokenizer.encode(json.dumps(task.rows[:PROBES], ensure_ascii=False))
    asked = (
        task.label,
        task.kind,
        task.shots,
        task.delimiter,
        task.n,
        len(task.rows),
        task.digest,
        sample,
    )
    return hashlib.sha256(repr((identity, asked)).encode()).hexdigest()


def _finished_items(task: Task, kept: Kept) -> list[Item]:
    """The outcomes of a task that was finished before; empty for another."""
    for row in kept.rows:
        if "items" in row:
            return [
                Item(task.label, index, correct, prediction, tuple(losses))
                for index, (correct, prediction, losses) in enumerate(row["items"])
            ]
    return []


def _known_scores(kept: Kept) -> Scores:
    """What forward passes of an earlier start scored."""
    return {
        (item, option): (loss, hit)
        for row in kept.rows
        for item, option, loss, hit in row.get("scores", [])
    }

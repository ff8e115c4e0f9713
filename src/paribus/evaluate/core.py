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
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.data.core_bundle import Row, Task, read_bundle
from paribus.data.paths import inside
from paribus.data.sealed import sealed_by_files
from paribus.data.tokenizer import Tokenizer
from paribus.evaluate.kept import Kept, never, stop_if
from paribus.files import write_atomic
from paribus.model.cache import KVCache
from paribus.model.gpt import GPT

FEW_SHOT_SEED = 1234
CHUNK_ITEMS = 256  # items tokenised and sorted by length together: bounds the tokens held in memory
CPU_TOKENS = (
    2048  # of one forward pass on a CPU, whose caches a larger batch outgrows (benchmarks/core.py)
)
READ_CHUNK = 512  # places whose logits exist at once
PROBES = 4  # items of a task on which tokenising in parts is compared with tokenising whole

Progress = Callable[[str, int, int], None]
OptionScore = tuple[float, bool]  # mean loss in nats a token, every token the likeliest
Scores = dict[tuple[int, int], OptionScore]  # by (item, option)


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

    stderr: of the accuracy as an estimate for questions of this sort, sqrt(p (1 - p) / n): fewer items, wider.
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

    batch_size: most rows of one forward pass; changes nothing but rounding. synthetic: the embedded world's tasks,
    whose mean is `core` and whose files must all be there; otherwise the bundle counts as CORE only with all 22
    tasks. cache: a folder that keeps what is scored, so that a run that was killed or stopped goes on where it was.
    on_progress(label, done, n) is called after every forward pass. stop() is asked before every forward pass.
    Raises Stopped where it says yes;
    raises UserError, before any compute, with every missing or malformed file and line.
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
        )
        for task in read.tasks
    }
    partial = read.partial and not synthetic
    return CoreResult(
        scores, tuple(items), read.missing, partial, "synthetic" if synthetic else read.digest
    )


def write_items(folder: Path, result: CoreResult) -> None:
    """Write summary.json and items.parquet (task, index, correct, prediction, losses), for paired comparisons."""
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
    """Accuracy above guessing: 0 for a guess, 1 for all right."""
    return (accuracy - baseline) / (1 - baseline)


def stderr_of_mean(stderrs: list[float]) -> float:
    """Standard error of the mean of independent estimates."""
    return math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(stderrs)


def score_task(correct: list[bool], baseline: float, population: int) -> TaskScore:
    """Accuracy, centred accuracy and their standard errors.

    correct: the n outcomes. baseline: the accuracy of a guess. population: items of the task, asked or not.
    """
    n = len(correct)
    accuracy = sum(correct) / n
    stderr = math.sqrt(accuracy * (1 - accuracy) / n)
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


# ---------------------------------------------------------------- prompts


def few_shot_indices(task: Task, index: int) -> list[int]:
    """The rows shown before item `index`: drawn from all the others by a generator of its own."""
    drawn = random.Random(FEW_SHOT_SEED + index).sample(range(len(task.rows) - 1), task.shots)
    return [other + (other >= index) for other in drawn]


def candidates(kind: str, row: Row) -> list[tuple[str, str]]:
    """(what comes before the delimiter, what comes after) for every option; language modelling has one."""
    if kind == "multiple_choice":
        return [(row["query"], choice) for choice in row["choices"]]
    if kind == "schema":
        return [(context, row["continuation"]) for context in row["context_options"]]
    return [(row["context"].strip(), row["continuation"])]


def example(task: Task, index: int) -> str:
    """A row as a few-shot example: with its right answer, and the blank line after it."""
    before, after = candidates(task.kind, task.rows[index])[task.rows[index].get("gold", 0)]
    return before + task.delimiter + after + "\n\n"


def question(task: Task, index: int) -> list[str]:
    """The item itself, once per option; in language modelling without its continuation, then with it."""
    texts = [
        before + task.delimiter + after for before, after in candidates(task.kind, task.rows[index])
    ]
    if task.kind == "language_modeling":
        texts.insert(0, texts[0].removesuffix(task.rows[index]["continuation"]))
    return texts


class Prompts:
    """Token ids of the prompts of a task's items, each the ids of the whole text behind <|bos|>.

    A few-shot example serves many items, so each is tokenised once and the ids are joined. That gives the ids of
    the whole text as long as the tokenizer cuts after a blank line; this is tried on the first items of the task,
    and text with white space where the parts meet is always tokenised whole.
    """

    def __init__(self, tokenizer: Tokenizer, task: Task) -> None:
        self.tokenizer, self.task = tokenizer, task
        self._examples: dict[int, array[int]] = {}
        probes = range(min(PROBES, task.n))
        self.joins = task.shots > 0 and all(
            not joined or joined == whole
            for joined, whole in zip(self._joined(probes), self._whole(probes), strict=True)
        )

    def encode(self, indices: range) -> list[list[list[int]]]:
        """Token ids of every prompt of the items `indices`.

        result[i][p] is prompt p (one for each option) of item i, opened by <|bos|>.
        """
        if not self.joins:
            return self._whole(indices)
        joined = zip(indices, self._joined(indices), strict=True)
        return [prompts or self._whole(range(index, index + 1))[0] for index, prompts in joined]

    def _whole(self, indices: range) -> list[list[list[int]]]:
        texts = []
        for index in indices:
            shown = "".join(
                example(self.task, other) for other in few_shot_indices(self.task, index)
            )
            texts.append([shown + text for text in question(self.task, index)])
            if self.task.kind == "language_modeling":
                texts[-1][0] = texts[-1][0].strip()
        return self._encode(texts)

    def _joined(self, indices: range) -> list[list[list[int]]]:
        """The same from parts; no prompts for an item whose parts do not start with a visible character."""
        shown = [few_shot_indices(self.task, index) for index in indices]
        self._encode_examples({other for others in shown for other in others})
        questions = [question(self.task, index) for index in indices]
        if self.task.kind == "language_modeling":
            for texts in questions:
                texts[0] = texts[0].rstrip()
        encoded = self._encode(questions)
        prompts = []
        for others, texts, tails in zip(shown, questions, encoded, strict=True):
            prompts.append(self._join(others, texts, tails))
        return prompts

    def _encode_examples(self, wanted: set[int]) -> None:
        """Keep the ids of few-shot examples, none for one that does not start with a visible character."""
        new = sorted(wanted - self._examples.keys())
        texts = [example(self.task, other) for other in new]
        for other, text, ids in zip(new, texts, self.tokenizer.encode_batch(texts), strict=True):
            self._examples[other] = array("i", [] if text[0].isspace() else ids)

    def _join(self, others: list[int], texts: list[str], tails: list[list[int]]) -> list[list[int]]:
        if not all(self._examples[other] for other in others):
            return []
        if any(not text or text[0].isspace() for text in texts):
            return []
        head = [self.tokenizer.bos]
        for other in others:
            head.extend(self._examples[other])
        return [head + tail[1:] for tail in tails]

    def _encode(self, texts: list[list[str]]) -> list[list[list[int]]]:
        """The ids of nested texts, each behind <|bos|>."""
        ids = iter(self.tokenizer.encode_batch([text for group in texts for text in group]))
        return [[[self.tokenizer.bos, *next(ids)] for _ in group] for group in texts]


def common_prefix(sequences: list[list[int]]) -> int:
    """Tokens that all sequences start with, by bisection (comparing slices is quick)."""
    low, high = 0, min(map(len, sequences))
    while low < high:
        middle = (low + high + 1) // 2
        if all(sequence[:middle] == sequences[0][:middle] for sequence in sequences):
            low = middle
        else:
            high = middle - 1
    return low


def spans(kind: str, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
    """(tokens, first token to score) of every option; the last to score is the last."""
    if kind == "schema":
        suffix = common_prefix([prompt[::-1] for prompt in prompts])
        return [(prompt, len(prompt) - suffix) for prompt in prompts]
    start = common_prefix(prompts)
    return [(prompt, start) for prompt in (prompts[1:] if kind == "language_modeling" else prompts)]


# ---------------------------------------------------------------- forward passes


@dataclass(frozen=True)
class Unit:
    """Options of one item that share a prefix: `tails` has (option, tokens to score)."""

    item: int
    prefix: list[int]
    tails: list[tuple[int, list[int]]]

    @property
    def trunk(self) -> list[int]:
        """What is forwarded once: the prefix, and an only tail with it. The last token of a tail predicts nothing."""
        return self.prefix if len(self.tails) > 1 else self.prefix + self.tails[0][1][:-1]

    @property
    def asked(self) -> int:
        """Places read at the end of the trunk."""
        return 1 if len(self.tails) > 1 else len(self.tails[0][1])

    @property
    def branches(self) -> list[list[int]]:
        """What is forwarded behind the trunk, for each of several tails."""
        return [tail[:-1] for _, tail in self.tails] if len(self.tails) > 1 else []


def units_of(item: int, options: list[tuple[list[int], int]], limit: int) -> list[Unit]:
    """Group an item's options by prefix, after dropping tokens on the left until each fits `limit`.

    Nothing to score, or no token left before it: the option is in no unit, and has no loss.
    """
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for option, (tokens, start) in enumerate(options):
        cut = max(len(tokens) - limit, 0)
        if cut < start < len(tokens):
            groups.setdefault(tuple(tokens[cut:start]), []).append((option, tokens[start:]))
    # Longest tails first: the n-th tails of several items then differ least in length, and need least padding.
    return [
        Unit(item, list(prefix), sorted(tails, key=lambda tail: -len(tail[1])))
        for prefix, tails in groups.items()
    ]


def batches(units: list[Unit], rows: int, tokens: int, limit: int) -> Iterator[list[Unit]]:
    """Units of like length together.

    rows: most units of a batch. tokens: most tokens of their trunks, padding included; a unit alone may have more.
    limit: most tokens of a trunk and its longest branch.
    """
    batch: list[Unit] = []
    reach = 0
    for unit in sorted(units, key=lambda unit: len(unit.trunk)):
        width, own = len(unit.trunk), max(map(len, unit.branches), default=0)
        reach = max(reach, own)
        if batch and (
            len(batch) == rows or (len(batch) + 1) * width > tokens or width + reach > limit
        ):
            yield batch
            batch, reach = [], own
        batch.append(unit)
    if batch:
        yield batch


def score_units(model: GPT, units: list[Unit]) -> Scores:
    """(item, option) -> mean loss in nats per token, and whether every token was the likeliest."""
    trunk, branches = forward_units(model, units)
    hidden: list[Tensor] = []
    for row, unit in enumerate(units):
        for place, (_, tail) in enumerate(unit.tails):
            hidden.append(trunk[row, -unit.asked :])
            if unit.branches:
                hidden.append(branches[place][row, : len(tail) - 1])
    tails = [((unit.item, option), tail) for unit in units for option, tail in unit.tails]
    losses, hits = read_tokens(
        model, torch.cat(hidden), [token for _, tail in tails for token in tail]
    )
    scores: Scores = {}
    start = 0
    for owner, tail in tails:
        end = start + len(tail)
        scores[owner] = sum(losses[start:end]) / len(tail), all(hits[start:end])
        start = end
    return scores


def forward_units(model: GPT, units: list[Unit]) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of the places whose next token is scored.

    Returns those at the last R places asked of each trunk, (B, R, D), and for each n those of every unit's n-th branch,
    (B, T, D).
    """
    trunks = [unit.trunk for unit in units]
    # the n-th branches of all units are forwarded together; a unit without one has an empty row
    levels = [[*level] for level in zip_longest(*(unit.branches for unit in units), fillvalue=[])]
    reach = max((len(branch) for level in levels for branch in level), default=0)
    lengths = torch.tensor([len(trunk) for trunk in trunks], device=model.device)
    asked = max(unit.asked for unit in units)
    places = (lengths[:, None] + torch.arange(-asked, 0, device=model.device)).clamp(min=0)
    cache = None
    if reach:
        capacity = max(map(len, trunks)) + reach
        cache = KVCache(model.config, len(units), capacity, model.device, model.compute_dtype)
    trunk = model.hidden(pad(trunks, model.device), cache=cache, read=places)
    nothing = trunk[:, :0]
    if cache is None:
        return trunk, [nothing] * len(levels)
    cache.advance(lengths)
    # Every branch starts behind the trunk: the cache does not advance, each is written over the one before.
    branches = []
    for level in levels:
        hidden = model.hidden(pad(level, model.device), cache=cache) if any(level) else nothing
        branches.append(hidden)
    return trunk, branches


def read_tokens(model: GPT, hidden: Tensor, targets: list[int]) -> tuple[list[float], list[bool]]:
    """Cross-entropy in nats of each of N targets, and whether it is the likeliest token. hidden (N, D)."""
    losses: list[float] = []
    hits: list[bool] = []
    wanted = torch.tensor(targets, device=model.device)
    for part, target in zip(hidden.split(READ_CHUNK), wanted.split(READ_CHUNK), strict=True):
        logits = model.logits(part)
        losses += torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
        hits += (logits.argmax(dim=-1) == target).tolist()
    return losses, hits


def pad(rows: list[list[int]], device: torch.device) -> Tensor:
    """(B, T) int64, filled with 0 on the right: causal attention never looks there."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


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

    batch_size: most rows of one forward pass. on_progress(label, done, n): called after every forward pass.
    kept: takes the scores of every forward pass, and has those of an earlier start, which are not computed again. The
    passes are the same either way. Raises Stopped between two passes where stop() is true.
    """
    kept = kept or Kept(None, "")
    finished = _finished_items(task, kept)
    if finished:
        return finished
    scorer = _Scorer(model, batch_size, kept, stop)
    prompts = Prompts(tokenizer, task)
    items: list[Item] = []
    for start in range(0, task.n, CHUNK_ITEMS):
        stop_if(stop)
        indices = range(start, min(start + CHUNK_ITEMS, task.n))
        options = [spans(task.kind, encoded) for encoded in prompts.encode(indices)]
        units: list[Unit] = []
        for index, of_item in zip(indices, options, strict=True):
            units += units_of(index, of_item, scorer.limit)
        scores: Scores = {}
        done = 0
        for batch in batches(units, batch_size, scorer.tokens, scorer.limit):
            done += len(batch)
            found, is_fresh = scorer.scores(batch)
            scores |= found
            if is_fresh and on_progress:
                on_progress(task.label, start + len(indices) * done // len(units), task.n)
        for index, of_item in zip(indices, options, strict=True):
            of_options = [scores.get((index, option)) for option in range(len(of_item))]
            items.append(_item(task, index, of_options))
    kept.add({"items": [[item.correct, item.prediction, item.losses] for item in items]})
    return items


class _Scorer:
    """Scores batches of units with a model, and keeps what it scored. limit: tokens of a row; tokens: of a batch."""

    def __init__(self, model: GPT, batch_size: int, kept: Kept, stop: Callable[[], bool]) -> None:
        self.model, self.kept, self.stop = model, kept, stop
        self.known = _known_scores(kept)
        self.limit = model.config.seq_len
        self.tokens = CPU_TOKENS if model.device.type == "cpu" else batch_size * self.limit

    def scores(self, batch: list[Unit]) -> tuple[Scores, bool]:
        """The scores of every option in the batch, and whether they took a forward pass because none were kept."""
        owners = [(unit.item, option) for unit in batch for option, _ in unit.tails]
        if all(owner in self.known for owner in owners):
            return {owner: self.known[owner] for owner in owners}, False
        stop_if(self.stop)
        fresh = score_units(self.model, batch)
        self.kept.add({"scores": [[*owner, *score] for owner, score in fresh.items()]})
        return fresh, True


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

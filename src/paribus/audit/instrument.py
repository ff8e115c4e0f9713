"""How good an instrument an evaluation is: its noise, the effect it can detect, and which of its tasks tell recipes apart.

From what runs leave behind: the outcome of every item, and curves of pretraining. A *recipe* is all runs whose parameters
differ in the seed alone.

- **Detectable effect**: the true difference between two models that is found four times in five, two-sided at .05:
  (z(.975) + z(.8)) x standard error; of two models on their own, and of pairs that answered the same items.
- **Resampling** (sampled answers): the variance of an item's share of right answers is that between items plus that of
  drawing K answers, over K; only the first is left where answers are drawn without end.
- **Signal to noise**: the range of the recipes' mean scores over the pooled standard deviation between seeds of one recipe;
  the subset is that of the tasks in order of their ratio whose mean has the highest.
- **Last checkpoints**: the scatter of the last looks of a curve about a straight line; and how much less their mean varies
  from seed to seed than the last look alone.

Sources: Miller (2024), arXiv:2411.00640, detectable effects, paired differences and resampling; Heineman et al. (2025),
arXiv:2508.13144, signal and noise, subsets, averaged checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from paribus.curriculum import CHECKPOINT_NAMES
from paribus.errors import UserError
from paribus.study.finished import FinishedRun

Floats = NDArray[np.float64]

# Standard errors that are found with power .8.
FOUND = float(special.ndtri(0.975) + special.ndtri(0.8))
LAST = 5  # looks of a curve that count as its last, as in arXiv:2508.13144
FEWEST_LOOKS = 4  # with which a scatter about a line has a spread
FEWEST_SEEDS = 3  # of a recipe, for a spread between seeds of the last look
CORE = "core"


@dataclass(frozen=True)
class Answered:
    """One evaluation of one run: task -> outcomes (items,), of CORE above guessing; and what sampled answers gave.

    Attributes:
        tasks: their outcomes; their means' mean is the score.
        stderrs: task -> standard error of its mean, at least what one item makes, as at a floor none differs.
        drawn: (items, 2) right answers and answers that were sampled; None: there are none.
    """

    tasks: Mapping[str, Floats]
    stderrs: Mapping[str, float]
    drawn: Floats | None = None


@dataclass(frozen=True)
class Scale:
    """What an evaluation, or a task of it, can tell.

    Attributes:
        name: of it.
        items: that it asks.
        score: mean over the runs.
        stderr: of one run's score, from items.
        detectable: difference of two runs on their own.
        detectable_paired: difference of two runs item by item; None: there is one run.
        noise: standard deviation between seeds of one recipe; None: no recipe has two seeds.
        signal: range of the recipes' means; None: there is one recipe.
    """

    name: str
    items: int
    score: float
    stderr: float
    detectable: float
    detectable_paired: float | None
    noise: float | None
    signal: float | None

    @property
    def signal_to_noise(self) -> float | None:
        """The range of the recipes over the noise of seeds; None where either is unknown, or there is no noise."""
        if not self.noise or self.signal is None:
            return None
        return self.signal / self.noise


@dataclass(frozen=True)
class Subset:
    """The tasks that tell the recipes apart best.

    Attributes:
        tasks: in order of their ratio of signal to noise.
        ratio: of their mean; whole: of the mean of all tasks, on the same runs.
        held_out: whether the tasks were chosen on other seeds than the ratios are of.
    """

    tasks: tuple[str, ...]
    ratio: float
    whole: float
    held_out: bool


@dataclass(frozen=True)
class Resampling:
    """The variance of sampled answers, of one evaluation.

    Attributes:
        answers: to each item.
        between: variance of the items' chances; drawing: of one drawn answer about them, in the mean.
        stderr: of the score with these answers; without_drawing: with endless ones.
    """

    name: str
    items: int
    answers: int
    between: float
    drawing: float
    stderr: float
    without_drawing: float


@dataclass(frozen=True)
class Looks:
    """The last looks of a curve.

    Attributes:
        name: of the column.
        looks: that count as last.
        scatter: standard deviation about a line over them, pooled over the runs.
        last: standard deviation between seeds of the last look; mean: of the mean of the last looks. None: too few seeds.
    """

    name: str
    looks: int
    scatter: float
    last: float | None
    mean: float | None


@dataclass(frozen=True)
class Instrument:
    """What evaluations can tell, by the runs that were looked at."""

    runs: tuple[str, ...]
    recipes: int
    scales: tuple[Scale, ...]
    subset: Subset | None
    resampling: tuple[Resampling, ...]
    looks: tuple[Looks, ...]


def instrument(runs: Sequence[FinishedRun]) -> Instrument:
    """What the evaluations of these runs can tell.

    Args:
        runs: of one recipe or several, at one seed or several.

    Raises:
        UserError: where no run kept the items of an evaluation, or runs answered different items.
    """
    answered = _answered(runs)
    if not answered:
        raise UserError(
            f"{', '.join(run.name for run in runs[:5])}: no items of an evaluation are kept; `dvc repro core` or "
            "`dvc repro gsm8k` makes them, and the stages of a study keep them where core or gsm8k_stage is among them"
        )
    recipes = recipes_of(runs)
    scales, resampling = [], []
    for name, of_runs in answered.items():
        scales += _scales(name, of_runs, recipes)
        found = _resampling(name, of_runs)
        if found:
            resampling.append(found)
    subset = best_subset(_task_scores(answered[CORE]), recipes) if CORE in answered else None
    return Instrument(
        runs=tuple(run.name for run in runs),
        recipes=len(set(recipes)),
        scales=tuple(scales),
        subset=subset,
        resampling=tuple(resampling),
        looks=tuple(_last_looks(runs, recipes)),
    )


def recipes_of(runs: Sequence[FinishedRun]) -> list[int]:
    """The number of each run's recipe: runs of the same code whose parameters differ in the seed alone have the same."""
    numbers: dict[str, int] = {}
    found = []
    for run in runs:
        params = {name: value for name, value in run.params.items() if name != "seed"}
        written = run.provenance(run.stages[0]) if run.stages else None
        code = written.code if written else {}
        key = repr([sorted(params.items()), sorted(code.items())])
        found.append(numbers.setdefault(key, len(numbers)))
    return found


# ---------------------------------------------------------------- reading


def _answered(runs: Sequence[FinishedRun]) -> dict[str, list[Answered]]:
    """Evaluation -> what every run answered; evaluations that a run did not keep are left out."""
    readers = {CORE: _core} | {f"gsm8k.{name}": _gsm8k for name in CHECKPOINT_NAMES}
    found: dict[str, list[Answered]] = {}
    problems = []
    for name, read in readers.items():
        of_runs = [read(run, name) for run in runs]
        there = [one for one in of_runs if one is not None]
        if len(there) < len(runs):
            continue
        sizes = [{task: len(outcomes) for task, outcomes in one.tasks.items()} for one in there]
        if any(size != sizes[0] for size in sizes):
            problems.append(
                f"{name}: the runs answered different items; compare runs of one bundle"
            )
        found[name] = there
    if problems:
        raise UserError(problems)
    return found


def _rows(run: FinishedRun, path: str, columns: Sequence[str]) -> list[dict[str, object]] | None:
    import pyarrow
    import pyarrow.parquet

    place = run.files.place(path)
    if place is None or not place.is_file():
        return None
    try:
        rows: list[dict[str, object]] = pyarrow.parquet.read_table(
            place, columns=list(columns)
        ).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{run.name}: {path}: damaged: {str(error).splitlines()[0]}") from None
    return rows


def _core(run: FinishedRun, _: str) -> Answered | None:
    rows = _rows(run, "evals/core/items.parquet", ["task", "correct"])
    if rows is None:
        return None
    by_task: dict[str, list[float]] = {}
    for row in rows:
        by_task.setdefault(str(row["task"]), []).append(float(bool(row["correct"])))
    tasks, stderrs = {}, {}
    for task, correct in by_task.items():
        guess = run.numbers.get(f"core.tasks.{task}.baseline", 0.0)
        outcomes = (np.array(correct) - guess) / (1 - guess)
        tasks[task] = outcomes
        known = run.numbers.get(f"core.tasks.{task}.centered_stderr")
        own = _stderr(outcomes) if known is None else known
        stderrs[task] = max(own, 1 / (1 - guess) / len(correct))
    return Answered(tasks, stderrs)


def _gsm8k(run: FinishedRun, name: str) -> Answered | None:
    stage = name.partition(".")[2]
    columns = ["correct", "n_samples", "n_correct"]
    rows = _rows(run, f"evals/gsm8k/{stage}/items.parquet", columns)
    if not rows:
        return None
    values = np.array([[row[key] for key in columns] for row in rows], dtype=float)
    correct = values[:, 0]
    stderr = max(_stderr(correct), 1 / len(correct))
    drawn = values[values[:, 1] > 1]
    return Answered({name: correct}, {name: stderr}, drawn[:, [2, 1]] if len(drawn) > 1 else None)


def _stderr(outcomes: Floats) -> float:
    return float(outcomes.std() / math.sqrt(len(outcomes)))


# ---------------------------------------------------------------- what a scale can tell


def _scales(name: str, of_runs: Sequence[Answered], recipes: Sequence[int]) -> list[Scale]:
    """The scale of an evaluation, and of each of its tasks where it has several."""
    tasks = list(of_runs[0].tasks)
    scales = [_scale(name, of_runs, recipes, tasks)]
    if len(tasks) > 1:
        scales += [_scale(f"{name}: {task}", of_runs, recipes, [task]) for task in tasks]
    return scales


def _scale(
    name: str, of_runs: Sequence[Answered], recipes: Sequence[int], tasks: Sequence[str]
) -> Scale:
    scores = np.array(
        [np.mean([one.tasks[task].mean() for task in tasks]) for one in of_runs], dtype=float
    )
    own = [_over_tasks([one.stderrs[task] for task in tasks]) for one in of_runs]
    stderr = float(np.mean(own))
    paired = _paired_error(of_runs, recipes, tasks)
    noise, signal = noise_and_signal(scores, recipes)
    return Scale(
        name=name,
        items=sum(len(of_runs[0].tasks[task]) for task in tasks),
        score=float(scores.mean()),
        stderr=stderr,
        detectable=FOUND * math.sqrt(2) * stderr,
        detectable_paired=None if paired is None else FOUND * paired,
        noise=noise,
        signal=signal,
    )


def _over_tasks(stderrs: Sequence[float]) -> float:
    """Standard error of the mean over independent tasks."""
    return math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(stderrs)


def _paired_error(
    of_runs: Sequence[Answered], recipes: Sequence[int], tasks: Sequence[str]
) -> float | None:
    """Standard error of a difference item by item, in the mean over pairs of runs: of two recipes, if there are two."""
    pairs = list(combinations(range(len(of_runs)), 2))
    apart = [(a, b) for a, b in pairs if recipes[a] != recipes[b]]
    errors = []
    for a, b in apart or pairs:
        own = []
        for task in tasks:
            difference = of_runs[a].tasks[task] - of_runs[b].tasks[task]
            own.append(float(difference.std()) / math.sqrt(len(difference)))
        errors.append(_over_tasks(own))
    return float(np.mean(errors)) if errors else None


def noise_and_signal(scores: Floats, recipes: Sequence[int]) -> tuple[float | None, float | None]:
    """(standard deviation between seeds of a recipe, pooled; range of the recipes' means), None where it is unknown.

    Args:
        scores: (runs,).
        recipes: the number of each run's recipe.
    """
    groups = [scores[np.array(recipes) == number] for number in sorted(set(recipes))]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    noise = math.sqrt(squares / freedom) if freedom else None
    means = [float(group.mean()) for group in groups]
    return noise, max(means) - min(means) if len(means) > 1 else None


# ---------------------------------------------------------------- a subset of tasks


def _task_scores(of_runs: Sequence[Answered]) -> dict[str, Floats]:
    """Task -> score of each run."""
    return {
        task: np.array([one.tasks[task].mean() for one in of_runs]) for task in of_runs[0].tasks
    }


def best_subset(scores: Mapping[str, Floats], recipes: Sequence[int]) -> Subset | None:
    """The tasks that tell the recipes apart best; None where no recipe has two runs, or there is one recipe or one task.

    With four runs of each recipe the tasks are chosen on every other one, and the ratios are of the rest: chosen and measured
    on the same runs a subset looks better than it is.

    Args:
        scores: task -> (runs,).
        recipes: the number of each run's recipe.
    """
    all_runs = np.arange(len(recipes))
    counted = [list(recipes).count(number) for number in set(recipes)]
    held_out = min(counted) >= 4
    choosing, measuring = all_runs, all_runs
    if held_out:
        half = _every_other(recipes)
        choosing, measuring = all_runs[half], all_runs[~half]
    chosen = _chosen(scores, recipes, choosing)
    if len(scores) < 2 or not chosen:
        return None
    ratio = _ratio(scores, chosen, recipes, measuring)
    whole = _ratio(scores, list(scores), recipes, measuring)
    return Subset(tuple(chosen), ratio, whole, held_out)


def _every_other(recipes: Sequence[int]) -> NDArray[np.bool_]:
    """Marks the first, third, … run of each recipe."""
    seen: dict[int, int] = {}
    marks = []
    for recipe in recipes:
        seen[recipe] = seen.get(recipe, 0) + 1
        marks.append(seen[recipe] % 2 == 1)
    return np.array(marks)


def _chosen(
    scores: Mapping[str, Floats], recipes: Sequence[int], runs: NDArray[np.int64]
) -> list[str]:
    """The tasks, best first, up to the number of them whose mean has the highest ratio; [] where ratios are unknown."""
    alone = {task: _ratio(scores, [task], recipes, runs) for task in scores}
    ranked = sorted(alone, key=lambda task: -alone[task])
    ratios = [_ratio(scores, ranked[:count], recipes, runs) for count in range(1, len(ranked) + 1)]
    if not any(ratios):
        return []
    return ranked[: int(np.argmax(ratios)) + 1]


def _ratio(
    scores: Mapping[str, Floats],
    tasks: Sequence[str],
    recipes: Sequence[int],
    runs: NDArray[np.int64],
) -> float:
    """Signal to noise of the mean of some tasks on some runs; 0 where it is unknown."""
    mean = np.mean([scores[task] for task in tasks], axis=0)[runs]
    noise, signal = noise_and_signal(mean, [recipes[run] for run in runs])
    return signal / noise if noise and signal is not None else 0.0


# ---------------------------------------------------------------- resampling, checkpoints


def _resampling(name: str, of_runs: Sequence[Answered]) -> Resampling | None:
    """The variances of sampled answers, in the mean over the runs; None where a run has none."""
    drawn = [one.drawn for one in of_runs if one.drawn is not None]
    if len(drawn) < len(of_runs):
        return None
    parts = np.array([variances(one[:, 0], one[:, 1]) for one in drawn])
    between, drawing = (float(value) for value in parts.mean(axis=0))
    items, answers = len(drawn[0]), float(drawn[0][:, 1].mean())
    return Resampling(
        name=name,
        items=items,
        answers=round(answers),
        between=between,
        drawing=drawing,
        stderr=math.sqrt((between + drawing / answers) / items),
        without_drawing=math.sqrt(between / items),
    )


def variances(right: Floats, answers: Floats) -> tuple[float, float]:
    """(variance of the items' chances, variance of one drawn answer about its item's chance).

    Args:
        right: answers of each item that are right.
        answers: of each item, at least 2.
    """
    shares = right / answers
    drawing = float((shares * (1 - shares) * answers / (answers - 1)).mean())
    between = float(shares.var(ddof=1)) - drawing * float((1 / answers).mean())
    return max(between, 0.0), drawing


def _last_looks(runs: Sequence[FinishedRun], recipes: Sequence[int]) -> list[Looks]:
    """The last looks of every measured column of pretraining's curves."""
    found = []
    for column in ("val_bpb", "val_core", "val_core_partial"):
        curves = [_column(run, column) for run in runs]
        count = min(len(curve) for curve in curves)
        if count < FEWEST_LOOKS:
            continue
        looks = min(LAST, count)
        last = np.array([curve[-looks:] for curve in curves])
        enough = any(list(recipes).count(number) >= FEWEST_SEEDS for number in recipes)
        found.append(
            Looks(
                name=column,
                looks=looks,
                scatter=scatter(last),
                last=noise_and_signal(last[:, -1], recipes)[0] if enough else None,
                mean=noise_and_signal(last.mean(axis=1), recipes)[0] if enough else None,
            )
        )
    return found


def scatter(last: Floats) -> float:
    """Standard deviation of looks (runs, looks) about each run's straight line."""
    looks = last.shape[1]
    place = np.arange(looks) - (looks - 1) / 2
    slope = (last @ place) / (place @ place)
    rest = last - last.mean(axis=1, keepdims=True) - slope[:, None] * place
    return math.sqrt(float((rest**2).sum()) / (len(last) * (looks - 2)))


def _column(run: FinishedRun, column: str) -> list[float]:
    """The measured values of a column, in order."""
    values = []
    for row in run.curve("pretrain"):
        text = row.get(column)
        if text:
            values.append(float(text))
    return [value for value in values if math.isfinite(value)]

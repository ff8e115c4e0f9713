"""`paribus compare A B`: everything that differs between two runs, or two sets of seeds.

It also shows how the metrics changed, with an interval wherever items or seeds give one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click

from paribus import graph
from paribus.audit.agreement import edited_outputs
from paribus.audit.lookup import find_all
from paribus.config import flatten
from paribus.git import try_git
from paribus.journal import plain
from paribus.study.finished import CHECKPOINTS, FinishedRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType

    from paribus.study.items import ItemEffect

ALPHA = 0.05
ITEMS = {"core.core": "evals/core/items.parquet"} | {
    f"gsm8k.{path.removeprefix('checkpoints/')}.accuracy": f"evals/gsm8k/{path.removeprefix('checkpoints/')}/items.parquet"
    for path in CHECKPOINTS.values()
}
HASH = re.compile(r"[0-9a-f]{32,}(\.dir)?")
_HELPERS = re.compile(
    r"\.(ci_low|ci_high|n|stderr|\w+_stderr|baseline|population)$|\.tasks\.|\.by_steps\.|\.paired\.|\.seconds$"
)
LOGGED_ENVIRONMENT = ("hardware", "dtype", "threads", "processes")  # tags of MLflow's
CodeKind = Literal["code", "deps"]
# Of A and of B; a list where the runs of one side disagree, None where nothing is kept.
Pair = tuple[Any, Any]
RunPair = tuple[FinishedRun, FinishedRun]
Item = tuple[str, int]  # task, index


@dataclass(frozen=True)
class Measured:
    """A metric of both sides: their means, B - A with its 95 % interval and p where there is one, and where it comes from."""

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    how: str

    def as_json(self) -> dict[str, object]:
        """Its fields; infinite bounds as JSON has them."""
        return {key: plain(value) for key, value in vars(self).items()}

    @property
    def equal(self) -> bool:
        """Whether it is the same in A and B, item by item where there are items."""
        return not self.difference and self.low == self.high


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between A and B, and the metrics of both."""

    a: list[str]
    b: list[str]
    params: dict[str, Pair]
    code: dict[str, Pair]  # source file, or folder, that decides a result -> digests
    other_code: list[str]  # source files that differ between the commits and decided no result
    trees: dict[str, Pair]  # commit, uncommitted changes
    data: dict[str, Pair]  # data that differ in their own right
    outputs: dict[str, Pair]  # data that differ because their inputs do
    environment: dict[str, Pair]
    metrics: dict[str, Measured]
    # Run -> outputs that were changed after it ended.
    edited: dict[str, list[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The comparison as `paribus compare --json` prints it."""
        values = dict(vars(self))
        metrics = values.pop("metrics")
        return values | {"metrics": {name: metric.as_json() for name, metric in metrics.items()}}


def compare(a: str, b: str, json_out: bool) -> None:
    """Print what differs between two runs.

    Args:
        a: name of a run, or a pattern for several seeds of it.
        b: the same.
        json_out: print JSON instead of tables.

    Raises:
        UserError: for a name that nothing has.
    """
    differences = comparison(find_all(a), find_all(b))
    if json_out:
        click.echo(json.dumps(differences.as_json(), indent=1))
    else:
        from rich.console import Console

        Console().print(*page(differences), sep="\n")


def comparison(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> Comparison:
    """Compare B with A.

    Args:
        a: one run, or several seeds of it.
        b: the same.
    """
    scopes = {run.scope for run in [*a, *b]}
    shared_only = len(scopes) > 1
    stages = [stage for stage in a[0].stages if stage in b[0].stages]
    kind = _kind_of_code([*a, *b], stages)
    code = _differing_in(a, b, lambda run: _code(run, kind, stages))
    data = _differing_in(a, b, lambda run: run.data, shared_only)
    explained = data.keys() & _made_otherwise(a, b)
    return Comparison(
        [run.name for run in a],
        [run.name for run in b],
        params=_differing_in(a, b, lambda run: run.params, shared_only),
        code=code,
        other_code=[path for path in _changed_in_git(a, b) if not _covered(path, code)],
        trees=_differing_in(a, b, _tree),
        data={path: data[path] for path in data if path not in explained},
        outputs={path: data[path] for path in data if path in explained},
        environment=_differing_in(a, b, lambda run: _environment(run, stages)),
        metrics=measured(a, b),
        edited=_edited([*a, *b]),
    )


def _edited(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Run -> its outputs that changed after DVC noted them at its end; runs without any are left out."""
    edited = {run.name: edited_outputs(run) for run in runs}
    return {name: paths for name, paths in edited.items() if paths}


def _differing_in(
    a: Sequence[FinishedRun],
    b: Sequence[FinishedRun],
    part: Callable[[FinishedRun], Mapping[str, object]],
    shared_only: bool = False,
) -> dict[str, Pair]:
    """As `differing`, of one part of every run."""
    return differing([part(run) for run in a], [part(run) for run in b], shared_only)


def differing(
    a: Sequence[Mapping[str, object]], b: Sequence[Mapping[str, object]], shared_only: bool = False
) -> dict[str, Pair]:
    """Key -> its values in A and B, where they differ.

    Args:
        a: the mapping of each run of A.
        b: of each run of B.
        shared_only: ignore a key that one side lacks.
    """
    of_a, of_b = _values(a), _values(b)
    keys = of_a.keys() & of_b.keys() if shared_only else of_a.keys() | of_b.keys()
    pairs = {}
    for key in sorted(keys):
        if of_a.get(key) != of_b.get(key):
            pairs[key] = (_shown(of_a.get(key)), _shown(of_b.get(key)))
    return pairs


def _values(mappings: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """Key -> every value it has, as JSON, in order and each once."""
    values: dict[str, list[str]] = {}
    for key in set().union(*mappings):
        texts = {json.dumps(mapping.get(key), sort_keys=True) for mapping in mappings}
        values[key] = sorted(texts)
    return values


def _shown(values: list[str] | None) -> object:
    loaded = [json.loads(value) for value in values or []]
    return loaded[0] if len(loaded) == 1 else loaded or None


# ---------------------------------------------------------------- code, data, environment


def _kind_of_code(runs: Sequence[FinishedRun], stages: Sequence[str]) -> CodeKind:
    """The place that names the code of these runs: "deps" where an earlier paribus made one."""
    return "code" if all(_code(run, "code", stages) for run in runs) else "deps"


def _code(run: FinishedRun, kind: CodeKind, stages: Sequence[str]) -> dict[str, str]:
    """Source file (kind `code`) or dep (`deps`) -> digest, of the code that decides these stages."""
    if kind == "deps" and not stages:
        return _locked_code(run)
    digests: dict[str, str] = {}
    for stage in stages:
        written = run.provenance(stage)
        if written is not None:
            digests |= written.code if kind == "code" else written.deps
    return {path: digest for path, digest in digests.items() if graph.is_code(path)}


def _locked_code(run: FinishedRun) -> dict[str, str]:
    """Source file -> md5, as DVC has it: for runs that trained nothing, or that kept nothing of the training."""
    digests = {}
    for stage in run.lock.get("stages", {}).values():
        for dep in stage.get("deps", []):
            if graph.is_code(dep["path"]):
                digests[dep["path"]] = str(dep.get("md5"))
    return digests


def _changed_in_git(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> list[str]:
    """Source files that differ between the two commits."""
    old, new = a[0].commit, b[0].commit
    if old is None or new is None or old == new:
        return []
    return (try_git("diff", "--name-only", old, new, "--", "src") or "").splitlines()


def _covered(path: str, code: Mapping[str, Pair]) -> bool:
    return any(path == known or path.startswith(known + "/") for known in code)


def _made_otherwise(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> set[str]:
    """Outputs of the stages that by their dvc.lock read other params or other files in A than in B."""
    of_a = _values([_inputs(run) for run in a])
    of_b = _values([_inputs(run) for run in b])
    outputs: set[str] = set()
    for run in [*a, *b]:
        for name, stage in run.lock.get("stages", {}).items():
            if of_a.get(name) != of_b.get(name):
                outputs.update(out["path"] for out in stage.get("outs", []))
    return outputs


def _inputs(run: FinishedRun) -> dict[str, object]:
    """Stage -> the params and files that it read, by dvc.lock."""
    stages = run.lock.get("stages", {})
    return {name: [stage.get("params"), stage.get("deps")] for name, stage in stages.items()}


def _tree(run: FinishedRun) -> dict[str, object]:
    """Commit and uncommitted changes, by the provenance of its first stage.

    DVC commits an experiment's changes when it is done. While it runs, its own params are uncommitted changes
    and mean nothing.
    """
    stages = run.stages
    written = run.provenance(stages[0]) if stages else None
    changes = written.git.get("diff") if written else None
    return {
        "commit": run.commit,
        "uncommitted changes": None if run.kind == "experiment" else changes,
    }


def _environment(run: FinishedRun, stages: Sequence[str]) -> dict[str, object]:
    """`requirements_lock`, `versions.*`, `hardware.*`; a value that a stage has apart from the first under its own name."""
    environment: dict[str, object] = {}
    for stage in stages:
        for key, value in _written_environment(run, stage).items():
            if environment.get(key) != value:
                environment[f"{stage}: {key}" if key in environment else key] = value
    if environment or run.logged is None:
        return environment
    tags = run.logged.tags
    return {key: tags[key] for key in LOGGED_ENVIRONMENT if key in tags}


def _written_environment(run: FinishedRun, stage: str) -> dict[str, object]:
    written = run.provenance(stage)
    if written is None:
        return {}
    return flatten(
        {
            "requirements_lock": written.requirements_lock,
            "paribus": written.paribus,
            "versions": written.versions,
            "hardware": written.hardware,
        }
    )


# ---------------------------------------------------------------- metrics


def measured(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> dict[str, Measured]:
    """Every metric that all runs have: name -> what it is in A and in B.

    Items decide where both sides answered the same ones, otherwise matched seeds.

    Args:
        a: one run, or several seeds of it.
        b: the same.
    """
    shared = set.intersection(*[set(run.numbers) for run in [*a, *b]])
    pairs = _matched(a, b)
    metrics = {}
    for name in sorted(shared):
        if _HELPERS.search(name):
            continue
        by_items = _by_items(name, pairs) if name in ITEMS else None
        metrics[name] = by_items or _by_seeds(name, a, b, pairs)
    return metrics


def _matched(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> list[RunPair]:
    """Pairs of runs with the same seed; a single run on each side makes a pair whatever their seeds."""
    if len(a) == 1 and len(b) == 1:
        return [(a[0], b[0])]
    of_b = {run.params.get("seed"): run for run in b}
    pairs = []
    for run in a:
        seed = run.params.get("seed")
        if seed in of_b:
            pairs.append((run, of_b[seed]))
    return pairs


def _mean(name: str, runs: Sequence[FinishedRun]) -> float:
    return sum(run.numbers[name] for run in runs) / len(runs)


def _by_seeds(
    name: str, a: Sequence[FinishedRun], b: Sequence[FinishedRun], pairs: Sequence[RunPair]
) -> Measured:
    of_a, of_b = _mean(name, a), _mean(name, b)
    if len(pairs) < 2:
        one_seed = len(a) == 1 and len(b) == 1
        how = "no interval: " + ("one seed" if one_seed else "fewer than two matched seeds")
        return Measured(of_a, of_b, of_b - of_a, None, None, None, how)
    from paribus.study.statistics import effects

    differences = [y.numbers[name] - x.numbers[name] for x, y in pairs]
    # Only mean, interval and p are used: without a smallest effect of interest there is no verdict.
    effect = effects({name: differences}, direction="lower", smallest_effect=1.0, alpha=ALPHA)[name]
    if effect.stdev == 0:
        how = f"no interval: the same difference at {effect.n} matched seeds"
        return Measured(of_a, of_b, effect.mean, None, None, None, how)
    how = f"{effect.n} matched seeds, paired t"
    return Measured(of_a, of_b, effect.mean, effect.low, effect.high, effect.p, how)


def _by_items(name: str, pairs: Sequence[RunPair]) -> Measured | None:
    """Compare by item; None where items are not kept, or are not the same ones."""
    if not pairs or _other_questions(pairs):
        return None
    of_a = [_outcomes(name, x) for x, _ in pairs]
    of_b = [_outcomes(name, y) for _, y in pairs]
    items = of_a[0].keys()
    if not items or any(outcomes.keys() != items for outcomes in [*of_a, *of_b]):
        return None
    import numpy

    from paribus.study.items import item_effect

    keys = sorted(items)
    in_tasks = name.startswith("core")
    effect = item_effect(
        [_in_order(outcomes, keys) for outcomes in of_a],
        [_in_order(outcomes, keys) for outcomes in of_b],
        numpy.array([task for task, _ in keys]) if in_tasks else None,
        smallest_effect=1.0,
        alpha=ALPHA,
        equal_clusters=in_tasks,
    )
    runs_a, runs_b = zip(*pairs, strict=True)
    return Measured(
        _mean(name, runs_a),
        _mean(name, runs_b),
        effect.mean,
        effect.low,
        effect.high,
        effect.p if effect.mcnemar_p is None else effect.mcnemar_p,
        _how_of_items(effect, in_tasks),
    )


def _in_order(outcomes: Mapping[Item, float], keys: Sequence[Item]) -> NDArray[np.float64]:
    import numpy

    return numpy.array([outcomes[key] for key in keys], dtype=float)


def _how_of_items(effect: ItemEffect, in_tasks: bool) -> str:
    """The origin of an interval by items, in words."""
    how = f"{effect.items} items"
    if effect.mcnemar_p is not None:
        how = f"McNemar, {how}"
    if in_tasks:
        how += f" in {effect.units} tasks"
    if effect.seeds > 1:
        return f"{how}, {effect.seeds} matched seeds"
    return f"{how}; one seed, so the noise of seeds is not in it"


def _other_questions(pairs: Sequence[RunPair]) -> bool:
    """Whether the runs read different data, in which the same names belong to other questions."""
    versions = set()
    for pair in pairs:
        versions |= {run.data["data/corpus"] for run in pair if "data/corpus" in run.data}
    return len(versions) > 1


def _outcomes(name: str, run: FinishedRun) -> dict[Item, float]:
    """(task, index) -> outcome. CORE's are over 1 - the task's baseline, so that their mean over tasks differs as CORE does."""
    path = run.files.place(ITEMS[name])
    if path is None:
        return {}
    import pyarrow.parquet

    outcomes = {}
    for row in pyarrow.parquet.read_table(path).to_pylist():
        if name.startswith("core"):
            task = row["task"]
            above_guessing = 1 - run.numbers.get(f"core.tasks.{task}.baseline", 0.0)
            outcomes[(task, row["index"])] = row["correct"] / above_guessing
        else:
            outcomes[("", row["index"])] = float(row["correct"])
    return outcomes


# ---------------------------------------------------------------- the page


def page(found: Comparison) -> list[RenderableType]:
    """Tables of what differs, the metrics, and in a sentence what else differs."""
    sections = {
        "params": found.params,
        "code that decides results": found.code,
        "commits": found.trees,
        "data": found.data,
        "environment": found.environment,
    }
    parts: list[RenderableType] = [f"A: {', '.join(found.a)}", f"B: {', '.join(found.b)}"]
    parts += [_table(title, values) for title, values in sections.items() if values]
    if found.outputs:
        parts.append(
            f"{len(found.outputs)} outputs differ as what they are made from does: {_few(found.outputs)}\n"
        )
    if found.other_code:
        parts.append(
            f"{len(found.other_code)} source files differ between the commits, and not in what decided the results: "
            f"{_few(found.other_code)}\n"
        )
    for name, paths in found.edited.items():
        parts.append(
            f"Changed after the run ended: {', '.join(paths)} of {name}, by what dvc.lock or DVC's run-cache noted then; "
            "its figures are not the run's\n"
        )
    different = {name: metric for name, metric in found.metrics.items() if not metric.equal}
    equal = found.metrics.keys() - different.keys()
    if different:
        parts.append(_metrics_table(different))
    if equal:
        parts.append(f"{len(equal)} metrics are equal to the last digit: {_few(equal)}\n")
    return [*parts, summary(found)]


def summary(found: Comparison) -> str:
    """What differs, in one sentence."""
    parts = [f"{len(found.params)} params ({_few(found.params)})"] if found.params else []
    for kind, differences in (
        ("code", found.code),
        ("data", found.data),
        ("environment", found.environment),
    ):
        if differences:
            parts.append(f"{kind} ({_few(differences)})")
    changes = found.trees.get("uncommitted changes", (None, None))
    sides = [side for side, value in zip("AB", changes, strict=True) if value]
    if sides:
        parts.append(f"uncommitted changes in {' and '.join(sides)}")
    if not parts:
        return "Nothing differs that decides a result."
    one_cause = len(parts) + len(found.params) <= 2
    warning = "A difference of metrics cannot be put down to one of these alone."
    return f"Differs: {'; '.join(parts)}." + ("" if one_cause else f" {warning}")


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:4]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _table(title: str, values: Mapping[str, Pair]) -> RenderableType:
    from rich import box
    from rich.table import Column, Table

    table = Table(Column(no_wrap=True), "A", "B", title=title, title_justify="left", box=box.SIMPLE)
    for key, (a, b) in values.items():
        table.add_row(key, _text(a), _text(b))
    return table


def _text(value: object) -> str:
    """Shortened hashes; several become their number."""
    if value is None:
        return "–"
    if isinstance(value, list) and all(_is_hash(part) for part in value):
        return f"{len(value)} different"
    if _is_hash(value):
        return str(value)[:10]
    return value if isinstance(value, str) else json.dumps(value)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def _metrics_table(metrics: Mapping[str, Measured]) -> RenderableType:
    from rich import box
    from rich.table import Column, Table

    ways = {metric.how for metric in metrics.values()}
    whole = [Column(name, no_wrap=True) for name in ("", "A", "B", "B - A", "95 % interval", "p")]
    by = [] if len(ways) == 1 else [Column("by", min_width=20)]
    alone = "each interval and p is of its metric alone: of many, some are small by chance"
    caption = alone if by else f"by {ways.pop()}; {alone}"
    table = Table(
        *whole,
        *by,
        title="metrics",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE,
    )
    for name, metric in metrics.items():
        interval = ""
        if metric.low is not None and metric.high is not None:
            interval = f"{metric.low:+.4g} to {metric.high:+.4g}"
        cells = [f"{metric.a:.6g}", f"{metric.b:.6g}", f"{metric.difference:+.4g}", interval]
        cells.append("" if metric.p is None else f"{metric.p:.3g}")
        if by:
            cells.append(metric.how)
        table.add_row(name, *cells)
    return table

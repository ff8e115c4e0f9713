"""`paribus compare A B`: what differs between two runs, or two sets of seeds, besides the thing you think; and what it made
of the metrics, with an interval wherever items or seeds give one."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from paribus import graph
from paribus.audit.agreement import edited_outputs
from paribus.audit.record import CHECKPOINTS, Record, find_all
from paribus.config import flatten
from paribus.git import try_git
from paribus.journal import plain as as_json

if TYPE_CHECKING:
    from rich.console import RenderableType

ALPHA = 0.05
ITEMS = {"core.core": "evals/core/items.parquet"} | {
    f"gsm8k.{path.removeprefix('checkpoints/')}.accuracy": f"evals/gsm8k/{path.removeprefix('checkpoints/')}/items.parquet"
    for path in CHECKPOINTS.values()
}
HASH = re.compile(r"[0-9a-f]{32,}(\.dir)?")
_HELPERS = re.compile(
    r"\.(ci_low|ci_high|n|stderr|\w+_stderr|baseline|population)$|\.tasks\.|\.by_steps\.|\.paired\.|\.seconds$"
)
Pair = tuple[
    Any, Any
]  # of A and of B; a list where the runs of one side disagree, None where nothing is kept


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


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between A and B, and the metrics of both."""

    a: list[str]
    b: list[str]
    params: dict[str, Pair]
    code: dict[str, Pair]  # source file, or folder, that decides a result -> digests
    other_code: list[
        str
    ]  # source files that differ between the commits, not in what decided the results
    trees: dict[str, Pair]  # commit, uncommitted changes
    data: dict[str, Pair]  # what differs of itself
    outputs: dict[str, Pair]  # what differs as what it is made from does
    environment: dict[str, Pair]
    metrics: dict[str, Measured]
    edited: dict[str, list[str]] = field(
        default_factory=dict
    )  # run -> outputs changed after it ended

    def as_json(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name)
            for name in (
                "a",
                "b",
                "params",
                "code",
                "other_code",
                "trees",
                "data",
                "outputs",
                "environment",
                "edited",
            )
        }
        return plain | {
            "metrics": {
                name: {key: as_json(value) for key, value in vars(one).items()}
                for name, one in self.metrics.items()
            }
        }


def compare(a: str, b: str, json_out: bool) -> None:
    """Print what differs between A and B. Raises UserError for a name that nothing has."""
    found = comparison(find_all(a), find_all(b))
    if json_out:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        from rich.console import Console

        Console().print(*page(found), sep="\n")


def comparison(a: Sequence[Record], b: Sequence[Record]) -> Comparison:
    """B against A, each one run or several seeds of it."""
    alike = {one.scope for one in [*a, *b]} == {a[0].scope}
    stages = [stage for stage in a[0].stages if stage in b[0].stages]
    kind = "code" if all(_code(one, "code", stages) for one in [*a, *b]) else "deps"
    code = differing(
        [_code(one, kind, stages) for one in a], [_code(one, kind, stages) for one in b]
    )
    data = differing([one.data for one in a], [one.data for one in b], shared_only=not alike)
    made = _made_otherwise(a, b)
    return Comparison(
        [one.name for one in a],
        [one.name for one in b],
        params=differing(
            [one.params for one in a], [one.params for one in b], shared_only=not alike
        ),
        code=code,
        other_code=[path for path in _changed_in_git(a, b) if not _covered(path, code)],
        trees=differing([_tree(one) for one in a], [_tree(one) for one in b]),
        data={path: pair for path, pair in data.items() if path not in made},
        outputs={path: pair for path, pair in data.items() if path in made},
        environment=differing(
            [_environment(one, stages) for one in a], [_environment(one, stages) for one in b]
        ),
        metrics=measured(a, b),
        edited=_edited([*a, *b]),
    )


def _edited(records: Sequence[Record]) -> dict[str, list[str]]:
    """Run -> its outputs that are not as DVC noted them when it ended; runs that have none are left out."""
    found = {one.name: edited_outputs(one) for one in records}
    return {name: paths for name, paths in found.items() if paths}


def differing(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], shared_only: bool = False
) -> dict[str, Pair]:
    """Key -> its values in A and B, where they differ; shared_only: keys that one side lacks say nothing."""
    of_a, of_b = _values(a), _values(b)
    keys = of_a.keys() & of_b.keys() if shared_only else of_a.keys() | of_b.keys()
    return {
        key: (_shown(of_a.get(key)), _shown(of_b.get(key)))
        for key in sorted(keys)
        if of_a.get(key) != of_b.get(key)
    }


def _values(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Key -> every value it has, as JSON, in order and each once."""
    keys = {key for record in records for key in record}
    return {
        key: sorted({json.dumps(record.get(key), sort_keys=True) for record in records})
        for key in keys
    }


def _shown(values: list[str] | None) -> Any:
    loaded = [json.loads(value) for value in values or []]
    return loaded[0] if len(loaded) == 1 else loaded or None


# ---------------------------------------------------------------- code, data, environment


def _code(record: Record, kind: str, stages: Sequence[str]) -> dict[str, str]:
    """Source file (kind `code`) or dep (`deps`) -> digest, of the code that decides these stages."""
    found: dict[str, str] = {}
    for stage in stages:
        found |= {
            path: digest
            for path, digest in record.provenance(stage).get(kind, {}).items()
            if graph.is_code(path)
        }
    if (
        not stages and kind == "deps"
    ):  # nothing was trained, or nothing is kept of it: as DVC has it
        deps = [
            dep for stage in record.lock.get("stages", {}).values() for dep in stage.get("deps", [])
        ]
        found = {dep["path"]: str(dep.get("md5")) for dep in deps if graph.is_code(dep["path"])}
    return found


def _changed_in_git(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    """Source files that differ between the two commits."""
    if a[0].commit and b[0].commit and a[0].commit != b[0].commit:
        return (
            try_git("diff", "--name-only", a[0].commit, b[0].commit, "--", "src") or ""
        ).splitlines()
    return []


def _covered(path: str, code: Mapping[str, Pair]) -> bool:
    return any(path == known or path.startswith(known + "/") for known in code)


def _made_otherwise(a: Sequence[Record], b: Sequence[Record]) -> set[str]:
    """Outputs of the stages that by their dvc.lock read other params or other files in A than in B."""

    def stages(records: Sequence[Record]) -> dict[str, list[str]]:
        return _values(
            [
                {
                    name: {key: stage.get(key) for key in ("params", "deps")}
                    for name, stage in one.lock.get("stages", {}).items()
                }
                for one in records
            ]
        )

    of_a, of_b = stages(a), stages(b)
    return {
        out["path"]
        for one in [*a, *b]
        for name, stage in one.lock.get("stages", {}).items()
        if of_a.get(name) != of_b.get(name)
        for out in stage.get("outs", [])
    }


def _tree(record: Record) -> dict[str, Any]:
    """Commit and uncommitted changes, by the provenance of its first stage. DVC commits what an experiment changes when it is
    done, so that while it runs its own params are uncommitted changes, and say nothing."""
    written = record.provenance(record.stages[0]).get("git", {}) if record.stages else {}
    return {
        "commit": record.commit,
        "uncommitted changes": None if record.kind == "experiment" else written.get("diff"),
    }


def _environment(record: Record, stages: Sequence[str]) -> dict[str, Any]:
    """`requirements_lock`, `versions.*`, `hardware.*`; a value that a stage has apart from the first under its own name."""
    found: dict[str, Any] = {}
    for stage in stages:
        written = record.provenance(stage)
        flat = flatten(
            {
                key: written.get(key)
                for key in ("requirements_lock", "paribus", "versions", "hardware")
            }
        )
        found |= {
            key if key not in found else f"{stage}: {key}": value
            for key, value in flat.items()
            if found.get(key) != value
        }
    if not found and record.run:
        found = {
            key: record.run.tags[key]
            for key in ("hardware", "dtype", "threads", "processes")
            if key in record.run.tags
        }
    return found


# ---------------------------------------------------------------- metrics


def measured(a: Sequence[Record], b: Sequence[Record]) -> dict[str, Measured]:
    """Every metric that all of A and B have. Items speak where the same ones were answered, else matched seeds."""
    names = sorted(set.intersection(*({*one.metrics} for one in [*a, *b])))
    pairs = _matched(a, b)
    found = {}
    for name in names:
        if not _HELPERS.search(name):
            found[name] = (_by_items(name, pairs) if name in ITEMS else None) or _by_seeds(
                name, a, b, pairs
            )
    return found


def _matched(a: Sequence[Record], b: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Runs of the same seed; one run against one are a pair whatever their seeds."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    of_b = {one.params.get("seed"): one for one in b}
    return [(one, of_b[one.params.get("seed")]) for one in a if one.params.get("seed") in of_b]


def _by_seeds(
    name: str, a: Sequence[Record], b: Sequence[Record], pairs: Sequence[tuple[Record, Record]]
) -> Measured:
    of_a, of_b = (sum(one.metrics[name] for one in side) / len(side) for side in (a, b))
    if len(pairs) < 2:
        return Measured(
            of_a,
            of_b,
            of_b - of_a,
            None,
            None,
            None,
            "no interval: one seed"
            if len(a) == len(b) == 1
            else "no interval: fewer than two matched seeds",
        )
    from paribus.study.statistics import effects

    # Only mean, interval and p are used: without a smallest effect of interest there is no verdict.
    found = effects(
        {name: [y.metrics[name] - x.metrics[name] for x, y in pairs]},
        direction="lower",
        smallest_effect=1.0,
        alpha=ALPHA,
    )[name]
    if found.stdev == 0:
        how = f"no interval: the same difference at {found.n} matched seeds"
        return Measured(of_a, of_b, found.mean, None, None, None, how)
    return Measured(
        of_a, of_b, found.mean, found.low, found.high, found.p, f"{found.n} matched seeds, paired t"
    )


def _by_items(name: str, pairs: Sequence[tuple[Record, Record]]) -> Measured | None:
    """Paired by item; None where items are not kept, or are not the same ones."""
    outcomes = [(_outcomes(name, x), _outcomes(name, y)) for x, y in pairs]
    if not outcomes or not all(
        x and y and x.keys() == y.keys() == outcomes[0][0].keys() for x, y in outcomes
    ):
        return None
    if (
        len(
            {
                json.dumps(one.data.get("data/corpus"))
                for pair in pairs
                for one in pair
                if "data/corpus" in one.data
            }
        )
        > 1
    ):
        return None  # the same names of other questions
    import numpy

    from paribus.study.items import item_effect

    keys = sorted(outcomes[0][0])
    arrays = [
        [
            numpy.array([side[key] for key in keys], dtype=float)
            for side in (pair[n] for pair in outcomes)
        ]
        for n in (0, 1)
    ]
    clusters = numpy.array([task for task, _ in keys]) if name.startswith("core") else None
    found = item_effect(
        arrays[0],
        arrays[1],
        clusters,
        smallest_effect=1.0,
        alpha=ALPHA,
        equal_clusters=clusters is not None,
    )
    a, b = (
        sum(record.metrics[name] for record in side) / len(side)
        for side in zip(*pairs, strict=True)
    )
    how = f"{found.items} items" + (f" in {found.units} tasks" if clusters is not None else "")
    how += (
        f", {found.seeds} matched seeds"
        if found.seeds > 1
        else "; one seed, so the noise of seeds is not in it"
    )
    exact = found.mcnemar_p
    return Measured(
        a,
        b,
        found.mean,
        found.low,
        found.high,
        found.p if exact is None else exact,
        how if exact is None else f"McNemar, {how}",
    )


def _outcomes(name: str, record: Record) -> dict[tuple[str, int], float]:
    """(task, index) -> outcome. CORE's are over 1 - the task's baseline, so that their mean over tasks differs as CORE does."""
    path = record.locate(ITEMS[name])
    if path is None:
        return {}
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    if not name.startswith("core"):
        return {("", row["index"]): float(row["correct"]) for row in rows}
    above = {
        task: 1 - record.metrics.get(f"core.tasks.{task}.baseline", 0.0)
        for task in {row["task"] for row in rows}
    }
    return {(row["task"], row["index"]): row["correct"] / above[row["task"]] for row in rows}


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
    told = {
        name: one for name, one in found.metrics.items() if one.difference or one.low != one.high
    }
    parts += [_metrics_table(told)] if told else []
    if equal := found.metrics.keys() - told.keys():
        parts.append(f"{len(equal)} metrics are equal to the last digit: {_few(equal)}\n")
    return [*parts, summary(found)]


def summary(found: Comparison) -> str:
    """What differs, in one sentence."""
    parts = [f"{len(found.params)} params ({_few(found.params)})"] if found.params else []
    parts += [f"code ({_few(found.code)})"] if found.code else []
    parts += [f"data ({_few(found.data)})"] if found.data else []
    parts += [f"environment ({_few(found.environment)})"] if found.environment else []
    dirty = [
        side
        for side, value in zip("AB", found.trees.get("uncommitted changes", ()), strict=False)
        if value
    ]
    parts += [f"uncommitted changes in {' and '.join(dirty)}"] if dirty else []
    if not parts:
        return "Nothing differs that decides a result."
    return (
        "Differs: "
        + "; ".join(parts)
        + (
            "."
            if len(parts) + len(found.params) <= 2
            else ". A difference of metrics cannot be put down to one of these alone."
        )
    )


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:4]
    return ", ".join(shown) + (
        f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    )


def _table(title: str, values: Mapping[str, Pair]) -> RenderableType:
    from rich import box
    from rich.table import Column, Table

    table = Table(Column(no_wrap=True), "A", "B", title=title, title_justify="left", box=box.SIMPLE)
    for key, (a, b) in values.items():
        table.add_row(key, _text(a), _text(b))
    return table


def _text(value: Any) -> str:
    """Hashes cut short; several of them counted."""
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, list) and all(
        isinstance(one, str) and HASH.fullmatch(one) for one in value
    ):
        return f"{len(value)} different"
    return text[:10] if HASH.fullmatch(text) else text


def _metrics_table(metrics: Mapping[str, Measured]) -> RenderableType:
    from rich import box
    from rich.table import Column, Table

    ways = {one.how for one in metrics.values()}
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
    for name, one in metrics.items():
        interval = (
            "" if one.low is None or one.high is None else f"{one.low:+.4g} to {one.high:+.4g}"
        )
        table.add_row(
            name,
            f"{one.a:.6g}",
            f"{one.b:.6g}",
            f"{one.difference:+.4g}",
            interval,
            "" if one.p is None else f"{one.p:.3g}",
            *([one.how] if by else []),
        )
    return table

"""`paribus compare A B`: everything that differs between two runs, or two sets of seeds.

It also shows how the metrics changed, with an interval wherever items or seeds give one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from paribus import graph
from paribus.audit.agreement import edited_outputs
from paribus.audit.compare_page import page
from paribus.audit.lookup import find_all
from paribus.audit.measured import Measured, measured
from paribus.config import flatten
from paribus.git import try_git
from paribus.study.finished import FinishedRun

LOGGED_ENVIRONMENT = ("hardware", "dtype", "threads", "processes")  # MLflow tags
CodeKind = Literal["code", "deps"]
# Of A and of B; a list where the runs of one side disagree, None where nothing is kept.
Pair = tuple[Any, Any]


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

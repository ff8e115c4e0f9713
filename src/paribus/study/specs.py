"""From a run of a study to what a worker computes: the commit it starts from and the values that differ there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paribus.config import fingerprint, flatten
from paribus.execute.run import COMPARED_WITH, STUDY_FILE, RunSpec
from paribus.git import try_git
from paribus.graph import chain
from paribus.study.arm_code import ArmCode
from paribus.study.experiment import Experiment, Run
from paribus.study.identity import chain_key, definitions, is_declared, params_with, settings
from paribus.study.results import code_of_chain


def spec_of(experiment: Experiment, run: Run, commit: str) -> RunSpec:
    """The specification of a run, for a worker.

    Args:
        experiment: the study.
        run: one of its runs.
        commit: the baseline's.
    """
    code = experiment.code(run.arm)
    changed = changes_of(run, code)
    if code is None:
        return RunSpec(run.id, commit, changed, experiment.stages, run.key)
    notes = {COMPARED_WITH: commit}
    blob = try_git("rev-parse", "--quiet", "--verify", f"{commit}:./{experiment.file}")
    if blob:
        notes[STUDY_FILE] = blob
    return RunSpec(run.id, code.commit, changed, experiment.stages, run.key, notes=notes)


def changes_of(run: Run, code: ArmCode | None) -> dict[str, object]:
    """The values of a run that differ from params.yaml in the commit it starts from, and its seed.

    With an arm's code, the keys that both have take the baseline's values, and those that the arm's code adds keep theirs.

    Args:
        run: one of a study.
        code: of its arm; None: the baseline's.
    """
    there: Mapping[str, object] = flatten(settings())
    wanted = run.overrides
    if code is not None:
        there = code.params
        shared = flatten(params_with(code.known(run.overrides)))
        wanted = {key: value for key, value in shared.items() if key in there} | run.overrides
    found = {}
    for key, value in wanted.items():
        if key == "seed" or key not in there or there[key] != value:
            found[key] = value
    return found


def pieces_of(experiment: Experiment, run: Run) -> dict[str, str]:
    """A name for what each stage of a run computes; runs that share the name share what DVC's cache has of it.

    Args:
        experiment: the study.
        run: one of its runs.
    """
    config = experiment.config_of(run)
    code = experiment.code(run.arm)
    pieces = {}
    for stage in experiment.stages:
        needed = chain([stage], definitions())
        pieces[stage] = chain_key(needed, config)
        own = {} if code is None else _own_parts(needed, code, run.overrides)
        if own:
            pieces[stage] = fingerprint(chain=pieces[stage], own=own)
    return pieces


def _own_parts(
    stages: Sequence[str], code: ArmCode, overrides: Mapping[str, object]
) -> dict[str, object]:
    """What an arm's code adds to a chain of stages: stage -> key of its code, where that differs; values of new keys."""
    own: dict[str, object] = {}
    for stage in stages:
        key = code_of_chain([stage], code.commit)
        if key != code_of_chain([stage]):
            own[stage] = key
    declared = [name for stage in stages for name in definitions()[stage].params]
    for key, value in code.added(overrides).items():
        if is_declared(key, declared):
            own[key] = value
    return own

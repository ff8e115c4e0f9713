"""Whether seeds match across commits: whether what draws initial values and what orders the data is the same code.

Arm and baseline share the noise of a seed only where both hold. An arm that adds a tensor leaves the others as they begin, as
each is drawn by its own name (model/initial.py); an arm that changes how values are drawn does not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paribus.config import fingerprint
from paribus.git import try_git
from paribus.graph import (
    ENTRY_POINTS,
    SOURCE_FOLDER,
    Sources,
    committed_sources,
    definition_digest,
    definitions_that_import,
    entry_module,
    stage_code,
)
from paribus.study.changes import change_between
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.results import Result

INITIAL_VALUES = f"{SOURCE_FOLDER}/model/initial.py"
DRAWN_BY = (f"{SOURCE_FOLDER}/model/gpt.py", "GPT.initialise")
DATA = (f"{SOURCE_FOLDER}/data/", f"{SOURCE_FOLDER}/world/", f"{SOURCE_FOLDER}/stages/data.py")


@dataclass(frozen=True)
class Matching:
    """What two commits share at one seed.

    Attributes:
        initial_values: whether initial values are drawn by the same code.
        data_order: whether the data are made and ordered by the same code.
    """

    initial_values: bool
    data_order: bool

    @property
    def holds(self) -> bool:
        """Whether differences at a seed are of matched runs."""
        return self.initial_values and self.data_order

    def sentence(self, arm: str) -> str:
        """What the seeds of an arm share with the baseline's."""
        if self.holds:
            return (
                f"{arm}: its code leaves the drawing of initial values and the order of the data as they are, so that its "
                "seeds are matched with the baseline's."
            )
        changed = []
        if not self.initial_values:
            changed.append("how initial values are drawn")
        if not self.data_order:
            changed.append("how the data are made or ordered")
        return (
            f"{arm}: its code changes {' and '.join(changed)}, so that its seeds do not match the baseline's: they are compared "
            "as unmatched runs (Welch's t)."
        )


def matching(stages: Sequence[str], base: str, commit: str) -> Matching:
    """What two commits share at one seed.

    Args:
        stages: of the study.
        base: a full hash.
        commit: another.
    """
    if base == commit:
        return Matching(True, True)
    return _matching(tuple(stages), base, commit)


@functools.lru_cache(maxsize=64)
def _matching(stages: tuple[str, ...], base: str, commit: str) -> Matching:
    # Of an input, or of code that is not paribus's, nobody can say what it leaves as it is.
    other = [file for file in change_between(stages, base, commit).files if file.kind != "code"]
    if other:
        return Matching(False, False)
    if not _has_code(base) or not _has_code(commit):
        return Matching(True, True)
    before, after = committed_sources(base), committed_sources(commit)
    return Matching(
        _initial_values(before) == _initial_values(after),
        _data_order(stages, before) == _data_order(stages, after),
    )


def matching_of(experiment: Experiment, results: Iterable[Result]) -> dict[str, Matching]:
    """Arm -> what its runs share with the baseline's, of the arms that are code.

    Args:
        experiment: the study.
        results: of the runs that count.
    """
    commits: dict[str, str] = {}
    for result in results:
        commits.setdefault(result.arm, result.baseline)
    found = {}
    for arm in experiment.arms:
        known = BASELINE in commits and arm in commits
        if experiment.code(arm) is not None and known:
            found[arm] = matching(experiment.stages, commits[BASELINE], commits[arm])
    return found


def _has_code(commit: str) -> bool:
    return try_git("rev-parse", "--verify", "--quiet", f"{commit}:./{SOURCE_FOLDER}") is not None


def _initial_values(sources: Sources) -> str:
    """A fingerprint of what draws initial values."""
    path, method = DRAWN_BY
    drawn = definition_digest(path, method, sources) if path in sources.files else None
    scales = stage_code("pretrain", sources).get(INITIAL_VALUES)
    return fingerprint(drawn=drawn, scales=scales)


def _data_order(stages: Sequence[str], sources: Sources) -> str:
    """A fingerprint of what makes and orders the data of a chain of stages."""
    found: dict[str, str | None] = {}
    for stage in stages:
        own = stage.partition("@")[0]
        if own not in ENTRY_POINTS:
            continue
        for path, digest in stage_code(stage, sources).items():
            if path.startswith(DATA):
                found[f"{stage} {path}"] = digest
        path = sources.path_of(entry_module(own)) or ""
        if path in sources.files:
            for name in definitions_that_import("paribus.data", path, sources):
                found[f"{path} {name}"] = definition_digest(path, name, sources)
    return fingerprint(files=found)

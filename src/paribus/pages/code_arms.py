"""The part of a report that shows arms that are code: their commits, what they change, and whether seeds match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paribus.files import write_atomic
from paribus.study.changes import Change, change_between
from paribus.study.code_checks import notes_of
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.matching import matching_of
from paribus.study.results import Result


@dataclass(frozen=True)
class CodeSection:
    """What a page shows of an arm that is code.

    Attributes:
        arm: its name.
        asked: the branch, tag, commit or patch file.
        change: against the baseline's commit.
        seeds: whether they match, in a sentence.
        added: values of the keys that only the arm's code has.
        notes: what a reader has to know besides.
    """

    arm: str
    asked: str
    change: Change
    seeds: str
    added: dict[str, object]
    notes: list[str]


def code_sections(experiment: Experiment, results: Sequence[Result]) -> list[CodeSection]:
    """A section for every arm that is code and has runs.

    Args:
        experiment: the study.
        results: of the runs that count; they say which commits were compared.
    """
    commits: dict[str, str] = {}
    for result in results:
        commits.setdefault(result.arm, result.baseline)
    shared = matching_of(experiment, results)
    sections = []
    for arm in experiment.arms:
        code = experiment.code(arm)
        if code is None or arm not in shared:
            continue
        base, as_run = commits[BASELINE], replace(code, commit=commits[arm])
        sections.append(
            CodeSection(
                arm=arm,
                asked=code.asked,
                change=change_between(experiment.stages, base, as_run.commit),
                seeds=shared[arm].sentence(arm),
                added=code.added(experiment.overrides(arm)),
                notes=notes_of(experiment, arm, as_run, base),
            )
        )
    return sections


def write_diffs(sections: Sequence[CodeSection], folder: Path) -> list[Path]:
    """Write each arm's diff as ARM.diff into a folder, for MLflow.

    Args:
        sections: of the page.
        folder: made where it is absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for section in sections:
        path = folder / f"{section.arm}.diff"
        write_atomic(path, section.change.diff + "\n")
        paths.append(path)
    return paths


def code_tags(sections: Sequence[CodeSection]) -> dict[str, str]:
    """`code.ARM` -> what it is, its commit and the size of its change, for MLflow.

    Args:
        sections: of the page.
    """
    tags = {}
    for section in sections:
        commit = section.change.commit[:10]
        tags[f"code.{section.arm}"] = f"{section.asked} ({commit}): {section.change.summary()}"
    return tags

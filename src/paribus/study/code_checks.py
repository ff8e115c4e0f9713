"""Whether arms that are code are fit to be compared: all else equal, and a change that something runs.

Each problem is found from git and the source alone, before any compute.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from paribus.errors import UserError
from paribus.git import git, try_git
from paribus.graph import (
    ENTRY_POINTS,
    SOURCE_FOLDER,
    chain,
    committed_sources,
    entry_module,
    is_code,
)
from paribus.graph.dvcfile import LOCK
from paribus.study.arm_code import ArmCode, settle_code
from paribus.study.changes import Change, change_between, code_at, definitions_at
from paribus.study.experiment import Experiment
from paribus.study.ideas import is_patch
from paribus.study.identity import definitions, writer_of
from paribus.study.registration import registered
from paribus.study.results import code_key, codes_of

# Folders and files that say what is read and how it is scored.
MEASURING = (
    "src/paribus/data/",
    "src/paribus/evaluate/",
    "src/paribus/world/",
    "src/paribus/stages/data.py",
    "src/paribus/stages/evaluation.py",
    "src/paribus/summary.py",
)
FEW = 3  # names that a sentence lists

# Where a corpus and its tokenizer are made, whose bytes of a token are counted by the baseline's code.
TEXT_FILES = (
    "src/paribus/data/compression.py",
    "src/paribus/data/corpus/",
    "src/paribus/data/tokenizer.py",
    "src/paribus/world/",
)

# Where an update is computed, whose FLOPs are counted by the baseline's code.
OPTIMIZER_FILES = tuple(
    f"src/paribus/train/{name}.py" for name in ("optim", "muon", "adamw", "library", "own")
)


def code_problems(experiment: Experiment) -> list[str]:
    """Why the arms that are code cannot be compared with the baseline, in sentences; none where they can, or there are none.

    Args:
        experiment: the study.
    """
    own = {name: arm.code for name, arm in experiment.arms.items() if arm.code is not None}
    if not own:
        return []
    problems = []
    for name, code in own.items():
        try:
            found = _problems_of(experiment, name, code)
        except UserError as error:
            found = error.problems
        problems += [f"arms.{name}.code: {problem}" for problem in found]
    return problems or _twins(experiment)


def check_code(experiment: Experiment) -> None:
    """Refuse arms that are code and cannot be compared, or whose patch is not committed as it is.

    Args:
        experiment: the study.

    Raises:
        UserError: with every problem.
    """
    problems = [f"{experiment.file}: {problem}" for problem in code_problems(experiment)]
    for arm in experiment.arms.values():
        if arm.code is not None and is_patch(arm.code.asked):
            try:
                registered(Path(arm.code.asked))
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(problems)


def commits_of(experiment: Experiment) -> list[str]:
    """The commits that a study's runs start from, the baseline's first.

    Args:
        experiment: the study.
    """
    commits = [git("rev-parse", "HEAD")]
    for arm in experiment.arms.values():
        if arm.code is not None:
            commits.append(arm.code.commit)
    return commits


def settle_arms(experiment: Experiment) -> None:
    """Keep the commit of every arm that is code, whatever becomes of its branch.

    Args:
        experiment: the study.
    """
    today = code_key(experiment)
    for name, arm in experiment.arms.items():
        if arm.code is not None:
            settle_code(experiment.name, name, arm.code, today)


def code_lines(experiment: Experiment) -> list[str]:
    """What the arms that are code change, a line each and one for each file.

    Args:
        experiment: the study.
    """
    lines = []
    for name, arm in experiment.arms.items():
        if arm.code is None:
            continue
        change = change_of(experiment, arm.code)
        lines.append(
            f"{name}: {arm.code.asked} is {arm.code.commit[:10]}, which changes {change.summary()} of what the stages run"
        )
        lines += [f"    {file.path}  +{file.added} −{file.removed}" for file in change.files]
        lines += [f"    new key {key}: {value}" for key, value in arm.code.new.items()]
    return lines


def change_of(experiment: Experiment, code: ArmCode) -> Change:
    """What an arm's code changes against the baseline's commit, of what the study's stages run.

    Args:
        experiment: the study.
        code: of one of its arms.
    """
    return _change(tuple(experiment.stages), git("rev-parse", "HEAD"), code.commit)


@functools.lru_cache(maxsize=64)
def _change(stages: tuple[str, ...], base: str, commit: str) -> Change:
    return change_between(stages, base, commit)


# ---------------------------------------------------------------- one arm


def _problems_of(experiment: Experiment, name: str, code: ArmCode) -> list[str]:
    arm, head = experiment.arms[name], git("rev-parse", "HEAD")
    if not code.applies:
        return [code.note]
    if code.commit == head and not is_patch(code.asked):
        return [f"{code.asked} is the baseline's own commit; leave it out, or name the arm's"]
    unusable = [*_without_entry(experiment.stages, code), *_undeclared(experiment.stages, code)]
    if unusable:
        return unusable
    shared = try_git("merge-base", head, code.commit)
    if shared is None:
        return [
            f"{code.asked} shares no commit with the baseline, so that they differ in everything"
        ]
    change = change_of(experiment, code)
    if not change.files:
        return [_no_effect(experiment, name, code)]
    problems = _submodules(shared, head, code)
    if arm.as_one is None:
        problems += _stale(experiment, code, shared, head)
        problems += _measures_otherwise(experiment, code, change)
    return problems + _budget(experiment, change)


def _without_entry(stages: Sequence[str], code: ArmCode) -> list[str]:
    """Stages whose function the arm's code does not have where paribus looks for it."""
    if try_git("rev-parse", "--verify", "--quiet", f"{code.commit}:./{SOURCE_FOLDER}") is None:
        return []
    there = committed_sources(code.commit)
    missing = []
    for stage in stages:
        own = stage.partition("@")[0]
        if own in ENTRY_POINTS and there.path_of(entry_module(own)) is None:
            missing.append(f"{code.asked} has no {entry_module(own)}, which runs the stage {stage}")
    return missing


def _undeclared(stages: Sequence[str], code: ArmCode) -> list[str]:
    """Code that an arm's stages reach and its dvc.yaml does not name: DVC would reuse outputs of older code."""
    known = definitions_at(code.commit)
    absent = [stage for stage in stages if stage not in known]
    if absent:
        return [f"dvc.yaml at {code.asked} has no stage {absent[0]}"]
    for stage, files in code_at(stages, code.commit).items():
        named = [dep for dep in known[stage].deps if is_code(dep)]
        missing = sorted(files.keys() - set(named))
        if missing and named:
            return [
                f"dvc.yaml at {code.asked}: {stage} does not name {_few(missing)}, which it runs, so that DVC would take "
                f"results of older code for its own; on that branch: paribus deps && git commit dvc.yaml"
            ]
    return []


def _no_effect(experiment: Experiment, name: str, code: ArmCode) -> str:
    beside = (
        ", and what it sets would be an arm without code" if experiment.arms[name].overrides else ""
    )
    return (
        f"{code.asked} ({code.commit[:10]}) changes nothing that the stages run ({', '.join(experiment.stages)}): no code in "
        f"their import closure differs from the baseline's, comments and layout aside{beside}"
    )


def _stale(experiment: Experiment, code: ArmCode, shared: str, head: str) -> list[str]:
    """Commits of the baseline that an arm lacks, where they change what the stages run."""
    if shared == head:
        return []
    lacking = _change(tuple(experiment.stages), shared, head)
    if not lacking.files:
        return []
    count = len(git("rev-list", head, f"^{code.commit}").split())
    many = "s" if count > 1 else ""
    files = _few([file.path for file in lacking.files])
    branch = try_git("rev-parse", "--verify", "--quiet", f"refs/heads/{code.asked}")
    here = try_git("symbolic-ref", "--quiet", "--short", "HEAD") or head[:10]
    cure = f"git rebase {here} {code.asked}"
    if branch is None:
        cure = f"git switch -c NAME {code.asked} && git rebase {here}, and name that branch"
    return [
        f"{code.asked} lacks {count} commit{many} that the baseline has, which change{'' if many else 's'} {files}, so that all "
        f"else would not be equal; rebase it: {cure} (as_one: WHAT lets it pass)"
    ]


def _measures_otherwise(experiment: Experiment, code: ArmCode, change: Change) -> list[str]:
    """Evaluation or data code of the metric that an arm changes."""
    touched = measuring_files(experiment, change)
    if not touched:
        return []
    return [
        f"{code.asked} changes {_few(touched)}, by which {experiment.metric.name} is measured or its data are made, so that its "
        "value and the baseline's may not mean the same; take that out of the arm, or where it is the idea, say so: as_one: WHAT"
    ]


def measuring_files(experiment: Experiment, change: Change) -> list[str]:
    """Files of a change that make the data or the score of the study's metric.

    Args:
        experiment: the study.
        change: of one of its arms.
    """
    writer = writer_of(experiment.metric.path)
    stages = chain([writer], definitions()) if writer else experiment.stages
    concerned = _change(tuple(stages), change.base, change.commit)
    return [file.path for file in concerned.files if file.path.startswith(MEASURING)]


def _submodules(shared: str, head: str, code: ArmCode) -> list[str]:
    """Submodules that are at another commit than the baseline's: what changes in them is not seen."""
    moved = _moved(shared, code.commit)
    problems = [
        f"{code.asked} moves the submodule {path}, and what changes in there is neither shown nor compared; take that out"
        for path in moved
    ]
    for path in _moved(head, code.commit):
        if path not in moved:
            problems.append(
                f"{code.asked} lacks a commit that the baseline has, which moves the submodule {path}; rebase it"
            )
    return problems


def _moved(before: str, after: str) -> list[str]:
    """The submodules that two commits have at different ones."""
    paths = []
    for line in git("diff", "--raw", "--no-renames", before, after).splitlines():
        about, _, path = line.partition("\t")
        if "160000" in about.split(" ")[:2] or about.startswith(":160000"):
            paths.append(path)
    return paths


def _budget(experiment: Experiment, change: Change) -> list[str]:
    """A budget that can be held only by counting or timing the baseline's code."""
    if experiment.equal == "seconds":
        return [
            "equal: seconds: steps are timed with the baseline's code; say equal: tokens, and the report shows the arms at "
            "equal time too"
        ]
    texts = [file.path for file in change.files if file.path.startswith(TEXT_FILES)]
    if experiment.equal == "bytes" and texts:
        return [
            f"equal: bytes: those of a token are counted with the baseline's code, and the arm changes {_few(texts)}; say "
            "equal: tokens"
        ]
    models = [file.path for file in change.files if file.path.startswith("src/paribus/model/")]
    optimizer = [file.path for file in change.files if file.path in OPTIMIZER_FILES]
    if experiment.equal == "flops" and (models or optimizer):
        return [
            f"equal: flops: they are counted with the baseline's code, and the arm changes {_few([*models, *optimizer])}; say "
            "equal: tokens"
        ]
    return []


def code_notes(experiment: Experiment) -> list[str]:
    """What a reader of the study has to know of the arms that are code, in sentences.

    Args:
        experiment: the study.
    """
    head = git("rev-parse", "HEAD")
    notes = []
    for name, arm in experiment.arms.items():
        if arm.code is not None:
            notes += notes_of(experiment, name, arm.code, head)
    return notes


def notes_of(experiment: Experiment, name: str, code: ArmCode, base: str) -> list[str]:
    """What a reader has to know of an arm that is code, in sentences.

    Args:
        experiment: the study.
        name: of the arm.
        code: of the arm.
        base: the baseline's commit.
    """
    shared = try_git("merge-base", base, code.commit) or base
    change = _change(tuple(experiment.stages), base, code.commit)
    allowed = [
        *_stale(experiment, code, shared, base),
        *_measures_otherwise(experiment, code, change),
    ]
    notes = [f"{name}: {one.partition(';')[0]}; as_one allows it" for one in allowed]
    if git("diff", "--name-only", shared, code.commit, "--", LOCK):
        notes.append(
            f"{name} changes {LOCK}: every run uses the libraries that are installed here, whatever it says"
        )
    return notes


# ---------------------------------------------------------------- arms beside each other


def _twins(experiment: Experiment) -> list[str]:
    """Arms that compute the same: the same code, as far as the stages run it, and the same settings."""
    codes = codes_of(experiment)
    seen: dict[tuple[str, str], str] = {}
    problems = []
    for name in experiment.names:
        key = codes[name], experiment.run(name, 0, {}).key
        if experiment.code(name) is not None and codes[name] == code_key(experiment):
            continue  # named already: it changes nothing
        if key in seen:
            problems.append(
                f"arms.{name} and arms.{seen[key]} have the same code and settings, as far as the stages run them; "
                "leave one out"
            )
        seen.setdefault(key, name)
    return problems


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return f"{', '.join(names[:FEW])}{more}"

"""The two sides of a try, the change and the baseline: their commits, what differs between them, what each of them computes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import fingerprint, flatten
from paribus.errors import UserError, did_you_mean, shown
from paribus.execute.repository import clone
from paribus.git import git, try_git
from paribus.graph import is_code
from paribus.journal import read_json, write_json
from paribus.places import main_checkout, state_root
from paribus.study.changes import Change, change_between, code_at, definitions_at
from paribus.study.code_checks import MEASURING
from paribus.study.committed import CommittedFiles
from paribus.study.ideas import commit_of_changes
from paribus.study.identity import is_declared
from paribus.study.registration import sources
from paribus.study.results import commands_of, version_of
from paribus.tries import facts as facts_file
from paribus.tries.terms import Budget, Terms

LEAST_STEPS = 5  # of a run; fewer show nothing but the initial values
FACTS_SECONDS = 600.0  # that a side may take to answer; `measure` trains for some seconds
ANCESTORS = 20_000  # commits that are searched for the baseline's tree

# Keys that decide what the metric measures, rather than how good the model is; code_checks.MEASURING has the files.
MEASURING_KEYS = ("corpus", "tokens", "eval", "pretrain.eval_tokens")


@dataclass(frozen=True)
class Facts:
    """What a side's own code makes of its parameters.

    Attributes:
        seed: of the configuration.
        steps, batch_tokens: of pretraining.
        step_flops: of one step.
        cores: that the runs share, where the number of threads follows from them; None on a GPU, or where it is set.
        step_seconds: measured on this machine; None where that was not asked.
    """

    seed: int
    steps: int
    batch_tokens: int
    step_flops: float
    cores: int | None
    step_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """The change or the baseline; each is itself alone, so that runs can be found by it.

    Attributes:
        name: "change" or "baseline".
        commit: its code and params.yaml.
        overrides: of its runs, the seed aside.
        fingerprint: of what it computes, the seed aside: the same, the same results.
        steps: of pretraining; None where no stage pretrains.
    """

    name: str
    commit: str
    overrides: dict[str, object]
    fingerprint: str
    steps: int | None


@dataclass(frozen=True)
class Pair:
    """The two sides of a try.

    Attributes:
        change, baseline: the sides.
        files: that differ, each with its lines; keys of params.yaml among them.
        diff: of these files.
        tokens: that each side trains on; None where no stage pretrains.
        first_seed: of the configuration.
    """

    change: Side
    baseline: Side
    files: list[str]
    diff: str
    tokens: int | None
    first_seed: int


# ---------------------------------------------------------------- commits


def commit_named(name: str, what: str) -> str:
    """The commit that a revision names. Raises UserError with the nearest name.

    Args:
        name: the revision.
        what: it is, in the message.
    """
    found = try_git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if found is not None:
        return found
    listed = try_git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
    names = listed.split()
    near = did_you_mean(name, names)
    there = f"there are: {', '.join(names[:8])}" if names else "there is no commit yet"
    raise UserError(f"{what}: no branch, tag or commit {shown(name)}; {near or there}")


def commit_of_the_change(revision: str | None, message: str) -> str:
    """The commit of the change: the one that is named, or a new one of what is not committed. Raises UserError."""
    if try_git("rev-parse", "--verify", "--quiet", "HEAD") is None:
        raise UserError("this repository has no commit yet: git add -A && git commit -m start")
    if revision is None:
        return commit_of_changes(message)
    return commit_named(revision, "change")


def holds(commit: str, other: str) -> bool:
    """Whether a commit has everything of another: that one, or a commit of the same files, is among its ancestors."""
    if try_git("merge-base", "--is-ancestor", other, commit) is not None:
        return True
    tree = git("rev-parse", f"{other}^{{tree}}")
    trees = git("log", "--format=%T", f"--max-count={ANCESTORS}", commit).split("\n")
    return tree in trees


# ---------------------------------------------------------------- what differs


def compared(terms: Terms, baseline: str, change: str, as_one: str | None) -> Change:
    """What differs between the commits, of all that decides results.

    Args:
        terms: of the try.
        baseline: its commit.
        change: its commit.
        as_one: why evaluation or data may change; None: they may not.

    Raises:
        UserError: where nothing can differ, or what differs may not.
    """
    if git("rev-parse", f"{baseline}^{{tree}}") == git("rev-parse", f"{change}^{{tree}}"):
        raise UserError(
            f"nothing is changed: the files are those of the baseline, {baseline[:10]}; edit one, or name a commit"
        )
    if not holds(change, baseline):
        raise UserError(
            f"the change {change[:10]} lacks commits that the baseline {baseline[:10]} has, so that more than the "
            f"change would differ; bring it up to date: git rebase {baseline[:10]}"
        )
    found = change_between(terms.stages, baseline, change)
    keys = changed_keys(terms, baseline, change)
    if not found.files and not keys:
        named = git("diff", "--name-only", "--relative", baseline, change).split("\n")
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise UserError(
            f"nothing can differ: {', '.join(named[:3])}{more}: not part of what the stage {terms.targets[-1]} runs, or "
            "changed in comments and layout alone"
        )
    measuring = [file.path for file in found.files if _measures(file.path, file.kind)]
    measuring += [f"params.yaml: {key}" for key in keys if is_declared(key, MEASURING_KEYS)]
    if measuring and as_one is None:
        raise UserError(
            f"{path}: decides what {terms.metric.name} measures, so that both sides would be measured differently; leave "
            "it as the baseline has it, or say what one thing the change is: --as-one 'WHAT'"
            for path in measuring
        )
    return found


def changed_keys(terms: Terms, baseline: str, change: str) -> list[str]:
    """Keys of params.yaml that the stages read and whose values differ, the overrides of both sides aside."""
    before, after = (flatten(_params(commit)) for commit in (baseline, change))
    names = {name for commit in (baseline, change) for name in _declared(terms.stages, commit)}
    changed = []
    for key in sorted(before.keys() | after.keys()):
        differs = key not in before or key not in after or before[key] != after[key]
        if differs and key not in terms.overrides and is_declared(key, sorted(names)):
            changed.append(key)
    return changed


def _measures(path: str, kind: str) -> bool:
    return kind == "input" or path.startswith(MEASURING)


def _params(commit: str) -> dict[str, object]:
    return CommittedFiles(commit).mapping("params.yaml")


def _declared(stages: Sequence[str], commit: str) -> set[str]:
    """Keys and sections of params.yaml that the stages declare."""
    there = definitions_at(commit)
    return {name for stage in stages if stage in there for name in there[stage].params}


# ---------------------------------------------------------------- what each side computes


def pair(
    terms: Terms,
    baseline: str,
    change: str,
    as_one: str | None,
    workers: int,
    kept_tokens: int | None = None,
) -> tuple[Pair, Change]:
    """Both sides, at equal tokens or FLOPs.

    Args:
        terms: of the try.
        baseline: its commit.
        change: its commit.
        as_one: why evaluation or data may change; None: they may not.
        workers: runs side by side, which share the cores.
        kept_tokens: that the newest kept change below the baseline was tried with; without a budget they stay.

    Raises:
        UserError: where the two cannot be compared.
    """
    found = compared(terms, baseline, change, as_one)
    undeclared = [
        problem for commit in (baseline, change) for problem in _undeclared(terms, commit)
    ]
    if undeclared:
        raise UserError(undeclared)
    facts = {
        "baseline": facts_of(terms, baseline, "baseline"),
        "change": facts_of(terms, change, "change"),
    }
    budget = settled_budget(terms, baseline, facts["baseline"])
    if (
        terms.budget is None
    ):  # a kept change of the batch must not change how long the next try trains
        budget = kept_tokens
    sides = {}
    for name, commit in (("baseline", baseline), ("change", change)):
        steps = _steps(terms, budget, facts["baseline"], facts[name], name)
        overrides = dict(terms.overrides)
        if steps is not None:
            overrides["pretrain.steps"] = steps
        cores = facts["baseline"].cores
        if cores is not None:
            overrides["train.threads"] = max(cores // workers, 1)
        sides[name] = Side(name, commit, overrides, computes(terms, commit, overrides), steps)
    if sides["baseline"].fingerprint == sides["change"].fingerprint:
        keys = ", ".join(sorted(set(terms.overrides) & set(flatten(_params(change)))))
        raise UserError(
            f"nothing can differ: the change is in values that experiments/try.yaml sets for both sides ({keys}), or in "
            "the length of the run, which the budget decides"
        )
    files = [f"{file.path} +{file.added} −{file.removed}" for file in found.files]
    files += [f"params.yaml: {key}" for key in changed_keys(terms, baseline, change)]
    own = facts["baseline"]
    steps = sides["baseline"].steps
    tokens = steps * own.batch_tokens if steps is not None else None
    made = Pair(sides["change"], sides["baseline"], files, found.diff, tokens, own.seed)
    return made, found


def computes(terms: Terms, commit: str, overrides: dict[str, object]) -> str:
    """A fingerprint of all that decides the results of a side's runs but the seed.

    Args:
        terms: whose stages they run.
        commit: of the side.
        overrides: of the side.
    """
    files = CommittedFiles(commit)
    there = definitions_at(commit)
    stages = [stage for stage in terms.stages if stage in there]
    params = flatten(files.mapping("params.yaml")) | overrides
    params.pop("seed", None)
    names = sorted(_declared(stages, commit) | {"train"})
    read = {key: value for key, value in sorted(params.items()) if is_declared(key, names)}
    inputs = {path: version_of(files, path) for path in sources(stages, there)}
    return fingerprint(
        code=code_at(stages, commit),
        inputs=inputs,
        commands=commands_of(files, stages),
        params=read,
    )


def _undeclared(terms: Terms, commit: str) -> list[str]:
    """Code that a stage of a commit runs and its dvc.yaml does not name."""
    there = definitions_at(commit)
    missing_stages = [stage for stage in terms.stages if stage not in there]
    if missing_stages:
        return [f"{commit[:10]}: its dvc.yaml has no stage {', '.join(missing_stages)}"]
    problems = []
    for stage, code in code_at(terms.stages, commit).items():
        named = [dep for dep in there[stage].deps if is_code(dep)]
        missing = sorted(code.keys() - set(named)) if named else []
        if missing:
            problems.append(
                f"{commit[:10]}: dvc.yaml: {stage} does not name {missing[0]}, which it runs, so that DVC would take "
                "results of other code for its own; `paribus deps` writes it, then commit dvc.yaml"
            )
    return problems


# ---------------------------------------------------------------- the budget


def settled_budget(terms: Terms, baseline: str, own: Facts) -> float | None:
    """The budget of a run, in tokens or FLOPs; None: as many tokens as the baseline's parameters say.

    Seconds become tokens once, by the measured speed of the first baseline that was asked, and stay: so the runs of all
    tries train equally long, and are found again.

    Args:
        terms: of the try.
        baseline: its commit.
        own: facts of the baseline.
    """
    budget = terms.budget
    if budget is None:
        return None
    if budget.measure != "seconds":
        return budget.amount
    return _tokens_of_seconds(terms, budget, baseline, own)


def _tokens_of_seconds(terms: Terms, budget: Budget, baseline: str, own: Facts) -> float:
    key = fingerprint(seconds=budget.amount, overrides=terms.overrides, stages=terms.stages)[:16]
    place = state_root() / "tries" / f"speed-{key}.json"
    known = read_json(place, {"tokens": (int, float)})
    if known is not None:
        return float(known["tokens"])
    print(f"measuring a step of the baseline, to turn {budget.text} into tokens", file=sys.stderr)
    measured = facts_of(terms, baseline, "baseline", measure=True)
    assert measured.step_seconds is not None
    steps = max(round(budget.amount / measured.step_seconds), 1)
    tokens = float(steps * own.batch_tokens)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        place,
        {
            "tokens": tokens,
            "budget": budget.text,
            "baseline": baseline,
            "step_seconds": measured.step_seconds,
        },
    )
    return tokens


def _steps(
    terms: Terms, budget: float | None, baseline: Facts, own: Facts, name: str
) -> int | None:
    """Steps of pretraining that give a side the budget. Raises UserError where they are too few."""
    if "pretrain" not in terms.stages:
        return None
    if terms.budget is not None and terms.budget.measure == "flops":
        steps = round((budget or 0.0) / own.step_flops)
    else:
        tokens = budget if budget is not None else baseline.steps * baseline.batch_tokens
        steps = round(tokens / own.batch_tokens)
    if steps < LEAST_STEPS:
        asked = terms.budget.text if terms.budget else "the baseline's length"
        raise UserError(
            f"budget: {asked} is {steps} steps of {own.batch_tokens:,} tokens for the {name}; expected at least "
            f"{LEAST_STEPS} steps, {LEAST_STEPS * own.batch_tokens:,} tokens"
        )
    return steps


# ---------------------------------------------------------------- asking a side's own code


def facts_of(terms: Terms, commit: str, name: str, measure: bool = False) -> Facts:
    """What a commit's own code makes of its parameters; remembered, but for what is measured.

    Args:
        terms: with the overrides of both sides.
        commit: of the side.
        name: of the side, for messages.
        measure: whether to measure the seconds of a step.

    Raises:
        UserError: where its code does not start, or refuses its parameters, with its own words.
    """
    key = fingerprint(commit=commit, overrides=terms.overrides)[:20]
    place = state_root() / "tries" / "facts" / f"{key}.json"
    known = None if measure else read_json(place)
    if known is None:
        known = _ask(commit, name, {"overrides": terms.overrides, "measure": measure})
        if not measure:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, known)
    fields = {field.name for field in dataclasses.fields(Facts)}
    return Facts(**{key: value for key, value in known.items() if key in fields})


def _ask(commit: str, name: str, question: dict[str, object]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="facts-", dir=_facts_folder()))
    try:
        made = clone(main_checkout(), commit, folder / "clone")
        environment = dict(os.environ)
        paths = [str(made.project / "src"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        done = subprocess.run(
            [sys.executable, "-P", str(Path(facts_file.__file__).resolve())],
            cwd=made.project,
            env=environment,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=FACTS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the {name}'s code gives no answer in {FACTS_SECONDS:g} seconds") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        raise DoesNotStart(f"the {name}'s code does not start: {_last_words(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "problems" in answer:
        raise UserError(f"the {name}, {commit[:10]}: {problem}" for problem in answer["problems"])
    return answer


class DoesNotStart(UserError):
    """The code of a side cannot be imported, or crashes on its parameters."""


def _facts_folder() -> Path:
    folder = state_root() / "tries"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _last_words(text: str) -> str:
    """The place and the message at the end of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    place = f" ({places[-1]})" if places else ""
    return f"{lines[-1]}{place}" if lines else "no message"

"""`paribus ablate` and `paribus noise`: arms x seeds, each a run in a clean clone, and a verdict on every arm.

DVC's experiments show which runs are done, so that every command may be killed at any instant and called again. The
commands read the user's checkout and write nothing to it except the report's files.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paribus.cli.engines import LOCAL, Prepared, prepare
from paribus.errors import EXIT_MACHINE, MachineError, UserError
from paribus.execute.leftovers import remove_leftovers
from paribus.execute.machine import is_machines_fault
from paribus.git import GitError, git
from paribus.journal import Journal, locked
from paribus.places import state_root
from paribus.study.code_checks import (
    check_code,
    code_lines,
    code_notes,
    commits_of,
    settle_arms,
)
from paribus.study.driver import Driver
from paribus.study.events import GivenUp, folder_of, given_up
from paribus.study.experiment import Experiment, Run
from paribus.study.identity import unchanged_sources
from paribus.study.ladder import judge
from paribus.study.outcomes import Outcomes
from paribus.study.reading import noise_experiment, read_experiment
from paribus.study.record import note
from paribus.study.registration import check_sources, registered
from paribus.study.results import Result, collect, different_models, done, of_other_arms
from paribus.study.settled import Study, keep_goal, settle, study_of
from paribus.study.targets import check_within_curves
from paribus.study.trial_start import start_arms
from paribus.study.tuned import (
    settled_by_tuning,
    trial_study,
    trials_part,
    untuned_part,
)

# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class How:
    """How the runs of a study are computed.

    Attributes:
        workers: runs side by side; None: as the file says, or one for each GPU of `gpus`.
        gpus: of this machine, separated by commas; None: all.
        retry: try again what was given up.
        engine: `local`, `ray` or `ray:HOST:PORT`.
        looks: of an open study, how many to take.
    """

    workers: int | None = None
    gpus: str | None = None
    retry: bool = False
    engine: str = LOCAL
    looks: int = 1


def run(name: str, how: How) -> None:
    """Run, or go on with, the ablation NAME, an open one to its next look; then report.

    Args:
        name: of the ablation's file.
        how: its runs are computed.

    Raises:
        UserError: before any compute, where something is wrong.
    """
    experiment = read_experiment(name, to_run=True)
    notes = experiment.warnings + changes(experiment) + altered_runs(experiment)
    for warning in notes + code_notes(experiment):
        print(f"warning: {warning}", file=sys.stderr)
    registered(experiment.file)
    with unchanged_sources():
        study = execute_parts(experiment, how)
        _report(study, changes(experiment), force=False, whole=experiment)


def execute_parts(experiment: Experiment, how: How) -> Study:
    """Run what a study lacks; of a tuned one its trials, its verdict with what they picked, and its arms untuned.

    Args:
        experiment: as its file has it.
        how: its runs are computed.

    Returns:
        The study that is judged.
    """
    if experiment.tune is None:
        return execute(experiment, how)[0]
    execute(experiment, how, tuning=True)
    judged, _ = execute(settled_by_tuning(experiment), how)
    execute(untuned_part(experiment), how)
    return judged


def execute(experiment: Experiment, how: How, tuning: bool = False) -> tuple[Study, list[Result]]:
    """Run what is missing. Exits with EXIT_PAUSED when `paribus ablate stop` asks for it.

    Args:
        experiment: the study.
        how: its runs are computed.
        tuning: its trials, in place of its arms.
    """
    check_sources(experiment.stages)
    check_code(experiment)
    for line in code_lines(experiment):
        print(line, file=sys.stderr)
    prepared = prepare(how.engine, experiment, how.workers, how.gpus)
    part = trials_part(experiment) if tuning else experiment
    folder = folder_of(part.name)
    with locked(folder / "lock", wait=False) as mine:
        if not mine:
            raise UserError(
                f"{part.name} is being run by another `paribus ablate run`; `paribus ablate status "
                f"{experiment.name} --watch` shows it"
            )
        (folder / "stop").unlink(missing_ok=True)
        for found in remove_leftovers(state_root()):
            print(found, file=sys.stderr)
        try:
            if tuning:
                settled = settle(replace(part, equal="none"), prepared.side_by_side)
                study: Study = trial_study(experiment, settled)
            else:
                study = Study(experiment, settle(experiment, prepared.side_by_side))
            if how.retry:
                _try_again(study)
            if experiment.seeds.open and not tuning:
                study.aim(collect(experiment), how.looks)
                keep_goal(study)
            return study, _drive(study, experiment, prepared)
        except (OSError, GitError, MachineError) as error:
            if not is_machines_fault(error):
                raise
            print(
                f"paribus: {experiment.name}: {error}; no seed is lost: when that is put right, call it again",
                file=sys.stderr,
            )
            raise SystemExit(EXIT_MACHINE) from None


def _drive(study: Study, experiment: Experiment, prepared: Prepared) -> list[Result]:
    """Run what a study lacks. experiment: with the arms that it, or the study that its trials are of, has."""
    name = experiment.of or experiment.name
    commit = git("rev-parse", "HEAD")
    threads = study.settled["threads"]
    extra = {"train.threads": threads} if threads else {}
    train = study.experiment.config(extra=extra).train
    engine = prepared.open(train, commits_of(experiment))
    try:
        start_arms(experiment, engine, commit)
        settle_arms(experiment)
        return Driver(study, engine, commit).drive()
    except KeyboardInterrupt:
        print(
            f"\n{name}: its runs save their states; `paribus ablate run {name}` goes on",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    finally:
        engine.close()


def _try_again(study: Study) -> None:
    """Note in the journal that runs which were given up are to be tried again."""
    name = study.experiment.name
    runs = study.possible(collect(study.experiment))
    failures = given_up(name, runs)
    journal = Journal(folder_of(name) / "journal.jsonl", lambda text: print(text, file=sys.stderr))
    for one in runs:
        if one.name in failures:
            print(f"{one.name}: is tried again ({failures[one.name].words})", file=sys.stderr)
            journal.append({"time": time.time(), "run": one.name, "event": "retry", "key": one.key})
    journal.close()


def changes(experiment: Experiment) -> list[str]:
    """A warning where the file has changed since results were obtained: the question must precede the answer."""
    blobs = {result.file for result in collect(experiment)} - {None}
    if not blobs:
        return []
    try:
        now = registered(experiment.file)
    except UserError as error:
        return list(error.problems)
    other = sorted(str(blob)[:10] for blob in blobs - {now})
    if not other:
        return []
    return [
        f"{experiment.file} was changed after its first result: results were obtained under {', '.join(other)}, and it is "
        f"{now[:10]} now; the report shows what changed"
    ]


def altered_runs(experiment: Experiment) -> list[str]:
    """A warning for each finished run whose experiment was changed after it ran: it counts for nothing."""
    return [
        f"{result.name}: {', '.join(result.altered)} of its experiment {result.experiment[:10]} is not as DVC "
        "noted it when the run ended (its dvc.lock, or the run-cache), so that it counts for nothing; "
        "`paribus ablate run` makes it again"
        for result in collect(experiment)
        if result.altered and not result.superseded
    ]


def plan(name: str, **options: Any) -> None:
    """Print what the ablation NAME can find after each look, and what that costs. options: of `pages.foresight.foresee`."""
    from paribus.pages.foresight import foresee

    study = study_of(settled_by_tuning(read_experiment(name)))
    foresee(study, usable(study).outcomes, **options)


# ---------------------------------------------------------------- reporting


def report(name: str, force: bool = False, as_json: bool = False) -> None:
    """Judge the finished runs, print the verdicts and write the pages.

    Args:
        name: of the ablation's file.
        force: replace a page that rests on more runs.
        as_json: print what experiments/results/NAME.json holds, and the verdicts on stderr.
    """
    whole = read_experiment(name)
    changed = changes(whole)
    for warning in changed:
        print(f"warning: {warning}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        data = _report(study_of(settled_by_tuning(whole)), changed, force, whole)
    if as_json:
        print(data.read_text(encoding="utf-8"), end="")


def _report(study: Study, changed: Sequence[str], force: bool, whole: Experiment) -> Path:
    """Write the pages of a study and the file with its data, and return that. whole: as its file has it."""
    from paribus.pages.factors import as_json
    from paribus.pages.verdict import write_pages
    from paribus.study.factor_effects import factor_effects
    from paribus.study.published import check_not_fewer, publish
    from paribus.study.tuning_report import tuning_report

    name = study.experiment.name
    if whole.tune is not None and study.experiment is whole:
        raise UserError(
            f"{name}: its trials have not all ended yet; `paribus ablate run {name}` goes on, `paribus ablate status {name}` "
            "shows how it stands"
        )
    evidence = usable(study)
    results = evidence.outcomes.results
    if not results:
        raise UserError(
            f"{name}: nothing is done yet; `paribus ablate run {name}` begins it, `paribus ablate status {name}` "
            "shows how it stands"
        )
    mixed = different_models(results)
    if mixed:
        raise UserError(f"{problem}; their mean would be of neither" for problem in mixed)
    check_within_curves(study.experiment, results)
    if not force:
        check_not_fewer(name, results)
    failures = {run: one.words for run, one in evidence.failures.items()}
    notes = [*evidence.notes, *changed]
    judged = judge(study.experiment, evidence.outcomes, study.record)
    more: dict[str, object] = {}
    tuning = None
    if whole.tune is not None:
        untuned = usable(study_of(untuned_part(whole))).outcomes
        tuning = tuning_report(whole, evidence.outcomes, untuned)
        more["tuning"] = tuning.as_json()
    if whole.factorial is not None:
        more["factors"] = as_json(factor_effects(whole, evidence.outcomes))
    write_pages(study.experiment, evidence.runs, evidence.outcomes, judged, failures, notes, tuning)
    data = publish(study.experiment, evidence.outcomes, judged, evidence.left_out, more)
    note(name, judged.taken)
    return data


@dataclass(frozen=True)
class Evidence:
    """What a report rests on.

    Attributes:
        runs: of the study. outcomes: how those that count ended. failures: run -> why it has no result.
        left_out: reason -> finished runs that do not count.
        notes: sentences for the page.
    """

    runs: list[Run]
    outcomes: Outcomes
    failures: Mapping[str, GivenUp]
    left_out: Mapping[str, int]
    notes: list[str]


def usable(study: Study) -> Evidence:
    """The results that count: those of today's code and parameters, or without any, those of the code that has most."""
    experiment = study.experiment
    results = collect(experiment)
    runs = study.wanted(results)
    failures = given_up(experiment.name, runs)
    notes = []
    have = done(results, runs, study.code)
    chosen = [have[run.name] for run in runs if run.name in have]
    if not chosen and results:
        chosen = _of_older_code(results)
        commits = ", ".join(sorted({result.baseline[:10] for result in chosen}))
        notes.append(
            f"code or parameters changed since these results, which are of commit {commits}; "
            "`paribus ablate run` would compute them anew"
        )
    left_out = _left_out(study, results, chosen)
    for reason, count in left_out.items():
        notes.append(f"{count} finished run{'s' if count > 1 else ''} left out: {reason}")
    return Evidence(runs, Outcomes.of(chosen, runs, failures), failures, left_out, notes)


def _of_older_code(results: Sequence[Result]) -> list[Result]:
    """One result for each arm and seed: those of one code and one set of parameters, of which there are most.

    The arms share every parameter that no arm changes, and all runs of an arm share every parameter but the seed.
    """
    sound = [result for result in results if not result.altered]
    of_kind = _commonest(sound, lambda result: (result.code, result.common))
    chosen = {}
    for arm in dict.fromkeys(result.arm for result in of_kind):
        own = [result for result in of_kind if result.arm == arm]
        alike = _commonest(own, lambda result: result.recipe)
        alike.sort(key=lambda result: not result.superseded)  # what holds its own name comes last
        for result in alike:
            chosen[result.arm, result.seed] = result
    return sorted(chosen.values(), key=lambda result: (result.seed, result.arm))


def _commonest(results: Sequence[Result], of: Callable[[Result], Any]) -> list[Result]:
    """The results of one kind, of which there are most; of equals that whose results were not superseded."""
    kinds: dict[Any, list[Result]] = {}
    for result in results:
        kinds.setdefault(of(result), []).append(result)

    def place(kind: list[Result]) -> tuple[int, int]:
        seeds = {(result.arm, result.seed) for result in kind}
        return len(seeds), sum(not result.superseded for result in kind)

    return max(kinds.values(), key=place, default=[])


def _left_out(study: Study, results: Sequence[Result], chosen: Sequence[Result]) -> dict[str, int]:
    """Why -> finished runs that a report does not rest on."""
    counted = {result.experiment for result in chosen}
    codes = {result.code for result in chosen}
    asked = {(run.arm, run.seed) for run in study.possible(results)}
    found: dict[str, int] = {}
    for result in results:
        if result.experiment in counted:
            continue
        if result.altered:
            reason = f"changed after they ran: {', '.join(result.altered)} against what DVC noted of them"
        elif result.code not in codes:
            reason = "measured with other code"
        elif (result.arm, result.seed) not in asked:
            reason = "their seeds are not asked for any more"
        else:
            reason = "measured with other parameters, or superseded"
        found[reason] = found.get(reason, 0) + 1
    for arm, count in of_other_arms(study.experiment).items():
        found[f"the file has no arm {arm} any more"] = count
    return found


# ---------------------------------------------------------------- noise


def noise(
    profile: str,
    seeds: int,
    metrics: Sequence[str],
    how: How,
) -> None:
    """The noise floor of a profile over seeds: run what is missing, then the table of seeds for effects.

    Args:
        profile: its name.
        seeds: how many, at least 3.
        metrics: names of what is measured; none: val_bpb.
        how: the runs are computed.
    """
    from paribus.pages.noise import write_noise

    if seeds < 3:
        raise UserError(f"--seeds {seeds}: a spread needs at least 3")
    experiment, wanted = noise_experiment(profile, seeds, metrics or ["val_bpb"])
    with unchanged_sources():
        _, results = execute(experiment, how)
        write_noise(experiment, wanted, results)

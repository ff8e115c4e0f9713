"""Where a report comes from: commits, machines, what differed between runs, what changed since."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from statistics import stdev

from paribus import __version__
from paribus.config import fingerprint
from paribus.curriculum import TRAINING_STAGES
from paribus.git import try_git
from paribus.study.events import events_of
from paribus.study.experiment import Experiment
from paribus.study.finished import Provenance
from paribus.study.machines import ran_on
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.verdict import ArmVerdict

UNEQUAL = 4.0  # times one arm's spread over another's; of equal noise three seeds show less in 88 of 100 pairs
UNEVEN = 0.1  # the quickest over the slowest run of one arm, from which its times say more of the machine than of the arm


def provenance(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Commit, locks, file and machine of the runs; several where they differ."""
    provenances = [result.provenance for result in results]
    return {
        "commit": _each(result.against for result in results),
        "file": _each(result.file for result in results),
        "requirements.lock": _each(written.requirements_lock for written in provenances),
        "machine": _each(_machine(written) for written in provenances),
        "versions": _each(_versions(written) for written in provenances),
        "ran on": ran_on(results) or "–",
        "stages": ", ".join(experiment.stages),
    }


def _each(values: Iterable[str | None]) -> str:
    """Every value once; a dash where there is none."""
    return ", ".join(sorted({value for value in values if value})) or "–"


def _machine(written: Provenance) -> str:
    hardware = written.hardware
    if not hardware:
        return ""
    threads = hardware["threads"]
    return f"{hardware['device_name']}, {hardware['dtype']}, {threads} thread{'s' if threads != 1 else ''}"


def _versions(written: Provenance) -> str:
    """Of Python and of the libraries that compute."""
    shown = [name for name in written.versions if name in ("python", "torch", "numpy")]
    return ", ".join(f"{name} {written.versions[name]}" for name in shown)


def mixtures(results: Sequence[Result]) -> list[str]:
    """What differs between runs, arm and seed aside."""
    provenances = [result.provenance for result in results]
    kinds: dict[str, set[str | None]] = {
        "hardware": {_kind_of_hardware(written) for written in provenances},
        "requirements.lock": {written.requirements_lock for written in provenances},
        "versions": {fingerprint(**written.versions) for written in provenances},
    }
    return [
        f"the runs differ in more than arm and seed: {name} is of {len(values)} kinds"
        for name, values in kinds.items()
        if len(values) > 1
    ]


def _kind_of_hardware(written: Provenance) -> str:
    """Equal for machines that compute the same; the number of processes that share the threads does not matter."""
    ignored = ("processes", "process_threads")
    return fingerprint(
        **{key: value for key, value in written.hardware.items() if key not in ignored}
    )


def uneven(results: Sequence[Result]) -> list[str]:
    """A word of caution where runs of the same arm went at different speeds."""
    speeds: dict[str, list[float]] = {}
    for result in results:
        if speed := result.number("pretrain", "tokens_per_second"):
            speeds.setdefault(result.arm, []).append(speed)
    worst = max((max(of) / min(of) - 1 for of in speeds.values()), default=0.0)
    if worst <= UNEVEN:
        return []
    return [
        f"runs of the same arm differ by up to {worst:.0%} in tokens/s: other work ran on this machine, and the figures of "
        "time (tokens/s, wall-clock, equal time) show that as well"
    ]


def without_value(experiment: Experiment, outcomes: Outcomes) -> list[str]:
    """Runs that ended without a finite metric, or without it at all, each named.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
    """
    metric = experiment.metric.name
    named = []
    for result in outcomes.results:
        if result.value is None:
            how = "is not finite: it diverged" if result.diverged else "is missing"
            named.append(f"{result.name}: its {metric} {how}; its seed is in no difference")
    return named


def skipped(results: Sequence[Result]) -> list[str]:
    """Runs that skipped steps or went back to an earlier state, each named: they read other batches than the other arms."""
    named = []
    for result in results:
        parts = []
        for stage in TRAINING_STAGES:
            rollbacks = result.number(stage, "rollbacks")
            steps = result.number(stage, "nonfinite_steps")
            if rollbacks:
                parts.append(f"{rollbacks:.0f} rollback{'s' if rollbacks > 1 else ''} in {stage}")
            if steps:
                parts.append(f"{steps:.0f} step{'s' if steps > 1 else ''} skipped in {stage}")
        if parts:
            named.append(
                f"{result.name}: {', '.join(parts)}, for gradients that were not finite; from there on it did not read the same "
                "batches as the other arms"
            )
    return named


def unequal_noise(found: Sequence[ArmVerdict]) -> list[str]:
    """Arms whose values spread much more, or much less, than the baseline's.

    Student's t holds where noise is symmetric, however unequal; where it is skewed as well it errs more often than it says:
    8 % of the time at twice the spread, 20 % at five times (docs/statistics.md).

    Args:
        found: the verdicts, the baseline left out.
    """
    named = []
    for arm in found:
        if len(arm.values) < 3:
            continue
        own, base = stdev(arm.values), stdev(arm.baseline)
        if min(own, base) <= 0 or max(own, base) < UNEQUAL * min(own, base):
            continue
        more, less = (arm.name, "the baseline") if own > base else ("the baseline", arm.name)
        named.append(
            f"values of {more} spread {max(own, base) / min(own, base):.1f} times as much as those of {less}: if they are skewed "
            f"as well, the verdict on {arm.name} is wrong more often than alpha says; `skewed: true` bears that"
        )
    return named


def trouble(experiment: Experiment) -> str:
    """What had to be started again, in words."""
    events = [event.event for event in events_of(experiment.name)]
    counts = {
        word: events.count(word) for word in ("interrupted", "paused", "failed") if word in events
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def file_diff(experiment: Experiment, results: Sequence[Result]) -> str:
    """What changed in the experiment's file since its results were obtained."""
    now = (
        experiment.file.read_text(encoding="utf-8").splitlines()
        if experiment.file.is_file()
        else []
    )
    lines: list[str] = []
    for blob in sorted({result.file for result in results if result.file}):
        then = (try_git("cat-file", "blob", blob) or "").splitlines()
        lines += difflib.unified_diff(then, now, f"as run, {blob[:10]}", "now", lineterm="")
    return "\n".join(lines)


def as_sentence(note: str) -> str:
    """A note as a page prints it: with a capital, but for the name of a run, and a stop.

    Args:
        note: a clause.
    """
    first = note.split(maxsplit=1)[0] if note.strip() else ""
    is_word = first.isalpha() and first.islower()
    begun = note[0].upper() + note[1:] if is_word else note
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."


def reproduce(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """Commands that compute the study again, and check the runs that it rests on.

    Args:
        experiment: the study.
        results: of the runs that count.
    """
    name = experiment.of or experiment.name
    commits = sorted({result.baseline for result in results if result.baseline})
    asked_for = str(experiment.file.relative_to("experiments").with_suffix(""))
    commands = [f"git checkout {commits[0][:12]}"] if len(commits) == 1 else []
    commands += [f"paribus ablate run {asked_for}", f"paribus verify --study {name}"]
    for arm in experiment.arms:
        commands.append(f"paribus compare '{name}.{arm}.*' '{name}.baseline.*'")
    return commands[:6]


def cited(experiment: Experiment, results: Sequence[Result]) -> str:
    """The study as a reference for a paper, in BibTeX.

    Args:
        experiment: the study.
        results: of the runs that count.
    """
    days = [try_git("show", "-s", "--format=%cs", result.experiment) or "" for result in results]
    day = max(days, default="")
    seeds = sorted({result.seed for result in results})
    commits = ", ".join(sorted({result.baseline[:12] for result in results if result.baseline}))
    runs = f"{len(results)} runs" + (f", seeds {seeds[0]} to {seeds[-1]}" if seeds else "")
    fields = {
        "title": f"{{{experiment.question}}}",
        "author": "{{The paribus maintainers}}",
        "howpublished": f"{{paribus {__version__}, study {experiment.name}, commit {commits or 'unknown'}}}",
        "note": f"{{{runs}}}",
    }
    if day:
        fields["year"] = day[:4]
    lines = [f"  {key} = {value}," for key, value in fields.items()]
    return "\n".join([f"@misc{{paribus-{experiment.name},", *lines, "}"])

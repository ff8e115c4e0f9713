"""The report of an ablation: one offline HTML file, one Markdown file with its picture, and the same as an MLflow run."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import tracking
from paribus.config import fingerprint, flatten
from paribus.files import write_atomic
from paribus.git import try_git
from paribus.journal import read_json
from paribus.pages.code_arms import code_sections, code_tags, write_diffs
from paribus.pages.drawing import svg, templates
from paribus.pages.markdown import cell, fenced, line, paragraph
from paribus.pages.verdict_figures import draw
from paribus.places import state_root
from paribus.study.divergence import Diverged
from paribus.study.events import events_of
from paribus.study.experiment import BASELINE, Experiment, Run
from paribus.study.finished import Provenance
from paribus.study.results import Result
from paribus.study.scaling import scaling
from paribus.study.statistics import Effect, holm
from paribus.study.verdict import ArmVerdict, costs, plan_of, verdicts
from paribus.text import duration, p_value, quantity, share, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path("experiments/results")
ALT = {
    "forest": "difference of every arm from the baseline with its interval",
    "curve": "difference in bits per byte over training, with its band",
    "scaling": "the metric over parameters at equal compute, with the parabola through it",
}
UNEVEN = 0.1  # the quickest over the slowest run of one arm, from which its times say more of the machine than of the arm
# keys that change which rows a seed gives; other sizes of a step take the same rows in other portions
DECIDES_ROWS = (
    "corpus.",
    "tokenizer.",
    "tokens.",
    "model.seq_len",
    "pretrain.packing",
    "midtrain.mixture",
    "midtrain.epochs",
    "sft.mixture",
    "sft.epochs",
    "rl.curriculum",
    "rl.dynamic_sampling",
)
COST_ROWS = {  # of the cost table: name -> (words, how it is written)
    "tokens_per_second": ("tokens/s", quantity),
    "peak_memory_bytes": ("peak memory, bytes", quantity),
    "parameters": ("parameters", quantity),
    "steps": ("pretraining steps", quantity),
    "tokens": ("pretraining tokens", quantity),
    "flops": ("pretraining FLOPs", quantity),
    "seconds": ("wall-clock of training", duration),
}


def write_pages(
    experiment: Experiment,
    runs: Sequence[Run],
    results: Sequence[Result],
    failures: Mapping[str, str],
    notes: Sequence[str],
    diverged: Diverged | None = None,
) -> Path:
    """Print the verdicts; write NAME.html, NAME.md and NAME.png into experiments/results; send the same to MLflow.

    Args:
        experiment: the study.
        runs: that it asks for.
        results: of the runs that count.
        failures: run -> why it has no result.
        notes: warnings.
        diverged: arm -> seeds that diverged.

    Returns:
        The HTML page.
    """
    found = verdicts(experiment, results, diverged)
    profile = scaling(experiment, found, results)
    values = page_values(experiment, runs, results, failures, notes, found)
    values["scaling"] = profile.sentence(experiment.metric.unit) if profile else None
    figures = draw(experiment, found, profile)
    RESULTS.mkdir(parents=True, exist_ok=True)
    page = RESULTS / f"{experiment.name}.html"
    write_atomic(page, html(values, figures))
    picture = RESULTS / f"{experiment.name}.png"
    for name, figure in figures.items():
        place = picture if name == "forest" else RESULTS / f"{experiment.name}-{name}.png"
        figure.savefig(place, dpi=150, facecolor="white", metadata={"Software": None})
    write_atomic(RESULTS / f"{experiment.name}.md", markdown(values, list(figures)))
    for verdict in values["verdicts"]:
        print(verdict["sentence"])
    if values["scaling"]:
        print(values["scaling"])
    for failure in values["failures"]:
        print(f"no result: {failure}")
    print(f"report: {page}")
    to_mlflow(experiment, results, values)
    return page


def html(values: dict[str, Any], figures: Mapping[str, Figure]) -> str:
    """The page as HTML.

    Args:
        values: what it shows, as `page_values` gives it.
        figures: by name, drawn into it as SVG.
    """
    from markupsafe import Markup

    drawn = {name: Markup(svg(figure, name, ALT[name])) for name, figure in figures.items()}
    return templates().get_template("verdict.html.j2").render(**values, figures=drawn)


def markdown(values: dict[str, Any], figures: Sequence[str]) -> str:
    """The page in Markdown. Questions, values, names and logs are text there, and no markup.

    Args:
        values: what it shows, as `page_values` gives it.
        figures: names of the pictures beside it.
    """
    environment = templates(escape=False)
    environment.filters |= {"line": line, "paragraph": paragraph, "cell": cell, "fenced": fenced}
    page: str = environment.get_template("verdict.md.j2").render(**values, figures=figures)
    return page


# ---------------------------------------------------------------- sentences


def sentence(experiment: Experiment, arm: str, effect: Effect | None) -> str:
    """The verdict on an arm, for people.

    Args:
        experiment: the study.
        arm: its name.
        effect: over the matched seeds; None: there are none.
    """
    if effect is None:
        return f"{arm}: no verdict, as no seed of it and of the baseline is done."
    size = f"{signed(effect.mean)} {experiment.metric.unit}"
    interval = (
        f"{1 - experiment.alpha:.0%} interval {signed(effect.low)} to {signed(effect.high)}, {effect.n} matched seeds, "
        f"{p_value(effect.p_adjusted)}"
    )
    if effect.verdict == "equivalent":
        return (
            f"{arm} is equivalent to the baseline: {size} ({interval}), within "
            f"±{experiment.smallest_effect:g}, the smallest effect that this study considers relevant."
        )
    if effect.verdict == "undecided":
        if effect.stdev == 0 and effect.mean == 0:
            return (
                f"{arm}: undecided: {experiment.metric.name} is the same in both arms at each of {effect.n} matched seeds, "
                "which does not show that they are equal: it may be at its floor, too coarse (more items, or a finer "
                "metric), or not touched by the change."
            )
        return f"{arm}: undecided: {size} ({interval}); {next_step(experiment, effect)}."
    return f"{arm} is {effect.verdict} than the baseline: {size} ({interval}; {experiment.direction} is better)."


def next_step(experiment: Experiment, effect: Effect) -> str:
    """The options for an undecided arm that keep verdicts as rarely wrong as they claim.

    Args:
        experiment: the study.
        effect: of the arm.
    """
    if effect.more_seeds is None:
        return "more than 100,000 seeds would be needed"
    if experiment.sequential and effect.n < experiment.seeds[1]:
        return f"run {effect.more_seeds} more seeds, to the study's next look"
    needed = effect.n + effect.more_seeds
    return (
        f"by this spread about {needed} seeds would decide, in a new study with fresh seeds (more seeds in this one "
        "raise its chance of a false verdict)"
    )


def page_values(
    experiment: Experiment,
    runs: Sequence[Run],
    results: Sequence[Result],
    failures: Mapping[str, str],
    notes: Sequence[str],
    found: Sequence[ArmVerdict],
) -> dict[str, Any]:
    """What the templates show, by name.

    Args:
        experiment: the study.
        runs: that it asks for.
        results: of the runs that count.
        failures: run -> why it has no result.
        notes: warnings.
        found: the verdicts, the baseline left out.
    """
    names = [BASELINE, *(arm.name for arm in found)]
    in_order = sorted(results, key=lambda result: (result.seed, names.index(result.arm)))
    return {
        "experiment": experiment,
        "verdicts": [_verdict_row(experiment, arm) for arm in found],
        "names": names,
        "cost": _cost_rows(experiment, results, found),
        "held": held(experiment, found),
        "looks": plan_of(experiment),
        "values": _values(found),
        "items": _item_rows(found),
        "times": [(arm.name, arm.at_equal_time) for arm in found if arm.at_equal_time],
        "failures": [f"{name}: {why}" for name, why in failures.items()],
        "notes": [*experiment.warnings, *notes, *_mixtures(results), *_uneven(results)],
        "diff": _file_diff(experiment, results),
        "runs": [_run_row(result) for result in in_order],
        "missing": len(runs) - len(results) - len(failures),
        "provenance": _provenance(experiment, results),
        "trouble": _trouble(experiment),
        "code": code_sections(experiment, results),
        "signed": signed,
    }


def _cost_rows(
    experiment: Experiment, results: Sequence[Result], found: Sequence[ArmVerdict]
) -> list[list[str]]:
    """Name of a cost, and its value for the baseline and each arm; a cost without values is left out."""
    columns = [costs(experiment, results, BASELINE), *(arm.cost for arm in found)]
    rows = []
    for key, (name, write) in COST_ROWS.items():
        values = [column[key] for column in columns]
        if any(value is not None for value in values):
            rows.append([name, *("–" if value is None else write(value) for value in values)])
    return rows


def _verdict_row(experiment: Experiment, arm: ArmVerdict) -> dict[str, Any]:
    changed = "; ".join(
        f"{key}: {before} → {after}" for key, (before, after) in arm.changed.items()
    )
    definition = experiment.arms[arm.name]
    if definition.code is not None:
        changed = "; ".join(filter(None, [f"the code of {definition.asked}", changed]))
    return {
        "name": arm.name,
        "sentence": caveat(arm) or sentence(experiment, arm.name, arm.effect),
        "effect": arm.effect,
        "changed": f"{arm.as_one} ({changed})" if arm.as_one else changed,
        "verdict": _word(arm),
    }


def _word(arm: ArmVerdict) -> str:
    """The verdict in a word."""
    if arm.changed_nothing:
        return "changed nothing"
    return arm.effect.verdict if arm.effect else "none"


def caveat(arm: ArmVerdict) -> str:
    """The sentence in place of a verdict where an arm changed nothing, or seeds of it or the baseline diverged."""
    if arm.changed_nothing:
        return (
            f"{arm.name} changed nothing: at {len(arm.seeds)} matched seeds its weights are the baseline's, bit for bit; "
            "what it sets is not used in this configuration."
        )
    lost = arm.survivors.sentence(arm.name)
    if not lost:
        return ""
    effect = arm.effect
    if effect is None:
        return f"{arm.name}: no verdict: {lost}."
    size = f"{signed(effect.mean)} over the {effect.n} matched seeds that survived"
    if effect.verdict == "undecided":
        return f"{arm.name}: undecided: {lost}, and no verdict rests on the others alone ({size})."
    return f"{arm.name} is {effect.verdict} than the baseline, although {lost} ({size})."


def held(experiment: Experiment, found: Sequence[ArmVerdict]) -> str:
    """What was held equal, and what matched seeds share, in words.

    Args:
        experiment: the study.
        found: the verdicts, the baseline left out.
    """
    amount = f" ({quantity(experiment.amount)})" if experiment.amount else ""
    budget = {
        "none": "Nothing was held equal: the arms cost what they cost; see the table of costs.",
        "tokens": f"Training tokens{amount}: every arm read as many.",
        "flops": f"Training FLOPs{amount}: pretraining steps of each arm follow from the FLOPs of its steps, Muon's products "
        "and the keys that attention sees included.",
        "seconds": f"Training time{amount}: pretraining steps of each arm follow from the measured seconds of its steps.",
    }[experiment.equal]
    return f"{budget} {shared_rows(found)} {shared_values(experiment, found)}"


def shared_rows(found: Sequence[ArmVerdict]) -> str:
    """Whether the arms read the same rows in the same order at one seed."""
    others = []
    for arm in found:
        if any(key.startswith(DECIDES_ROWS) for key in arm.changed):
            others.append(arm.name)
    if not others:
        return "At one seed every arm reads the same rows in the same order."
    return f"At one seed the arms read the same rows in the same order, but for {', '.join(others)}, whose rows are others."


def shared_values(experiment: Experiment, found: Sequence[ArmVerdict]) -> str:
    """Which share of each arm's initial values is the baseline's at one seed: tensors of the same shape and scale.

    Args:
        experiment: the study.
        found: the verdicts, the baseline left out.
    """
    from paribus.model.initial import shared_initial_tensors
    from paribus.recipe import Recipe

    base = Recipe.of(experiment.config())
    shares = []
    for arm in found:
        own = Recipe.of(experiment.config(arm.name))
        shared = shared_initial_tensors(
            own.architecture, own.vocab_size, base.architecture, base.vocab_size
        )
        shares.append((arm.name, shared.same_fraction))
    if all(share == 1 for _, share in shares):
        return "Every tensor of every arm begins with the baseline's values there."
    listed = ", ".join(f"{name} {share(part)}" for name, part in shares)
    return (
        f"Of an arm's initial values these are the baseline's there: {listed}; "
        "the others have another shape or scale, or no tensor of the baseline has their name."
    )


def _item_rows(found: Sequence[ArmVerdict]) -> list[dict[str, Any]]:
    """What the items say of each arm, with p after Holm over the arms; the verdict is of the seeds alone."""
    effects = {arm.name: arm.items for arm in found if arm.items}
    adjusted_p = holm({name: item.p for name, item in effects.items()})
    exact = {name: item.mcnemar_p for name, item in effects.items() if item.mcnemar_p is not None}
    adjusted_exact = holm(exact)
    return [
        {
            "name": name,
            "effect": item,
            "p": adjusted_p[name],
            "mcnemar_p": adjusted_exact.get(name),
        }
        for name, item in effects.items()
    ]


def _values(found: Sequence[ArmVerdict]) -> list[dict[str, Any]]:
    """The metric of each matched pair."""
    rows = []
    for arm in found:
        for seed, base, value in zip(arm.seeds, arm.baseline, arm.values, strict=True):
            pair = {"arm": arm.name, "seed": seed, "baseline": base, "value": value}
            rows.append(pair | {"difference": value - base})
    return rows


def _run_row(result: Result) -> dict[str, Any]:
    links = {stage: _mlflow_run(stage, mark) for stage, mark in result.fingerprints.items()}
    return {
        "arm": result.arm,
        "seed": result.seed,
        "name": result.name,
        "experiment": result.experiment,
        "value": result.value,
        "fingerprints": result.fingerprints,
        "mlflow": {stage: link for stage, link in links.items() if link},
    }


def _mlflow_run(stage: str, mark: str) -> str | None:
    known = read_json(state_root() / "runs" / f"{stage}-{mark}" / "mlflow.json")
    return known["run_id"] if known else None


def _provenance(experiment: Experiment, results: Sequence[Result]) -> dict[str, str]:
    """Commit, locks, file and machine of the runs; several where they differ."""
    provenances = [result.provenance for result in results]
    return {
        "commit": _each(result.baseline for result in results),
        "file": _each(result.file for result in results),
        "requirements.lock": _each(written.requirements_lock for written in provenances),
        "machine": _each(_machine(written) for written in provenances),
        "versions": _each(_versions(written) for written in provenances),
        "stages": ", ".join(experiment.stages),
    }


def _each(values: Iterable[str | None]) -> str:
    """Every value once; a dash where there is none."""
    return ", ".join(sorted({value for value in values if value})) or "–"


def _machine(written: Provenance) -> str:
    hardware = written.hardware
    if not hardware:
        return ""
    return f"{hardware['device_name']}, {hardware['dtype']}, {hardware['threads']} threads"


def _versions(written: Provenance) -> str:
    """Of Python and of the libraries that compute."""
    shown = [name for name in written.versions if name in ("python", "torch", "numpy")]
    return ", ".join(f"{name} {written.versions[name]}" for name in shown)


def _mixtures(results: Sequence[Result]) -> list[str]:
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


def _uneven(results: Sequence[Result]) -> list[str]:
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


def _trouble(experiment: Experiment) -> str:
    """What had to be started again, in words."""
    events = [event.event for event in events_of(experiment.name)]
    counts = {
        word: events.count(word) for word in ("interrupted", "paused", "failed") if word in events
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _file_diff(experiment: Experiment, results: Sequence[Result]) -> str:
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


# ---------------------------------------------------------------- MLflow


def to_mlflow(experiment: Experiment, results: Sequence[Result], values: dict[str, Any]) -> None:
    """A run of its own, under a parent named after the ablation: pages, verdicts, a link to every run it rests on.

    The same report again changes nothing there.

    Args:
        experiment: the study.
        results: of the runs that count.
        values: what the page shows, as `page_values` gives it.
    """
    folder = state_root() / "runs" / f"ablation-{experiment.name}"
    mark = fingerprint(
        sentences=[verdict["sentence"] for verdict in values["verdicts"]],
        runs=values["runs"],
        notes=values["notes"],
    )
    before = read_json(folder / "run.json")
    if before and before["status"] == "FINISHED" and before["tags"]["fingerprint"] == mark:
        return
    config = experiment.config()
    overrides = {f"arms.{name}": arm.overrides for name, arm in experiment.arms.items()}
    links = _links(values["runs"])
    note = _note(experiment, values["verdicts"], links)
    with tracking.RunLog.open(
        "ablation",
        folder=folder,
        config=config,
        params=flatten(config) | flatten(overrides),
        fingerprint=mark,
        tags={"ablation": experiment.name, "mlflow.note.content": note, **links}
        | code_tags(values["code"]),
        execution=f"ablation {experiment.name}",
    ) as log:
        for suffix in (".html", ".md", ".png", "-curve.png", "-scaling.png"):
            path = RESULTS / f"{experiment.name}{suffix}"
            if path.is_file():
                log.artifact(path, "report")
        if experiment.file.is_file():
            log.artifact(experiment.file)
        for path in write_diffs(values["code"], folder / "code"):
            log.artifact(path, "code")
        log.summary(_effects(values["verdicts"]))


def _links(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`run.ARM-sSEED.STAGE` -> the id of the run in MLflow. rows: of the page's table of runs."""
    links = {}
    for row in rows:
        for stage, run_id in row["mlflow"].items():
            links[f"run.{row['arm']}-s{row['seed']}.{stage}"] = run_id
    return links


def _note(
    experiment: Experiment, verdicts: Sequence[Mapping[str, Any]], links: Mapping[str, str]
) -> str:
    """The question, every verdict, and a link to every run, as Markdown."""
    lines = [f"**{line(experiment.question)}**", ""]
    lines += [paragraph(verdict["sentence"]) for verdict in verdicts]
    lines.append("")
    lines += [f"- [{name.removeprefix('run.')}](#/runs/{run})" for name, run in links.items()]
    return "\n".join(lines)


def _effects(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`ARM.FIELD` -> value, of every effect that there is."""
    effects = {}
    for verdict in verdicts:
        if verdict["effect"]:
            effects[verdict["name"]] = dataclasses.asdict(verdict["effect"])
    return {key: value for key, value in flatten(effects).items() if value is not None}

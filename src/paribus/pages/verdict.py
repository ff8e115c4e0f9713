"""The report of an ablation: one offline HTML file, one Markdown file with its picture, and the same as an MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.files import write_atomic
from paribus.journal import read_json
from paribus.pages import factors
from paribus.pages.code_arms import code_sections
from paribus.pages.compute import worth_rows
from paribus.pages.drawing import svg, templates
from paribus.pages.held_equal import held
from paribus.pages.ladder import draw_ladder, ladder_values, printed
from paribus.pages.markdown import cell, fenced, line, paragraph
from paribus.pages.verdict_answer import answer
from paribus.pages.verdict_besides import best_sentence, sentence_of
from paribus.pages.verdict_figures import draw
from paribus.pages.verdict_mlflow import to_mlflow
from paribus.pages.verdict_origin import (
    as_sentence,
    cited,
    file_diff,
    mixtures,
    provenance,
    reproduce,
    skipped,
    trouble,
    unequal_noise,
    uneven,
    without_value,
)
from paribus.pages.verdict_sentences import caveat, say, sentence
from paribus.places import state_root
from paribus.study.advice import Again, NextLook, again, next_look
from paribus.study.besides import Besides
from paribus.study.compute import in_compute
from paribus.study.compute import sentence as sentence_in_compute
from paribus.study.experiment import BASELINE, Experiment, Run
from paribus.study.factor_effects import factor_effects
from paribus.study.fields import as_written
from paribus.study.ladder import LadderJudged
from paribus.study.looks import p_over_looks
from paribus.study.machines import notes as spread_notes
from paribus.study.outcomes import Outcomes
from paribus.study.preregistration import Registration, registration, shared_with
from paribus.study.record import PUBLISHED as RESULTS
from paribus.study.record import recorded
from paribus.study.results import Result
from paribus.study.scaling import scaling
from paribus.study.sequence import Judged, Step, added_arms
from paribus.study.statistics import holm
from paribus.study.targets import reached_notes
from paribus.study.tuning_report import TuningReport
from paribus.study.verdict import ArmVerdict, costs, verdicts
from paribus.text import duration, memory_size, quantity, signed

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

ALT = {
    "forest": "difference of every arm from the baseline with its interval",
    "curve": "difference in bits per byte over training, with its band",
    **factors.ALT,
    "scaling": "the metric over parameters at equal compute, with the parabola through it",
    "ladder": "difference of every arm from the baseline over sizes, with the line through it and its prediction",
}
COST_ROWS = {  # of the cost table: name -> (words, how it is written)
    "tokens_per_second": ("tokens/s", quantity),
    "text_bytes": ("bytes of text", quantity),
    "peak_memory_bytes": ("peak memory", memory_size),
    "parameters": ("parameters", quantity),
    "steps": ("pretraining steps", quantity),
    "tokens": ("pretraining tokens", quantity),
    "flops": ("pretraining FLOPs", quantity),
    "seconds": ("wall-clock of training", duration),
}


def write_pages(
    experiment: Experiment,
    runs: Sequence[Run],
    outcomes: Outcomes,
    judged: Judged,
    failures: Mapping[str, str],
    notes: Sequence[str],
    tuning: TuningReport | None = None,
) -> Path:
    """Print the verdicts; write NAME.html, NAME.md and NAME.png into experiments/results; send the same to MLflow.

    Args:
        experiment: the study.
        runs: that it asks for.
        outcomes: how the runs ended that count.
        judged: the verdicts.
        failures: run -> why it has no result.
        notes: warnings.
        tuning: what equal tuning did; None: the study has none.

    Returns:
        The HTML page.
    """
    values, figures = built(experiment, runs, outcomes, judged, failures, notes, tuning)
    RESULTS.mkdir(parents=True, exist_ok=True)
    page = RESULTS / f"{experiment.name}.html"
    write_atomic(page, html(values, figures))
    picture = RESULTS / f"{experiment.name}.png"
    for name, figure in figures.items():
        place = picture if name == "forest" else RESULTS / f"{experiment.name}-{name}.png"
        figure.savefig(place, dpi=150, facecolor="white", metadata={"Software": None})
    write_atomic(RESULTS / f"{experiment.name}.md", markdown(values, list(figures)))
    said = values["answer"]
    say(f"{said.head}: {said.sentence}" if said.head else said.sentence)
    for verdict in values["verdicts"]:
        say(verdict["sentence"])
    extra = [
        *values["besides"],
        values["scaling"] or "",
        *(values["tuning"] or {}).get("sentences", []),
    ]
    extra.append((values["factors"] or {}).get("agreement", ""))
    for told in filter(None, extra):
        say(told)
    for line_of_compute in values["compute"]:
        say(line_of_compute)
    if values["ladder"]:
        print("\n".join(printed(values)))
    for failure in values["failures"]:
        print(f"no result: {failure}")
    print(f"report: {page}")
    to_mlflow(experiment, values)
    return page


def built(
    experiment: Experiment,
    runs: Sequence[Run],
    outcomes: Outcomes,
    judged: Judged,
    failures: Mapping[str, str],
    notes: Sequence[str],
    tuning: TuningReport | None = None,
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """What a page shows, by name, and its figures. The arguments are those of `write_pages`."""
    crossed = factor_effects(experiment, outcomes) if experiment.factorial else None
    of_other_design = experiment.ladder or crossed
    found = [] if of_other_design else verdicts(experiment, outcomes, judged.effects)
    profile = scaling(experiment, found, outcomes.results)
    if tuning:
        notes = [*notes, *tuning.warnings()]
    values = page_values(experiment, runs, outcomes, judged, failures, notes, found)
    values["scaling"] = profile.sentence(experiment.metric.unit) if profile else None
    figures = draw(experiment, found, profile)
    climbed = draw_ladder(experiment, judged) if isinstance(judged, LadderJudged) else None
    if climbed is not None:
        figures["ladder"] = climbed
    if crossed:
        asked_again = again(experiment, outcomes)
        values["verdicts"] = factors.rows(experiment, crossed, asked_again)
        values["factors"] = factors.section(experiment, crossed)
        values["compared"] = (
            "second level − first; p after Holm over single factors, and interactions"
        )
        figures = factors.draw(experiment, crossed)
        values["answer"] = answer(experiment, values["verdicts"])
    if tuning:
        values["tuning"] = tuning_section(experiment, tuning, judged)
    return values, figures


def html(values: Mapping[str, object], figures: Mapping[str, Figure]) -> str:
    """The page as HTML.

    Args:
        values: what it shows, as `page_values` gives it.
        figures: by name, drawn into it as SVG.
    """
    from markupsafe import Markup

    drawn = {name: Markup(svg(figure, name, ALT[name])) for name, figure in figures.items()}
    environment = templates()
    environment.filters["coded"] = coded
    return environment.get_template("verdict.html.j2").render(**values, figures=drawn)


def coded(text: str) -> Markup:
    """A sentence as HTML, with what stands between backquotes as code.

    Args:
        text: of the sentence; none of it is markup.
    """
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    for place in range(1, len(parts) - 1, 2):
        parts[place] = Markup("<code>{}</code>").format(parts[place])
    if len(parts) % 2 == 0:  # the last one opens nothing
        parts[-1] = escape("`") + parts[-1]
    return Markup("").join(parts)


def markdown(values: Mapping[str, object], figures: Sequence[str]) -> str:
    """The page in Markdown. Questions, values, names and logs are text there, and no markup.

    Args:
        values: what it shows, as `page_values` gives it.
        figures: names of the pictures beside it.
    """
    environment = templates(escape=False)
    environment.filters |= {"line": line, "paragraph": paragraph, "cell": cell, "fenced": fenced}
    page: str = environment.get_template("verdict.md.j2").render(**values, figures=figures)
    return page


def page_values(
    experiment: Experiment,
    runs: Sequence[Run],
    outcomes: Outcomes,
    judged: Judged,
    failures: Mapping[str, str],
    notes: Sequence[str],
    found: Sequence[ArmVerdict],
) -> dict[str, Any]:
    """What the templates show, by name.

    Args:
        experiment: the study.
        runs: that it asks for.
        outcomes: how the runs ended that count.
        judged: the looks that were taken.
        failures: run -> why it has no result.
        notes: warnings.
        found: the verdicts, the baseline left out.
    """
    names, groups = [BASELINE, *(arm.name for arm in found)], list(experiment.groups)
    results = outcomes.results
    besides = Besides(experiment, outcomes, judged)
    answers = [sentence_of(answer, experiment.alpha) for answer in besides.answers()]
    coming = next_look(experiment, outcomes, judged, recorded(experiment.name))
    asked_again = again(experiment, outcomes)
    worth = in_compute(experiment, outcomes, judged)
    baselines = experiment.groups_of([BASELINE])
    asked = registration(results, experiment.file, baselines)
    in_order = sorted(results, key=lambda result: (result.seed, groups.index(result.arm)))
    of_machines = spread_notes(results, experiment.smallest_effect)
    about_runs = [
        *late_arms(experiment, recorded(experiment.name)),
        *filter(None, [asked.sentence()]),
        *shared_with(experiment, results),
        *without_value(experiment, outcomes),
        *reached_notes(experiment, results),
        *skipped(results),
        *mixtures(results),
        *unequal_noise(found),
        *uneven(results),
        *of_machines,
    ]
    values: dict[str, Any] = {
        "experiment": experiment,
        "verdicts": [_verdict_row(experiment, arm, coming, asked_again, asked) for arm in found],
        "asked_after": asked.exploratory,
        "names": names,
        "cost": _cost_rows(experiment, results, found),
        "held": held(experiment, found),
        "looks": looks_words(experiment, judged.taken),
        "values": _values(found),
        "besides": [*answers, *best_sentence(experiment, besides.may_be_best())],
        "items": _item_rows(found),
        "times": [(arm.name, arm.at_equal_time) for arm in found if arm.at_equal_time],
        "failures": [f"{name}: {why}" for name, why in failures.items()],
        "notes": [as_sentence(note) for note in (*experiment.warnings, *notes, *about_runs)],
        "diff": file_diff(experiment, results),
        "runs": [_run_row(result) for result in in_order],
        "missing": len(runs) - len(results) - len(failures),
        "provenance": provenance(experiment, results),
        "trouble": trouble(experiment),
        "code": code_sections(experiment, results),
        "coded": [],
        "signed": signed,
        "ladder": None,
        "compute": [
            sentence_in_compute(arm, one, experiment.metric.name) for arm, one in worth.items()
        ],
        "worth": worth_rows(worth),
        "compared": "arm − baseline at each seed; p after Holm over the arms",
        "factors": None,
        "tuning": None,
        "reproduce": reproduce(experiment, results),
        "cited": cited(experiment, results),
    }
    if isinstance(judged, LadderJudged):
        values |= ladder_values(experiment, outcomes, judged, coming, asked_again, COST_ROWS)
    values["answer"] = answer(experiment, values["verdicts"])
    values["coded"] = [section.arm for section in values["code"]]
    return values


def tuning_section(experiment: Experiment, tuning: TuningReport, judged: Judged) -> dict[str, Any]:
    """What the templates show of equal tuning.

    Args:
        experiment: the study.
        tuning: what it did.
        judged: the verdicts on the tuned arms.
    """
    rows = []
    for arm, one in tuning.tuned.items():
        best = one.best
        values = "; ".join(
            f"{key}: {value}" for key, value in (best.values if best else {}).items()
        )
        first = one.trials[0].scores[0] if one.trials else None
        row = {"name": arm, "best_values": values, "first": first, "trials": len(one.trials)}
        rows.append(row | {"best": best.score if best else None})
    sentences = []
    for arm in experiment.arms:
        sentences.append(tuning.sentence(experiment, arm, judged.effects.get(arm)))
    return {"runs": tuning.runs, "rows": rows, "sentences": sentences}


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


def _verdict_row(
    experiment: Experiment,
    arm: ArmVerdict,
    coming: NextLook | None,
    asked_again: Again,
    asked: Registration,
) -> dict[str, Any]:
    changed = "; ".join(
        f"{key}: {as_written(before)} → {as_written(after)}"
        for key, (before, after) in arm.changed.items()
    )
    said = caveat(arm) or sentence(experiment, arm.name, arm.effect, coming, asked_again)
    definition = experiment.arms[arm.name]
    if definition.code is not None:
        changed = "; ".join(filter(None, [f"the code of {definition.asked}", changed]))
    return {
        "name": arm.name,
        "sentence": f"Exploratory: {said}" if asked.exploratory else said,
        "effect": arm.effect,
        "changed": f"{arm.as_one} ({changed})" if arm.as_one else changed,
        "verdict": _word(arm),
    }


def _word(arm: ArmVerdict) -> str:
    """The verdict in a word."""
    if arm.changed_nothing:
        return "changed nothing"
    return arm.effect.verdict if arm.effect else "none"


def _item_rows(found: Sequence[ArmVerdict]) -> list[dict[str, Any]]:
    """Where the noise of each arm's difference comes from; of one pair McNemar's p, over the looks and after Holm."""
    exact = {}
    for arm in found:
        if arm.items and arm.items.mcnemar_p is not None:
            looks = arm.effect.looks if arm.effect else ()
            exact[arm.name] = p_over_looks(arm.items.mcnemar_p, looks)
    adjusted = holm(exact)
    return [
        {"name": arm.name, "effect": arm.items, "mcnemar_p": adjusted.get(arm.name)}
        for arm in found
        if arm.items
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


def looks_words(experiment: Experiment, taken: Sequence[Step]) -> str:
    """The looks that were taken and what they may have spent, in words; "" for a study of one look.

    Args:
        experiment: the study.
        taken: its looks, in order.
    """
    if experiment.seeds.single and len(taken) < 2:
        return ""
    kind = "without a last one" if experiment.seeds.open else f"up to {experiment.seeds.last}"
    if not taken:
        return f"The first look is after {experiment.seeds.first} seeds; looks go on {kind}."
    parts = []
    for step in taken:
        parts.append(f"{step.seeds} seeds ({step.share:.0%} of alpha spent)")
    return (
        f"Looks were taken after {', '.join(parts)}, and go on {kind}; intervals of verdicts hold at all looks together, "
        "and seeds between looks make estimates."
    )


def late_arms(experiment: Experiment, record: Sequence[Step]) -> list[str]:
    """Arms that were added after looks were taken, and what they may spend, in sentences.

    Args:
        experiment: the study.
        record: looks that were taken before.
    """
    notes = []
    for arm, spent in added_arms(experiment, record).items():
        last = [step.seeds for step in record if arm not in step.arms][-1]
        left = "which left no error rate: it gets estimates and no verdict"
        if spent < 1:
            left = f"which left {1 - spent:.0%} of alpha: that is shared by all arms from there on"
        notes.append(f"{arm} was added after the look at {last} seeds, {left}")
    return notes

"""The data behind a published report: experiments/results/NAME.json, for programs and for the next report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.study.besides import Answer, Besides
from paribus.study.compute import as_json as compute_json
from paribus.study.compute import in_compute
from paribus.study.differences import matched
from paribus.study.divergence import survivors
from paribus.study.experiment import Experiment
from paribus.study.ladder import LadderJudged, as_json
from paribus.study.outcomes import Outcomes
from paribus.study.record import PUBLISHED, rows_of
from paribus.study.results import Result
from paribus.study.sequence import Judged
from paribus.study.unchanged import changed_nothing

RESULTS = PUBLISHED
# A row of the page's last table, where a page has no file of data beside it: | experiment | commit | …
_ROW = re.compile(r"^\| [^|]+ \| [0-9a-f]{10} \|", re.MULTILINE)
# What a page answers about an arm or a factor: `adamw is worse than …`, `redraw: undecided …`, `clip changed nothing …`
_ANSWER = re.compile(
    r"(\S+?)(?: is|:|) (better|worse|equivalent|undecided|unknown|changed nothing)\b"
)


def publish(
    experiment: Experiment,
    outcomes: Outcomes,
    judged: Judged,
    left_out: Mapping[str, int],
    more: Mapping[str, object] | None = None,
) -> Path:
    """Write the data of a report.

    Args:
        experiment: the study.
        outcomes: how the runs ended that its verdicts rest on.
        judged: its verdicts.
        left_out: why other finished runs do not count -> how many they are.
        more: further keys, of designs that have more to say.

    Returns:
        Their path.
    """
    results, diverged = outcomes.results, outcomes.diverged
    arms: dict[str, dict[str, object]] = {}
    for arm in experiment.arms:
        counts = survivors(results, diverged, arm)
        effect = judged.effects.get(arm)
        arms[arm] = {
            "verdict": effect.verdict if effect else None,
            "mean_difference": effect.mean if effect else None,
            "interval": _finite([effect.low, effect.high]) if effect else None,
            "matched_seeds": effect.n if effect else 0,
            "matched": effect.matched if effect else True,
            "diverged": counts.arm,
            "of": counts.arm_of,
            "changed_nothing": changed_nothing(experiment, arm, matched(results, arm)),
        }
    besides = Besides(experiment, outcomes, judged)
    runs = [
        {
            "experiment": result.name,
            "commit": result.experiment,
            "arm": result.arm,
            "seed": result.seed,
            "value": result.value,
            "diverged": result.diverged,
        }
        for result in results
    ]
    values: dict[str, Any] = {
        "study": experiment.name,
        "metric": experiment.metric.name,
        "looks": rows_of(judged.taken),
        "runs": runs,
        "diverged": {arm: list(seeds) for arm, seeds in diverged.items()},
        "arms": arms,
        "besides": [_as_json(answer) for answer in besides.answers()],
        "may_be_best": besides.may_be_best(),
        "left_out": dict(left_out),
    }
    for arm, one in in_compute(experiment, outcomes, judged).items():
        values["arms"][arm]["in_compute"] = compute_json(one)
    if isinstance(judged, LadderJudged):
        values["ladder"] = as_json(experiment, judged)
        for arm, climb in judged.climbs.items():
            values["arms"][arm]["verdict"] = climb.answer
    values |= more or {}
    path = RESULTS / f"{experiment.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
    return path


def _as_json(answer: Answer) -> dict[str, object]:
    values = dict(vars(answer))
    interval = _finite([values.pop("low"), values.pop("high")])
    return values | {"interval": interval}


def _finite(numbers: Sequence[float]) -> list[float] | None:
    """Numbers as JSON can hold them; None where one is not finite."""
    return list(numbers) if all(math.isfinite(number) for number in numbers) else None


def check_not_fewer(name: str, results: Sequence[Result]) -> None:
    """Refuse to replace a page that rests on more runs than there are now.

    Args:
        name: of the study.
        results: of the runs that there are.

    Raises:
        UserError: with what is missing.
    """
    before = published_runs(name)
    if before > len(results):
        raise UserError(
            f"{RESULTS / name}.md rests on {before} runs, and {len(results)} count now, so that it stays as it is; "
            f"`paribus ablate status {name}` shows what is missing, `paribus ablate report {name} --force` replaces it"
        )


def published_runs(name: str) -> int:
    """How many runs the published page rests on; 0 where there is none."""
    try:
        return len(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return len(_ROW.findall((RESULTS / f"{name}.md").read_text(encoding="utf-8")))
    except OSError:
        return 0


def published_sentences(name: str) -> list[str]:
    """What the published page of a study answers: the list at its top; [] where there is no page.

    Args:
        name: of the study.
    """
    try:
        page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    except OSError:
        return []
    top = page.partition("\n## ")[0]
    listed = [line.removeprefix("- ") for line in top.splitlines() if line.startswith("- ")]
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", line) for line in listed]  # Markdown's escapes


def published_verdicts(name: str) -> dict[str, str]:
    """Arm or factor -> its verdict, as the published page of a study words it; {} where there is no page.

    Args:
        name: of the study.
    """
    answers = map(_ANSWER.match, published_sentences(name))
    return {answer[1]: answer[2] for answer in answers if answer}

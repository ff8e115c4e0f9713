"""The figures of a study as one offline page: history, memory, parallel coordinates, importances.

All but that of memory are Optuna's. The page has plotly's script in it, once, so that it opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import optuna
import plotly.graph_objects as go
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
)

from paribus.files import write_atomic

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>paribus: tuning study {name}</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #22303c; background: #ffffff; margin: 0 auto; max-width: 1100px;
  padding: 20px; }}
section {{ overflow-x: auto; }} a {{ color: #2f6fa6; margin-right: 1em; }}
</style>
</head>
<body>
<main>
<h1>Tuning study {name}</h1>
<p>{trials} complete trials.{fewer}</p>
<nav aria-label="Contents">{links}</nav>
{sections}
</main>
</body>
</html>
"""
METRIC = "val bits per byte"
FEWEST = 20  # trials from which on importances are worked out; of fewer, two evaluators disagree on the order


def write_figures(study: optuna.Study, folder: Path, budget: int) -> list[Path]:
    """Write figures.html; a figure that the trials do not suffice for is left out, and without any there is no page.

    Trials that were pruned or exceeded the memory are in none: their value is that of a part of the budget.

    Args:
        study: whose trials are shown.
        folder: of the page.
        budget: bytes of memory that no trial may exceed.

    Returns:
        The page, or nothing.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    too_large = [trial for trial in study.get_trials(deepcopy=False) if _was_too_large(trial)]
    if not complete:
        return []
    history = plot_optimization_history(study, target_name=METRIC)
    history.update_xaxes(tickformat="d", dtick=max(1, len(complete) // 10))
    figures: dict[str, go.Figure] = {
        "history": history,
        "memory": _memory(complete, len(too_large), budget),
        "parallel": plot_parallel_coordinate(study, target_name=METRIC),
    }
    if len(complete) >= FEWEST and len(complete[0].params) > 1:
        evaluator = FanovaImportanceEvaluator(seed=0)
        importances = plot_param_importances(study, evaluator, target_name=METRIC)
        figures["importances"] = importances.update_layout(title="Importances, by fANOVA")
    path = folder / "figures.html"
    write_atomic(path, _page(study.study_name, len(complete), figures))
    return [path]


def _page(name: str, trials: int, figures: Mapping[str, go.Figure]) -> str:
    """One page with a section for each figure, and plotly's script in it once."""
    links, sections = [], []
    script: str | bool = "inline"
    for kind, figure in figures.items():
        drawn = figure.to_html(include_plotlyjs=script, full_html=False, div_id=f"plot-{kind}")
        links.append(f'<a href="#{kind}">{kind}</a>')
        sections.append(f'<section id="{kind}"><h2>{kind.capitalize()}</h2>{drawn}</section>')
        script = False
    fewer = ""
    if "importances" not in figures:
        fewer = f" Importances take {FEWEST} of them, and keys of more than one kind."
    return PAGE.format(
        name=name, trials=trials, fewer=fewer, links=" ".join(links), sections="".join(sections)
    )


def _was_too_large(trial: FrozenTrial) -> bool:
    return "infeasible" in trial.user_attrs


def _memory(trials: list[FrozenTrial], too_large: int, budget: int) -> go.Figure:
    """Memory against bits per byte, with the front that no trial is better than in both."""
    mebibyte = 2**20
    points = []
    for trial in trials:
        assert trial.value is not None, "a complete trial has a value"
        size = trial.user_attrs["peak_memory_bytes"] / mebibyte
        points.append((size, trial.value, f"trial {trial.number}"))
    points.sort()
    front = []
    least = float("inf")
    for size, value, _ in points:
        if value < least:
            least = value
            front.append((size, value))
    sizes, values, names = zip(*points, strict=True)
    front_sizes, front_values = zip(*front, strict=True)
    figure = go.Figure()
    figure.add_scatter(x=sizes, y=values, text=names, mode="markers", name="trial")
    figure.add_scatter(x=front_sizes, y=front_values, mode="lines", line_shape="hv", name="front")
    figure.add_vline(
        x=budget / mebibyte,
        line_dash="dash",
        annotation_text=f"budget; {too_large} trials went over it",
    )
    return figure.update_layout(
        title="Memory against bits per byte",
        xaxis_title="peak memory, MiB",
        yaxis_title=METRIC,
    )

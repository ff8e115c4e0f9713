"""The figures of a study as offline HTML: history, importances, parallel coordinates, memory against bits per byte.

All but the last are Optuna's. The pages have plotly's script in them, so that they open without a network.
"""

from __future__ import annotations

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

METRIC = "val bits per byte"
FEWEST = 4  # trials from which on importances are worked out


def write_figures(study: optuna.Study, folder: Path, budget: int) -> list[Path]:
    """Write one page a figure; a figure that the trials do not suffice for is left out.

    Trials that were pruned or exceeded the memory are in none: their value is that of a part of the budget.

    Args:
        study: whose trials are shown.
        folder: of the pages.
        budget: bytes of memory that no trial may exceed.

    Returns:
        The pages.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    too_large = [trial for trial in study.get_trials(deepcopy=False) if _was_too_large(trial)]
    figures: dict[str, go.Figure] = {}
    if complete:
        figures["history"] = plot_optimization_history(study, target_name=METRIC)
        figures["memory"] = _memory(complete, len(too_large), budget)
        figures["parallel"] = plot_parallel_coordinate(study, target_name=METRIC)
        if len(complete) >= FEWEST and len(complete[0].params) > 1:
            evaluator = FanovaImportanceEvaluator(seed=0)
            figures["importances"] = plot_param_importances(study, evaluator, target_name=METRIC)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.html"
        figure.write_html(path, include_plotlyjs="inline", full_html=True)
        paths.append(path)
    return paths


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

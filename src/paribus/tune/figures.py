"""The figures of a study as offline HTML: history, importances, parallel coordinates, memory against bits per byte.

Made from plain figures (plotly) with its script in the page: they open without a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go


def write_figures(study: Any, folder: Path, budget: int) -> list[Path]:
    """One page a figure; a figure that the trials do not suffice for is left out. A pruned trial's value is that of a part of
    its budget, and no match for the others'."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    feasible = [
        trial for trial in trials if all(value <= 0 for value in trial.constraints.values())
    ]
    figures: dict[str, Any] = {}
    if feasible:
        figures["history"] = _history(feasible)
        figures["memory"] = _memory(study, feasible, budget)
        figures["parallel"] = _parallel(feasible)
    if len(feasible) >= 4 and len(feasible[0].params) > 1:
        figures["importances"] = _importances(feasible)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.html"
        figure.write_html(path, include_plotlyjs="inline", full_html=True)
        paths.append(path)
    return paths


def _history(trials: list[Any]) -> go.Figure:
    best, so_far = [], float("inf")
    for trial in trials:
        so_far = min(so_far, trial.value)
        best.append(so_far)
    figure = go.Figure(
        [
            go.Scatter(
                x=[t.number for t in trials],
                y=[t.value for t in trials],
                mode="markers",
                name="trial",
            ),
            go.Scatter(x=[t.number for t in trials], y=best, mode="lines", name="best so far"),
        ]
    )
    return figure.update_layout(
        title="History", xaxis_title="trial", yaxis_title="val bits per byte"
    )


def _memory(study: Any, trials: list[Any], budget: int) -> go.Figure:
    over = [trial for trial in study.get_trials(deepcopy=False) if "infeasible" in trial.user_attrs]
    figure = go.Figure()
    points = sorted(
        (trial.user_attrs["peak_memory_bytes"] / 2**20, trial.value, trial.number)
        for trial in trials
    )
    front, least = [], float("inf")
    for size, value, _ in points:
        if value < least:
            least = value
            front.append((size, value))
    figure.add_scatter(
        x=[p[0] for p in points],
        y=[p[1] for p in points],
        text=[f"trial {p[2]}" for p in points],
        mode="markers",
        name="trial",
    )
    figure.add_scatter(
        x=[p[0] for p in front],
        y=[p[1] for p in front],
        mode="lines",
        line_shape="hv",
        name="front",
    )
    figure.add_vline(
        x=budget / 2**20,
        line_dash="dash",
        annotation_text=f"budget; {len(over)} trials went over it",
    )
    return figure.update_layout(
        title="Memory against bits per byte",
        xaxis_title="peak memory, MiB",
        yaxis_title="val bits per byte",
    )


def _parallel(trials: list[Any]) -> go.Figure:
    dimensions = []
    for key in trials[0].params:
        values = [trial.params.get(key) for trial in trials]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            dimensions.append({"label": key, "values": values})
        else:
            names = sorted({str(value) for value in values})
            dimensions.append(
                {
                    "label": key,
                    "values": [names.index(str(value)) for value in values],
                    "tickvals": list(range(len(names))),
                    "ticktext": names,
                }
            )
    losses = [trial.value for trial in trials]
    dimensions.append({"label": "val_bpb", "values": losses})
    return go.Figure(
        go.Parcoords(dimensions=dimensions, line={"color": losses, "colorscale": "Viridis"})
    ).update_layout(title="Parallel coordinates")


def _importances(trials: list[Any]) -> go.Figure:
    """Share of the variance of bits per byte that a forest of trees lays to each key."""
    from sklearn.ensemble import RandomForestRegressor

    keys = list(trials[0].params)
    columns = []
    for key in keys:
        values = [trial.params.get(key) for trial in trials]
        names = sorted({str(value) for value in values})
        numeric = all(isinstance(value, (int, float)) for value in values)
        columns.append(
            [float(value) if numeric else float(names.index(str(value))) for value in values]
        )
    forest = RandomForestRegressor(n_estimators=100, random_state=0, n_jobs=1)
    forest.fit(list(zip(*columns, strict=True)), [trial.value for trial in trials])
    order = sorted(zip(forest.feature_importances_, keys, strict=True))
    return go.Figure(
        go.Bar(x=[share for share, _ in order], y=[key for _, key in order], orientation="h")
    ).update_layout(title="Importances", xaxis_title="share of the variance explained")

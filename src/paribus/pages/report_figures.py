"""The figures of the report: drawn from its results, for the page and as PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.curriculum import PRINTED
from paribus.pages.drawing import BLUE, FAINT, GOLD, GREEN, INK, RED, canvas, legend_above, title
from paribus.pages.report_inputs import Results, Row, mean_of_measured, pass_at, read_results
from paribus.text import percent, quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 400  # of a curve in the page: a longer one is drawn by the means of so many bins


def figures(root: Path) -> dict[str, Figure]:
    """Every figure of the report by name: pretrain, core, gsm8k, sparsity."""
    results = read_results(root)
    return {name: draw(results) for name, draw in FIGURES.items()}


def save_figures(root: Path, folder: Path) -> list[Path]:
    """Write every figure as <folder>/<name>.png, on white.

    Args:
        root: the project.
        folder: of the pictures.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(root).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150, facecolor="white", metadata={"Software": None})
    return paths


def _binned(rows: list[Row], *keys: str) -> list[list[float]]:
    """The columns, by the means of at most MOST_POINTS bins of rows."""
    size = math.ceil(len(rows) / MOST_POINTS)
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [_means(bins, key) for key in keys]


def _means(bins: list[list[Row]], key: str) -> list[float]:
    """The mean of a column over each bin."""
    columns = [[row[key] for row in part] for part in bins]
    return [mean_of_measured(column) for column in columns]


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Centered moving mean over `2 reach + 1` values, fewer at the ends."""
    return [
        mean_of_measured(values[max(place - reach, 0) : place + reach + 1])
        for place in range(len(values))
    ]


def _draw_pretrain(results: Results) -> Figure:
    """Training loss and validation bits per byte over tokens."""
    figure, (loss_axes, bpb_axes) = canvas(columns=2)
    rows = results.curve("pretrain")
    tokens, losses = _binned(rows, "tokens", "train_loss")
    loss_axes.plot(tokens, losses, color=BLUE, alpha=0.3, linewidth=1)
    loss_axes.plot(tokens, _smooth(losses, max(len(losses) // 40, 1)), color=BLUE, linewidth=1.8)
    title(loss_axes, "Training loss", "tokens", "nats per token")
    measured = [(row["tokens"], row["val_bpb"]) for row in rows if not math.isnan(row["val_bpb"])]
    final = (rows[-1]["tokens"], results.metrics("pretrain")["val_bpb"])
    x, y = zip(*measured, final, strict=True)
    bpb_axes.plot(x, y, color=GREEN, marker="o", markersize=4.5, linewidth=1.8)
    label: dict[str, Any] = {
        "textcoords": "offset points",
        "ha": "center",
        "color": INK,
        "fontsize": 9,
    }
    bpb_axes.annotate(f"{final[1]:.3f}", final, (0, -15), **label)
    bpb_axes.margins(y=0.15)
    title(bpb_axes, "Validation", "tokens", "bits per byte")
    for axes in (loss_axes, bpb_axes):
        axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _draw_core(results: Results) -> Figure:
    """Centered accuracy of every task, best at the top, with standard errors."""
    tasks = sorted(results.metrics("core")["tasks"].items(), key=lambda item: item[1]["centered"])
    figure, (axes,) = canvas(height=1.0 + 0.27 * len(tasks))
    values = [task["centered"] for _, task in tasks]
    scale = [
        (task["accuracy"] - 1) / (task["centered"] - 1) if task["centered"] != 1 else 1.0
        for _, task in tasks
    ]
    errors = [task["stderr"] / factor for (_, task), factor in zip(tasks, scale, strict=True)]
    axes.barh(
        [name for name, _ in tasks],
        values,
        height=0.62,
        color=[BLUE if value >= 0 else RED for value in values],
        xerr=errors,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5},
    )
    axes.axvline(0, color=INK, linewidth=1)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.7)
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    title(
        axes,
        "Centered accuracy of the base model",
        "0: guessing, 1: all right; whiskers: one standard error",
    )
    return figure


def _draw_gsm8k(results: Results) -> Figure:
    """Greedy accuracy of every stage with its 95 % interval, and pass@k beside it."""
    figure, (axes,) = canvas(height=3.3)
    rows = results.curve("gsm8k")
    for place, row in enumerate(rows):
        accuracy = row["accuracy"]
        reach = [[accuracy - row["ci_low"]], [row["ci_high"] - accuracy]]
        axes.bar(
            place,
            accuracy,
            width=0.5,
            color=BLUE,
            alpha=0.85,
            label=None if place else "greedy, 95 % interval",
        )
        axes.errorbar(place, accuracy, yerr=reach, color=INK, capsize=6, elinewidth=1.4)
        axes.annotate(
            percent(accuracy),
            (place, row["ci_high"]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9.5,
        )
    if k := pass_at(results):
        sampled = [results.answers(row["stage"])[f"pass_at_{k}"] for row in rows]
        axes.plot(
            [place + 0.34 for place in range(len(rows))],
            sampled,
            linestyle="none",
            marker="D",
            markersize=6.5,
            color=GOLD,
            label=f"pass@{k}, sampled",
        )
    axes.set_xticks(range(len(rows)), [PRINTED[row["stage"]] for row in rows])
    axes.set_ylim(0, 1.09)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(axes, "Word problems solved after each stage")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return figure


def _draw_sparsity(results: Results) -> Figure:
    """Above, the outcome of each step's groups; below, the reward."""
    figure, (groups, reward) = canvas(rows=2, height=5.4, sharex=True, height_ratios=[1.5, 1])
    names = ("step", "zero_reward_groups", "all_reward_groups", "reward", "watch_accuracy")
    steps, wrong, right, rewards, watched = _binned(results.curve("rl"), *names)
    reach = len(steps) // 30
    wrong, right = _smooth(wrong, reach), _smooth(right, reach)
    mixed = [1 - a - b for a, b in zip(wrong, right, strict=True)]
    bands = {
        "all wrong: nothing learned": (wrong, RED),
        "mixed: the groups that teach": (mixed, BLUE),
        "all right: nothing learned": (right, GOLD),
    }
    groups.stackplot(
        steps,
        *(shares for shares, _ in bands.values()),
        colors=[color for _, color in bands.values()],
        alpha=0.85,
        linewidth=0,
        labels=list(bands),
    )
    groups.set_ylim(0, 1)
    groups.margins(x=0)
    groups.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(
        groups,
        f"Groups of answers (moving mean of {2 * reach + 1} steps)"
        if reach
        else "Groups of answers",
    )
    legend_above(groups)
    groups.tick_params(labelbottom=True)
    reward.plot(steps, rewards, color=GREEN, alpha=0.3, linewidth=1)
    trend = _smooth(rewards, max(len(steps) // 20, 1))
    reward.plot(steps, trend, color=GREEN, linewidth=1.8, label="mean reward, training")
    looks = [
        (step, value) for step, value in zip(steps, watched, strict=True) if not math.isnan(value)
    ]
    if looks:
        reward.plot(
            *zip(*looks, strict=True),
            color=INK,
            marker="o",
            markersize=5,
            linestyle="none",
            clip_on=False,
            zorder=3,
            label="greedy accuracy, held out",
        )
    reward.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(reward, "Reward", "RL step")
    legend_above(reward)
    return figure


ALT = {  # for who cannot see them; the numbers are in the tables
    "pretrain": "training loss and validation bits per byte over tokens",
    "core": "centered accuracy of each task with standard errors",
    "gsm8k": "accuracy after each stage with 95 % intervals",
    "sparsity": "shares of all-wrong, mixed and all-right groups over the RL steps, and the reward",
}
FIGURES: dict[str, Callable[[Results], Figure]] = {
    "pretrain": _draw_pretrain,
    "core": _draw_core,
    "gsm8k": _draw_gsm8k,
    "sparsity": _draw_sparsity,
}

"""What MLflow shows of a run: at most 30 metrics with short names, and at most 12 of the run above its stages.

All the rest is in the run's artifacts:

    summary.json       every figure at its end, breakdowns included
    log/metrics.jsonl  every figure of every step
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from paribus.curriculum import HEADLINE
from paribus.tracking.records import RunRecord

MOST = 30  # metrics of a run
MOST_CURVES = 22  # of them along the way, the machine's not counted
MOST_ABOVE = 12  # metrics of the run above
EXPECTED = "predicted/"  # what the plan said: tags, as a page would draw a bar of each metric
# Curves that repeat others, or count what shares are of.
_HIDDEN_CURVES = frozenset(
    (
        "train/seconds",
        "train/nonfinite",
        "watch/pass_at_2",
        "watch/pass_at_4",
        "rl/sampled_tokens",
        "rl/groups",
        "rl/samples_drawn",
        "rl/gradient_samples",
        "rl/redrawn_samples",
    )
)
# Final figures that a curve or a parameter says as well.
_HIDDEN_FIGURES = frozenset(
    (
        "steps",
        "train_loss",
        "train_tokens",
        "nonfinite_steps",
        "rollbacks",
        "flops_per_token",
        "optimizer_flops_per_step",
        "groups",
        "samples",
        "redrawn_samples",
        "steps_without_gradient",
        "pass_at_1_before",
        "pass_at_1_after",
        "pass_at_2",
        "pass_at_2_stderr",
        "pass_at_4",
        "pass_at_4_stderr",
        "pass_at_8_before",
        "pass_at_8_after",
    )
)
_BREAKDOWNS = ("by_steps.", "tasks.")


def is_shown(curve: str, known: Iterable[str]) -> bool:
    """Whether MLflow gets a curve.

    Args:
        curve: its name, as `train/loss`.
        known: the names of those that MLflow has of the run.
    """
    if curve.startswith(("system/", "events/")) or curve in known:
        return True
    name = curve.partition("/")[2] or curve
    if curve in _HIDDEN_CURVES or "." in name or name.endswith("_stderr"):
        return False
    drawn = [key for key in known if not key.startswith("system/")]
    return len(drawn) < MOST_CURVES


def shown_figures(figures: Mapping[str, float], curves: Iterable[str]) -> dict[str, float]:
    """The final figures that MLflow gets.

    Args:
        figures: name -> value, of the whole summary.
        curves: names of those that MLflow has of the run.
    """
    there = set(curves)
    told = {curve.partition("/")[2] for curve in there}
    shown: dict[str, float] = {}
    for key, value in figures.items():
        again = key in there
        hidden = key in _HIDDEN_FIGURES or key in told or key.startswith(_BREAKDOWNS)
        if again or (not hidden and len(there | shown.keys()) < MOST):
            shown[key] = value
    return shown


def headline(family: Iterable[RunRecord]) -> dict[str, float]:
    """The figures of the run above its stages: short name -> value.

    Args:
        family: the stages' runs; of two of a stage the later one counts.
    """
    runs = {run.stage: run for run in sorted(family, key=lambda run: run.created)}
    figures: dict[str, float] = {}
    for figure in HEADLINE:
        run = runs.get(figure.stage)
        value = number(run.summary.get(figure.key)) if run else None
        if value is not None:
            figures[figure.name] = value / figure.unit
    seconds = [number(run.summary.get("seconds")) for run in runs.values()]
    taken = [value for value in seconds if value is not None]
    if taken:
        figures["minutes"] = round(sum(taken) / 60, 2)
    peaks = [number(run.summary.get("peak_memory_bytes")) for run in runs.values()]
    held = [value for value in peaks if value is not None]
    if held:
        figures["peak_gib"] = round(max(held) / 2**30, 3)
    return figures


def note_above(name: str, tags: Mapping[str, str], family: Iterable[RunRecord]) -> str:
    """The note of the run above its stages, Markdown: its figures, what was changed, where it comes from.

    Args:
        name: of the run above.
        tags: of the run above.
        family: the stages' runs.
    """
    figures = headline(family)
    said = ", ".join(f"{key.replace('_', ' ')} **{value:.4g}**" for key, value in figures.items())
    lines = [f"**{name}**" + (f": {said}" if said else "")]
    if tags.get("changed"):
        lines.append(f"Changed: `{tags['changed']}`")
    commit = tags.get("git.commit", "")[:10]
    if commit:
        lines.append(f"Commit `{commit}`; each stage below has its curves, answers and data.")
    return "\n\n".join(lines)


def number(value: object) -> float | None:
    """A figure of a summary, infinite ones included, which are written as text; None for what is no number."""
    if isinstance(value, bool | int | float) or value in ("inf", "-inf", "nan"):
        return float(value)
    return None

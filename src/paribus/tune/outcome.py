"""The outcome of a study, in words and as a profile: the winner's claim beside its re-test, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.config import dump_yaml, merge
from paribus.files import write_atomic
from paribus.machine.provenance import git_state
from paribus.tune.space import Study

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

RETESTS = "retests by seed"  # the study's attribute that holds them


def interval(values: list[float], alpha: float = 0.05) -> tuple[float, float, float]:
    """Mean and its interval by Student's t; of one value the interval is unbounded.

    Args:
        values: at least one.
        alpha: how often the interval may miss.
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy import stats

    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    error = math.sqrt(variance / len(values))
    half = float(stats.t.ppf(1 - alpha / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def is_skipped(trial: FrozenTrial) -> bool:
    """Whether a point was never trained: the planner refused it, or an earlier trial had it."""
    return "skipped" in trial.user_attrs


def counted(study: optuna.Study) -> int:
    """Trials that were run: points that were skipped cost nothing and do not count."""
    return sum(
        trial.state.name in ("COMPLETE", "PRUNED") and not is_skipped(trial)
        for trial in study.get_trials(deepcopy=False)
    )


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Finished, feasible trials, the best first."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    feasible = [trial for trial in done if max(trial.constraints.values(), default=0) <= 0]
    return sorted(feasible, key=_value)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a complete trial has a value"
    return trial.value


def summary(spec: Study, study: optuna.Study) -> dict[str, object]:
    """Counts, the best, claimed against re-tested, and the difference to the default seed by seed.

    Args:
        spec: the study's file.
        study: Optuna's study.

    Returns:
        What summary.json holds.
    """
    trials, best = study.get_trials(deepcopy=False), ranked(study)
    kinds = Counter(_kind(trial) for trial in trials)
    refused = [trial for trial in trials if _kind(trial) == "refused"]
    seconds_saved = sum(trial.user_attrs.get("seconds_saved", 0) for trial in refused)
    summary: dict[str, object] = {
        "study": spec.name,
        "trials": counted(study),
        "complete": len(best),
        "refused_by_plan": len(refused),
        "repeated_points": kinds["repeated"],
        "minutes_saved": seconds_saved / 60,
        "out_of_memory": kinds["out of memory"],
        "pruned": kinds["pruned"],
        "retried": sum(_was_retried(trial) for trial in trials),
        "best": None,
        "retest": {},
    }
    if best:
        first = best[0]
        summary["best"] = {"trial": first.number, "val_bpb": first.value, "params": first.params}
    if RETESTS in study.user_attrs:
        summary["retest"] = retests(study.user_attrs[RETESTS])
    return summary


def _kind(trial: FrozenTrial) -> str:
    """The outcome of a trial: repeated, refused, out of memory, pruned; "" for any other."""
    notes = trial.user_attrs
    if "repeats" in notes:
        return "repeated"
    if is_skipped(trial):
        return "refused"
    if "infeasible" in notes:
        return "out of memory"
    return "pruned" if trial.state.name == "PRUNED" else ""


def _was_retried(trial: FrozenTrial) -> bool:
    return trial.state.name == "FAIL" and "dropped" not in trial.user_attrs


def retests(again: dict[str, Any]) -> dict[str, Any]:
    """Each arm's re-tests, and its difference to the default over the seeds that both have.

    again: claimed (arm -> value), values (arm -> seed -> value), lost (arm -> seed -> why there is none), params.
    """
    outcomes: dict[str, Any] = {}
    arms = max(len(again["values"]) - 1, 1)
    default: dict[str, float] = again["values"].get("default", {})
    for arm, by_seed in again["values"].items():
        entry: dict[str, object] = {
            "claimed": again["claimed"].get(arm),
            **_spread(list(by_seed.values())),
            "seeds": len(by_seed),
            "lost": again["lost"].get(arm, {}),
            "params": again["params"][arm],
        }
        both = [seed for seed in by_seed if seed in default]
        if arm != "default" and both:
            differences = [by_seed[seed] - default[seed] for seed in both]
            entry["minus_default"] = _spread(differences) | {"seeds": len(both)}
            # Of several trials that are re-tested one would beat the default by luck: Bonferroni over them.
            _, _, high = interval(differences, 0.05 / arms)
            entry["beats_default"] = high < 0
        outcomes[arm] = entry
    return outcomes


def winner(tested: dict[str, Any]) -> str | None:
    """The arm that is best against the default, seed by seed; None where no re-test finished.

    An arm that lost a re-test (it diverged, or ran out of memory) comes after every arm that lost none.
    """
    arms = [arm for arm in tested if arm != "default" and tested[arm]["seeds"]]
    paired = [arm for arm in arms if "minus_default" in tested[arm]]

    def place(arm: str) -> tuple[int, float]:
        entry = tested[arm]
        gain = entry["minus_default"]["mean"] if paired else entry["mean"]
        return len(entry["lost"]), gain

    return min(paired or arms, key=place, default=None)


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean and interval for JSON: one value has no bounds, and no values give nothing."""
    if not values:
        return {"mean": None, "low": None, "high": None}
    mean, low, high = interval(values)
    return {
        "mean": mean,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
    }


def values_words(values: Mapping[str, object]) -> str:
    """A trial's values in a line, floats with four digits.

    Args:
        values: dotted key -> value.
    """
    parts = []
    for key, value in values.items():
        parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def _said(entry: Mapping[str, object], form: str = ".4f") -> str:
    if entry["mean"] is None:
        return "without a result"
    mean = f"{entry['mean']:{form}}"
    if entry["low"] is None:
        return f"{mean} (one seed, no interval)"
    return f"{mean} ({entry['low']:{form}} to {entry['high']:{form}})"


def write_profile(study: Study, found: dict[str, Any]) -> Path:
    """The re-tested winner (the best claim, before a re-test) as a profile, with where it comes from.

    Args:
        study: the study's file.
        found: its summary.

    Returns:
        The profile's path.
    """
    tested = found["retest"]
    best = winner(tested)
    arm = best or f"trial {found['best']['trial']}"
    values = tested[arm]["params"] if best else found["best"]["params"]
    git = git_state()
    again = f"{_said(tested[arm])} on {tested[arm]['seeds']} seeds" if best else "no"
    head = [
        f"# Best of the study {study.name}: {arm} of {found['trials']} trials, {study.budget} {study.amount:g}, "
        f"{study.memory / 2**20:,.0f} MiB.",
        f"# commit {git['commit']}, claimed {found['best']['val_bpb']:.4f} bits per byte; re-tested: {again}",
    ]
    if best and "minus_default" in tested[arm]:
        head.append(f"# {_against_default(tested[arm])} bits per byte")
    head += [f"# {text}" for text in _lost(arm, tested.get(arm, {}))]
    path = Path("experiments/profiles") / f"tuned-{study.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = dump_yaml(merge({}, study.overrides | values))
    write_atomic(path, "\n".join(head) + "\n" + body)
    return path


def page(found: dict[str, Any]) -> str:
    """The summary for people."""
    counts = {
        f"refused by the plan ({found['minutes_saved']:.1f} minutes saved)": found[
            "refused_by_plan"
        ],
        "over the memory budget": found["out_of_memory"],
        "pruned": found["pruned"],
        "taken up again": found["retried"],
        "proposed twice and trained once": found["repeated_points"],
    }
    others = [f"{number} {words}" for words, number in counts.items() if number]
    lines = [f"study {found['study']}: " + ", ".join([f"{found['trials']} trials", *others])]
    if found["best"]:
        best = found["best"]
        lines.append(
            f"best: trial {best['trial']}, {best['val_bpb']:.4f} bits per byte: {values_words(best['params'])}"
        )
    for arm, entry in found["retest"].items():
        claimed = f"claimed {entry['claimed']:.4f}, " if entry["claimed"] is not None else ""
        line = f"{arm:>10}: {claimed}re-tested {_said(entry)} on {entry['seeds']} seeds"
        if "minus_default" in entry:
            line += f"; {_against_default(entry)}"
        lines += [line, *_lost(arm, entry)]
    best_arm = winner(found["retest"])
    if best_arm and "minus_default" in found["retest"][best_arm]:
        lines.append(_said_of_default(best_arm, found["retest"][best_arm]))
    return "\n".join(lines)


def _said_of_default(arm: str, entry: Mapping[str, object]) -> str:
    """Whether the best of the re-tests is shown to beat the default."""
    if entry["beats_default"]:
        return f"{arm} is shown to beat the default, re-tests of several trials taken into account"
    return (
        f"{arm} is not shown to beat the default: its gain may be luck; more `retest.seeds`, or `paribus ablate new`, "
        "can tell"
    )


def _against_default(entry: dict[str, Any]) -> str:
    difference = entry["minus_default"]
    return (
        f"against the default {_said(difference, '+.4f')}, seed by seed over the {difference['seeds']} seeds "
        "that both have"
    )


def _lost(arm: str, entry: dict[str, Any]) -> list[str]:
    """A line for each re-test without a result."""
    return [
        f"{arm:>10}: re-test with seed {seed} lost: {why}"
        for seed, why in entry.get("lost", {}).items()
    ]

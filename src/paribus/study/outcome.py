"""What a study came to, in words and as a profile: the winner's claim beside its re-test, with intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from paribus import runtime
from paribus.config import dump_yaml, merge
from paribus.study.space import Study


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; of one value the interval is unbounded."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy import stats

    error = math.sqrt(
        sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    )
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def counted(study: Any) -> int:
    """Trials that were run: those the planner refused cost nothing and do not count."""
    return sum(
        trial.state.name in ("COMPLETE", "PRUNED") and "skipped" not in trial.user_attrs
        for trial in study.get_trials(deepcopy=False)
    )


def ranked(study: Any) -> list[Any]:
    """Finished, feasible trials, the best first."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return sorted(
        (trial for trial in done if all(value <= 0 for value in trial.constraints.values())),
        key=lambda trial: trial.value,
    )


def summary(spec: Study, study: Any) -> dict[str, Any]:
    """Counts, the best, claimed against re-tested, and the difference to the default seed by seed."""
    trials, best = study.get_trials(deepcopy=False), ranked(study)
    skipped = [trial for trial in trials if "skipped" in trial.user_attrs]
    found: dict[str, Any] = {
        "study": spec.name,
        "trials": counted(study),
        "complete": len(best),
        "refused_by_plan": len(skipped),
        "minutes_saved": sum(t.user_attrs.get("seconds_saved", 0) for t in skipped) / 60,
        "out_of_memory": sum("infeasible" in trial.user_attrs for trial in trials),
        "pruned": sum(
            trial.state.name == "PRUNED" and not {"skipped", "infeasible"} & trial.user_attrs.keys()
            for trial in trials
        ),
        "retried": sum(
            trial.state.name == "FAIL" and "dropped" not in trial.user_attrs for trial in trials
        ),
        "best": {"trial": best[0].number, "val_bpb": best[0].value, "params": best[0].params}
        if best
        else None,
        "retest": {},
    }
    again = study.user_attrs.get("retest", {"values": {}})
    default = again["values"].get("default")
    for arm, values in again["values"].items():
        entry = {
            "claimed": again["claimed"].get(arm),
            **_spread(values),
            "seeds": len(values),
            "params": again["params"][arm],
        }
        if default and arm != "default":
            entry["minus_default"] = _spread([a - b for a, b in zip(values, default, strict=False)])
        found["retest"][arm] = entry
    return found


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean and interval as JSON has them: no bounds of one value."""
    mean, low, high = interval(values)
    return {
        "mean": mean,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
    }


def _said(entry: dict[str, Any], form: str = ".4f") -> str:
    between = (
        "one seed, no interval"
        if entry["low"] is None
        else f"{entry['low']:{form}} to {entry['high']:{form}}"
    )
    return f"{entry['mean']:{form}} ({between})"


def write_profile(study: Study, found: dict[str, Any]) -> Path:
    """The re-tested winner (the best claim, before a re-test) as a profile, with where it comes from."""
    tested = {arm: entry for arm, entry in found["retest"].items() if arm != "default"}
    arm = (
        min(tested, key=lambda one: tested[one]["mean"])
        if tested
        else f"trial {found['best']['trial']}"
    )
    values = tested[arm]["params"] if tested else found["best"]["params"]
    git = runtime.git_state()
    head = [
        f"# Best of the study {study.name}: {arm} of {found['trials']} trials, {study.budget} {study.amount:g}, "
        f"{study.memory / 2**20:,.0f} MiB.",
        f"# commit {git['commit']}, claimed {found['best']['val_bpb']:.4f} bits per byte; re-tested: "
        + (f"{_said(tested[arm])} on {tested[arm]['seeds']} seeds" if tested else "no"),
    ]
    if "minus_default" in tested.get(arm, {}):
        head.append(
            f"# against the default, seed by seed: {_said(tested[arm]['minus_default'], '+.4f')} bits per byte"
        )
    path = Path("experiments/profiles") / f"tuned-{study.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = dump_yaml(merge({}, study.overrides | values))
    runtime.write_atomic(path, "\n".join(head) + "\n" + body)
    return path


def page(found: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"study {found['study']}: {found['trials']} trials, {found['refused_by_plan']} points refused by the plan "
        f"({found['minutes_saved']:.1f} minutes saved), {found['out_of_memory']} over the memory budget, "
        f"{found['pruned']} pruned, {found['retried']} taken up again"
    ]
    if found["best"]:
        best = found["best"]
        lines.append(
            f"best: trial {best['trial']}, {best['val_bpb']:.4f} bits per byte: {best['params']}"
        )
    for arm, entry in found["retest"].items():
        claimed = f"claimed {entry['claimed']:.4f}, " if entry["claimed"] is not None else ""
        line = f"{arm:>10}: {claimed}re-tested {_said(entry)} on {entry['seeds']} seeds"
        if "minus_default" in entry:
            line += f"; against the default {_said(entry['minus_default'], '+.4f')}"
        lines.append(line)
    return "\n".join(lines)

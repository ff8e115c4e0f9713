"""What a study came to, in words and as a profile: the winner's claim beside its re-test, with intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from paribus import runtime
from paribus.study.space import Study


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t; of one value the interval is unbounded."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy import stats

    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def write_profile(study: Study, found: dict[str, Any]) -> Path:
    """The re-tested winner (the best claim, before a re-test) as a profile, with where it comes from."""
    tested = {arm: entry for arm, entry in found["retest"].items() if arm != "default"}
    arm = min(tested, key=lambda one: tested[one]["mean"]) if tested else f"trial {found['best']['trial']}"
    values = tested[arm]["params"] if tested else found["best"]["params"]
    git = runtime.git_state()
    head = [f"# Best of the study {study.name}: {arm} of {found['trials']} trials, {study.budget} {study.amount:g}, "
            f"{study.memory / 2**20:,.0f} MiB.",
            f"# commit {git['commit']}, claimed {found['best']['val_bpb']:.4f} bits per byte; re-tested: "
            + (f"{tested[arm]['mean']:.4f} ({tested[arm]['low']:.4f} to {tested[arm]['high']:.4f}, {tested[arm]['seeds']} seeds)"
               if tested else "no")]
    path = Path("experiments/profiles") / f"tuned-{study.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key}: {json.dumps(value)}" for key, value in (study.overrides | values).items()]
    runtime.write_atomic(path, "\n".join([*head, *_as_sections(lines)]) + "\n")
    return path


def _as_sections(lines: list[str]) -> list[str]:
    """`a.b: 1` lines as nested YAML."""
    import yaml

    from paribus.config import merge

    nested = merge({}, {key: yaml.safe_load(value) for key, value in (line.split(": ", 1) for line in lines)})
    return str(yaml.safe_dump(nested, sort_keys=False)).rstrip().splitlines()


def page(found: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [f"study {found['study']}: {found['trials']} trials, {found['refused_by_plan']} points refused by the plan "
             f"({found['minutes_saved']:.1f} minutes saved), {found['out_of_memory']} over the memory budget, "
             f"{found['retried']} taken up again"]
    if found["best"]:
        best = found["best"]
        lines.append(f"best: trial {best['trial']}, {best['val_bpb']:.4f} bits per byte: {best['params']}")
    for arm, entry in found["retest"].items():
        claimed = f"claimed {entry['claimed']:.4f}, " if entry["claimed"] is not None else ""
        line = (f"{arm:>10}: {claimed}re-tested {entry['mean']:.4f} ({entry['low']:.4f} to {entry['high']:.4f}; "
                f"{entry['seeds']} seeds)")
        if "minus_default" in entry:
            paired = entry["minus_default"]
            line += f"; against the default {paired['mean']:+.4f} ({paired['low']:+.4f} to {paired['high']:+.4f})"
        lines.append(line)
    return "\n".join(lines)

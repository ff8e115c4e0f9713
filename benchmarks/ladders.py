"""Do a ladder's trend and its prediction beyond the sizes trained keep to their intervals?

    python benchmarks/ladders.py --out benchmarks/ladders.json

Effects on four, five and six rungs, evenly spaced in log compute, lie on a planted line, or off it by rungs of their own whose
standard deviation is `off the line` times that of a rung's mean over its seeds. Noise of seeds is normal, heavy-tailed (t with 3
degrees), half shared by all rungs of a seed, or falls by half over the ladder. Counted: how often the 95 % interval of the
trend holds the planted slope, how often that of the prediction holds what as many new seeds measure one rung further, and how
often the largest rung, kept out, falls outside its prediction. The public functions are called throughout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paribus.evaluate.intervals import wilson
from paribus.study.trend import Trend, check_of

ALPHA = 0.05
OFF_THE_LINE = (0.0, 0.5, 1.0, 2.0)
LEVEL, SLOPE = -0.05, 0.01
KINDS = ("normal", "heavy tails", "half shared by a seed", "half as much at the largest rung")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=4_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases: dict[str, Any] = {}
    for rungs in (4, 5, 6):
        for seeds in (3, 5):
            cases[f"normal, {rungs} rungs, {seeds} seeds"] = by_scatter(
                "normal", rungs, seeds, options.draws
            )
    for kind in KINDS[1:]:
        cases[f"{kind}, 4 rungs, 3 seeds"] = by_scatter(kind, 4, 3, options.draws)
    text = json.dumps({"draws": options.draws, "cases": cases}, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def by_scatter(kind: str, rungs: int, seeds: int, draws: int) -> dict[str, Any]:
    """Rates of one kind of noise, by how far the rungs lie off the line."""
    return {f"{off:g}": rates(kind, rungs, seeds, off, draws) for off in OFF_THE_LINE}


def rates(kind: str, rungs: int, seeds: int, off: float, draws: int) -> dict[str, Any]:
    """How often each interval holds its truth.

    Args:
        kind: of the noise.
        rungs: of the ladder.
        seeds: of each rung.
        off: standard deviation of the rungs around the line, in that of a rung's mean.
        draws: ladders.
    """
    rng = np.random.default_rng(1)
    places = np.arange(rungs + 1) * 0.5  # log10 of compute, the last not trained
    true = LEVEL + SLOPE * places
    slopes, predictions, alarms = 0, 0, 0
    for _ in range(draws):
        measured = true + noise(rng, kind, rungs + 1, seeds)
        measured += rng.normal(0, off * 0.004 / np.sqrt(seeds), rungs + 1)
        beyond = measured[:, -1]
        if kind == "half shared by a seed":  # other seeds measure the size that was not trained
            beyond = true[-1] + noise(rng, kind, 1, seeds)[:, 0]
            beyond += rng.normal(0, off * 0.004 / np.sqrt(seeds))
        effects = {
            10 ** (12 + place): list(measured[:, number])
            for number, place in enumerate(places[:-1])
        }
        trend, check = Trend.of(effects), check_of(effects, ALPHA)
        assert trend is not None
        assert check is not None
        slopes += not trend.change(ALPHA).beside(SLOPE)
        predictions += not trend.at(10 ** (12 + places[-1]), ALPHA).beside(float(beyond.mean()))
        alarms += not check.passed
    return {
        "trend": share(slopes, draws),
        "prediction": share(predictions, draws),
        "kept out, outside": share(alarms, draws),
    }


def noise(rng: np.random.Generator, kind: str, rungs: int, seeds: int) -> np.ndarray:
    """Noise (seeds, rungs) of matched differences, of standard deviation .004."""
    if kind == "heavy tails":
        return 0.004 * rng.standard_t(3, (seeds, rungs)) / np.sqrt(3)
    own = rng.standard_normal((seeds, rungs))
    if kind == "half shared by a seed":
        return 0.004 * (own + rng.standard_normal((seeds, 1))) / np.sqrt(2)
    if kind == "half as much at the largest rung":
        own *= 0.5 ** (np.arange(rungs) / max(rungs - 2, 1))
    return 0.004 * own


def share(count: int, total: int) -> Sequence[float]:
    """A rate with Wilson's interval (1927)."""
    low, high = wilson(count, total)
    return [round(count / total, 4), round(low, 4), round(high, 4)]


if __name__ == "__main__":
    main()

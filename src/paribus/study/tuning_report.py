"""What equal tuning did: its budget, each arm's best, and how much of an effect it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paribus.study.differences import matched
from paribus.study.experiment import Experiment
from paribus.study.outcomes import Outcomes
from paribus.study.sequence import judge
from paribus.study.statistics import Effect, effects
from paribus.study.tuned import Trial, Tuned, tuning_of, tuning_so_far, untuned_part
from paribus.text import signed


@dataclass(frozen=True)
class TuningReport:
    """What equal tuning did.

    Attributes:
        runs: that each arm was tuned with.
        tuned: arm -> its trials and the best of them, the baseline's first.
        untuned: arm -> its effect with the file's values on both sides, at the seeds of the verdict.
        moved: arm -> tuned difference less the untuned, seed by seed.
    """

    runs: int
    tuned: Mapping[str, Tuned]
    untuned: Mapping[str, Effect]
    moved: Mapping[str, Effect]

    def sentence(self, experiment: Experiment, arm: str, effect: Effect | None) -> str:
        """How much of an arm's effect was tuning.

        Args:
            experiment: the study.
            arm: its name.
            effect: of the tuned arm against the tuned baseline.
        """
        before, moved = self.untuned.get(arm), self.moved.get(arm)
        if before is None or moved is None or effect is None:
            return f"{arm}: how much of its effect was tuning is not known yet."
        return (
            f"{arm}: untuned {signed(before.mean)} ({before.verdict}), tuned {signed(effect.mean)} ({effect.verdict}): tuning "
            f"both sides alike moved the difference by {signed(moved.mean)} {experiment.metric.unit} "
            f"({1 - experiment.alpha:.0%} interval {signed(moved.low)} to {signed(moved.high)}, an estimate without a verdict)."
        )

    def warnings(self) -> list[str]:
        """A sentence for each arm whose best lies on the edge of the space, or whose trials diverged."""
        found = []
        for arm, one in self.tuned.items():
            edges = one.on_edge()
            if edges:
                found.append(
                    f"{arm}: its best trial lies on the edge of the space: {', '.join(edges)}; a better one may lie beyond, so "
                    "that this arm is not tuned as far as one whose best lies inside"
                )
            lost = sum(trial.scores[0] is None for trial in one.trials)
            if lost:
                found.append(f"{arm}: {lost} of its {len(one.trials)} trials have no finite metric")
        return found

    def as_json(self) -> Mapping[str, Any]:
        """For programs; names are a contract."""
        arms = {}
        for arm, one in self.tuned.items():
            before, moved = self.untuned.get(arm), self.moved.get(arm)
            arms[arm] = {
                "trials": [_plain(trial) for trial in one.trials],
                "best": _plain(one.best) if one.best else None,
                "on_edge": one.on_edge(),
                "untuned_difference": before.mean if before else None,
                "untuned_verdict": before.verdict if before else None,
                "moved_by_tuning": moved.mean if moved else None,
            }
        return {"runs_of_each_arm": self.runs, "arms": arms}


def _plain(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "values": trial.values, "scores": list(trial.scores)}


def tuning_report(experiment: Experiment, outcomes: Outcomes, untuned: Outcomes) -> TuningReport:
    """What tuning did in a study whose trials have ended.

    Args:
        experiment: the study, as its file has it.
        outcomes: how the runs with the values that were picked ended.
        untuned: how the runs without tuning ended.
    """
    part = untuned_part(experiment)
    moved = {}
    for arm in experiment.arms:
        before, after = _differences(untuned, arm), _differences(outcomes, arm)
        shared = [after[seed] - before[seed] for seed in sorted(after.keys() & before.keys())]
        if shared:
            moved[arm] = effects(
                {arm: shared},
                direction=experiment.direction,
                smallest_effect=experiment.smallest_effect,
                alpha=experiment.alpha,
            )[arm]
    return TuningReport(
        tuning_of(experiment).runs,
        tuning_so_far(experiment),
        judge(part, untuned).effects,
        moved,
    )


def _differences(outcomes: Outcomes, arm: str) -> dict[int, float]:
    """Seed -> difference of the metric, arm - baseline."""
    found = {}
    for base, own in matched(outcomes.results, arm):
        found[base.seed] = (own.value or 0.0) - (base.value or 0.0)
    return found

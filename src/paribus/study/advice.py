"""What a study can do next without breaking the error rate it promised, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paribus.errors import UserError
from paribus.plan.devices import device_named
from paribus.study.compute import unneeded
from paribus.study.experiment import BASELINE, Experiment, study_files
from paribus.study.looks import OPEN
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.sequence import Judged, Step, next_step
from paribus.study.verdict import COSTS
from paribus.text import duration


@dataclass(frozen=True)
class NextLook:
    """The next look of a study, which its error rate covers.

    Attributes:
        seeds: after which it is.
        command: that runs what it needs, and takes it.
        runs: that are missing.
        seconds: that these runs take one after another, by the mean of the arm's runs; None: no run reports its time.
        usd: that they cost on the cards of the runs so far; None: no price is known.
    """

    seeds: int
    command: str
    runs: int
    seconds: float | None
    usd: float | None

    def words(self) -> str:
        """The look, its command and its cost, in words."""
        cost = [f"{self.runs} more run{'s' if self.runs != 1 else ''}"]
        if self.seconds is not None:
            cost.append(f"about {duration(self.seconds)}")
        if self.usd is not None:
            cost.append(f"{self.usd:.2f} USD")
        return f"the next look is after {self.seeds} seeds: `{self.command}` ({', '.join(cost)})"


def next_look(
    experiment: Experiment, outcomes: Outcomes, judged: Judged, record: Sequence[Step] = ()
) -> NextLook | None:
    """The next look of a study; None where every arm has its verdict, or no look is left.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        judged: its verdicts so far.
        record: looks that were taken before.
    """
    taken = judged.taken[-1].seeds if judged.taken else 0
    step = next_step(experiment, taken, record)
    open_arms = [arm for arm in experiment.arms if not judged.is_decided(arm)]
    if step is None or not open_arms:
        return None
    first = experiment.first_seed
    wanted = set(range(first, first + step.seeds))
    needless = unneeded(experiment, outcomes.results)
    groups = set(experiment.groups_of([BASELINE, *open_arms])) - needless
    missing = {group: len(wanted - outcomes.ended(group)) for group in groups}
    return NextLook(
        seeds=step.seeds,
        command=f"paribus ablate run {experiment.name}",
        runs=sum(missing.values()),
        seconds=_seconds(outcomes.results, missing),
        usd=_usd(outcomes.results, missing),
    )


@dataclass(frozen=True)
class Again:
    """The question asked again, in a new study with fresh seeds: for a study that has no look left.

    Attributes:
        study: that has no look left.
        name: of the new one, which no file has yet.
        seconds: of a run, in the mean; None: no run reports its time.
        usd: of a run; None: no price is known.
    """

    study: str
    name: str
    seconds: float | None
    usd: float | None

    def words(self, arms: Sequence[str], seeds: int) -> str:
        """The commands, and what they cost at most.

        Args:
            arms: that are asked again beside the baseline; none: all.
            seeds: that decide, by an upper limit of the spread.
        """
        only = "".join(f" --arm {arm}" for arm in arms)
        looks = len(OPEN.upto(seeds - 1)) + 1
        runs = seeds * (len(arms) + 1)
        return self._commands(only, f" --looks {looks}", f"at most about {runs} runs", runs)

    def at_seeds(self, seeds: int, cells: int) -> str:
        """The commands for a study with one look, and what they cost.

        Args:
            seeds: after which the look is.
            cells: runs of a seed.
        """
        runs = seeds * cells
        return self._commands(f" --seeds {seeds}", "", f"{runs} runs", runs)

    def each_seed(self, runs: int) -> str:
        """The commands, and what a seed costs, where nothing says how many decide.

        Args:
            runs: of a seed.
        """
        return self._commands("", "", f"{runs} runs a seed", runs)

    def _commands(self, of_new: str, of_run: str, cost: str, runs: int) -> str:
        costs = [cost]
        if self.seconds is not None:
            costs.append(duration(runs * self.seconds))
        if self.usd is not None:
            costs.append(f"{runs * self.usd:.2f} USD")
        return (
            f"`paribus ablate new {self.name} --like {self.study}{of_new}`, commit the file, then "
            f"`paribus ablate run {self.name}{of_run}` ({', '.join(costs)})"
        )


def again(experiment: Experiment, outcomes: Outcomes) -> Again:
    """The question of a study asked again.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
    """
    name = experiment.of or experiment.name
    taken = study_files()
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    one_run = {BASELINE: 1}
    return Again(
        study=name,
        name=f"{name}-{number}",
        seconds=_seconds(outcomes.results, one_run),
        usd=_usd(outcomes.results, one_run),
    )


def _seconds(results: Sequence[Result], missing: dict[str, int]) -> float | None:
    """Seconds of the missing runs; an arm without a finished run takes what the others take. missing: arm -> runs."""
    of_arm: dict[str, list[float]] = {}
    for result in results:
        seconds = COSTS["seconds"](result)
        if seconds:
            of_arm.setdefault(result.arm, []).append(seconds)
    everything = [seconds for own in of_arm.values() for seconds in own]
    if not everything:
        return None
    usual = sum(everything) / len(everything)
    total = 0.0
    for arm, runs in missing.items():
        own = of_arm.get(arm)
        total += runs * (sum(own) / len(own) if own else usual)
    return total


def _usd(results: Sequence[Result], missing: dict[str, int]) -> float | None:
    seconds = _seconds(results, missing)
    rates = [_usd_per_hour(result) for result in results]
    known = [rate for rate in rates if rate is not None]
    if seconds is None or not known or len(known) < len(rates):
        return None
    return seconds / 3600 * sum(known) / len(known)


def _usd_per_hour(result: Result) -> float | None:
    """The price of the cards that a run trained on, where the table of cards has one."""
    hardware = result.provenance.hardware
    if hardware.get("device") != "cuda":
        return None
    try:
        price = device_named(str(hardware.get("device_name"))).price
    except UserError:
        return None
    cards = hardware.get("processes")
    return None if price is None else price * (cards if isinstance(cards, int) else 1)

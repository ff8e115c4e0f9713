"""An ablation: the question, what is changed, what is held equal, and its runs."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from paribus.config import Config, flatten, lay_over
from paribus.errors import UserError
from paribus.run_id import RunId
from paribus.study import fields
from paribus.study.arm_code import ArmCode
from paribus.study.arms import Arm
from paribus.study.asked import Asked
from paribus.study.factors import Factorial
from paribus.study.groups import Group, Horizons, Ladder, Rung
from paribus.study.identity import chain_key, key_with_code, settings
from paribus.study.looks import Schedule
from paribus.study.tuning import Tuning

FOLDER = Path("experiments")
OTHER_FOLDERS = ("profiles", "tune", "results", "ideas")  # in it, without ablations
RESERVED = ("try",)  # names of files in it that are no ablation's
BASELINE = "baseline"


def study_files() -> dict[str, Path]:
    """Name -> file of every ablation: experiments/NAME.yaml, or experiments/FOLDER/REST.yaml of the name FOLDER-REST.

    Raises:
        UserError: where two files have one name.
    """
    files = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    for reserved in RESERVED:
        files.pop(reserved, None)
    for path in sorted(FOLDER.glob("*/*.yaml")):
        folder = path.parent.name
        if folder in OTHER_FOLDERS:
            continue
        name = f"{folder}-{path.stem}"
        if name in files:
            raise UserError(f"{path}: the ablation of {files[name]} has this name too; rename one")
        files[name] = path
    return files


@dataclass(frozen=True)
class Metric:
    """Where a metric is read: a key of a JSON file that a stage writes.

    target: of a curve, where the metric is the amount of compute at which the curve reaches it; path is then the curve's.
    """

    name: str
    path: str
    key: str
    unit: str
    target: float | None = None


@dataclass(frozen=True)
class Run:
    """One arm at one seed; `overrides`, dotted, are complete: profile, baseline, arm, seed and what follows from them."""

    id: RunId
    overrides: dict[str, object]
    key: str  # of what it computes: parameters of every stage of its chain

    @property
    def name(self) -> str:
        """Of its DVC experiment."""
        return self.id.experiment_name()

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.id.arm

    @property
    def seed(self) -> int:
        """The seed of the run's random streams."""
        return self.id.seed


@dataclass(frozen=True)
class Experiment:
    """An ablation, read from its file and checked. Without arms it is a noise floor."""

    name: str
    question: str
    hypothesis: str
    profile: str | None
    base: dict[str, object]  # the baseline's overrides, profile included
    arms: dict[str, Arm]
    seeds: Schedule  # when it looks at its verdicts
    metric: Metric
    direction: str
    smallest_effect: float
    equal: str
    amount: float | None  # of what is held equal; None: what the baseline has
    alpha: float
    stages: list[str]  # the whole chain, in order
    targets: list[str]
    workers: int
    warnings: list[str] = field(default_factory=list)
    fresh_seeds: bool = False
    borrow: bool = False
    skewed: bool = False  # noise may be: a verdict bears one more seed far on the other side
    besides: Asked = Asked()
    expects: Mapping[str, str] = field(default_factory=dict)  # of arms, or factors (expected.py)
    ladder: Ladder | None = None
    horizons: Horizons | None = None
    factorial: Factorial | None = None  # the design whose cells the arms are
    tune: Tuning | None = None  # what every arm is tuned in before it is judged
    of: str = ""  # the study that this one is a part of (tuned.py)
    seeds_from: int | None = None  # in place of the configuration's seed

    @property
    def file(self) -> Path:
        """The ablation's file."""
        name = self.of or self.name
        return study_files().get(name, FOLDER / f"{name}.yaml")

    @property
    def names(self) -> list[str]:
        """The baseline, then the arms."""
        return [BASELINE, *self.arms]

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Name -> group of runs that the study may ask for: baseline and arms, on every rung, at every horizon."""
        if self.ladder is None:
            own = {name: Group(name) for name in self.names}
            return own | (self.horizons.groups(BASELINE) if self.horizons else {})
        found = {}
        for rung in self.ladder.rungs:
            for name in self.names:
                found[f"{name}-{rung.name}"] = Group(name, rung.overrides, rung.name)
        return found

    def groups_of(self, arms: Collection[str]) -> list[str]:
        """Names of the groups of some arms.

        Args:
            arms: their names, and the baseline's.
        """
        return [name for name, group in self.groups.items() if group.arm in arms]

    @property
    def looked_at(self) -> tuple[str, ...]:
        """What a look of the study judges: its arms, on a ladder at each rung."""
        if self.ladder is None:
            return tuple(self.arms)
        return tuple(self.groups_of(self.arms))

    def at(self, rung: Rung) -> Experiment:
        """The study as it would be at one size alone.

        Args:
            rung: of its ladder.
        """
        return replace(self, base=lay_over(self.base, rung.overrides), ladder=None)

    def on_rung(self, name: str) -> Experiment:
        """The study at the rung of a group; itself where the group has none.

        Args:
            name: of the rung.
        """
        if self.ladder is None or not name:
            return self
        return next(self.at(rung) for rung in self.ladder.rungs if rung.name == name)

    @property
    def first_seed(self) -> int:
        """The seed of the first run of every arm; those of the others follow it."""
        if self.seeds_from is not None:
            return self.seeds_from
        return self.config().seed + (own_seeds(self.name) if self.fresh_seeds else 0)

    def code(self, arm: str) -> ArmCode | None:
        """The code of an arm or of a group of its runs; None where it is the baseline's."""
        name = self._group(arm).arm
        return self.arms[name].code if name in self.arms else None

    def _group(self, name: str) -> Group:
        return self.groups.get(name) or Group(name)

    def config(self, arm: str = BASELINE, extra: Mapping[str, object] | None = None) -> Config:
        """params.yaml with the baseline's and an arm's overrides, of the keys that the baseline's code has.

        Args:
            arm: its name; the baseline by default.
            extra: overrides that follow, dotted key -> value.
        """
        return settings(self._known(arm, self.overrides(arm) | dict(extra or {})))

    def _known(self, arm: str, overrides: dict[str, object]) -> dict[str, object]:
        code = self.code(arm)
        return overrides if code is None else code.known(overrides)

    def values(self, arm: str = BASELINE) -> dict[str, object]:
        """Dotted key -> value of an arm, also of the keys that only its code has."""
        code = self.code(arm)
        added = {} if code is None else code.added(self.overrides(arm))
        return flatten(self.config(arm)) | added

    def overrides(self, arm: str = BASELINE) -> dict[str, object]:
        """Dotted key -> value, of the baseline, then of the conditions of a group, then of an arm."""
        group = self._group(arm)
        own = self.arms[group.arm].overrides if group.arm != BASELINE else {}
        return lay_over(lay_over(self.base, group.overrides), own)

    def run(self, arm: str, number: int, extra: Mapping[str, object]) -> Run:
        """The run of an arm, or of a group, at a seed.

        Args:
            arm: its name.
            number: of the seed, from 0.
            extra: overrides that follow (steps of an equal budget, threads).
        """
        seed = self.first_seed + number
        overrides = self.overrides(arm) | dict(extra) | {"seed": seed}
        code = self.code(arm)
        key = chain_key(self.stages, settings(self._known(arm, overrides)))
        if code is not None:
            key = key_with_code(key, code.added(overrides))
        return Run(RunId(self.name, arm, seed), overrides, key)

    def config_of(self, run: Run) -> Config:
        """The parameters of a run, of the keys that the baseline's code has."""
        return settings(self._known(run.arm, run.overrides))


def own_seeds(name: str) -> int:
    """How many seeds a study skips to have its own, from its name: of a million pairs of studies about one shares some."""
    return fields.MOST_SEEDS * (1 + zlib.crc32(name.encode()) % 1_000_000)


def changed_keys(experiment: Experiment, arm: str) -> list[str]:
    """The keys whose value an arm changes.

    Args:
        experiment: that it is an arm of.
        arm: its name.
    """
    base, own = experiment.values(), experiment.values(arm)
    return [key for key in base.keys() | own.keys() if base.get(key) != own.get(key)]

"""Equal tuning: every arm, the baseline too, gets the same number of trials before it is judged at seeds it was not tuned on.

    tune:
      space: {optimizer.matrix_lr: {low: 0.005, high: 0.08, log: true}, …}
      trials: 12                # of each arm, the first with the file's own values
      pick: 1                   # or 3: the three best run again at a second seed, and the best mean is taken
      seed: 5000                # of the trials; by default one that no verdict has

A tuned study has three parts, studies of their own for DVC and the journal: the trials, NAME-tuning; the verdict, NAME; and the
arms as the file has them at the verdict's seeds, NAME-untuned, which shows how much of an effect was tuning. An arm tunes those
keys of the space that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paribus.config import flatten, inert_problems
from paribus.errors import UserError
from paribus.execute.run import LONGEST_NAME
from paribus.study import fields
from paribus.study.budget import MEASURED
from paribus.study.fields import hint, shown
from paribus.study.identity import definitions, is_declared
from paribus.study.spaces import ends_of, spread_problems

if TYPE_CHECKING:
    from paribus.study.experiment import Experiment

KEYS = ("space", "trials", "pick", "seed")
TRIALS, UNTUNED = "-tuning", "-untuned"  # what the parts' names end with
MOST_TRIALS = 200  # of an arm
MOST_SEED = 2**31 - 1
LONGEST_ARM = LONGEST_NAME - len("-t000")
HELD = ("pretrain.steps", "pretrain.tokens_per_parameter")  # by an equal budget

Space = dict[str, dict[str, object]]


@dataclass(frozen=True)
class Tuning:
    """What every arm is tuned in, and how much.

    Attributes:
        space: dotted key -> range or choices.
        trials: of each arm, at the first tuning seed.
        pick: how many of the best run again at the second; 1: none does.
        seed: the first tuning seed; None: one that follows from the study's name.
    """

    space: Space
    trials: int
    pick: int
    seed: int | None

    @property
    def runs(self) -> int:
        """Runs that each arm is tuned with."""
        return self.trials + (self.pick if self.pick > 1 else 0)

    def space_of(self, experiment: Experiment, arm: str) -> Space:
        """The keys of the space that an arm reads, at its own values or at an end of another key's range.

        Args:
            experiment: the study.
            arm: its name.
        """
        points = []
        for key, spread in self.space.items():
            for end in ends_of(spread):
                try:
                    points.append(experiment.config(arm, {key: end}))
                except UserError:  # a value that does not go with the arm's others
                    continue
        own = {}
        for key, spread in self.space.items():
            if not inert_problems(experiment.config(arm), [key], *points):
                own[key] = spread
        return own


def read_tuning(value: object, problems: list[str]) -> Tuning | None:
    """The key `tune` of a study's file; None where something is wrong.

    Args:
        value: of the key.
        problems: the list that receives the messages.
    """
    if not isinstance(value, dict):
        problems.append(f"tune: {shown(value)}; expected {{space: {{KEY: RANGE}}, trials: 12}}")
        return None
    before = len(problems)
    problems += [f"tune.{key}: unknown key; {hint(key, KEYS)}" for key in value if key not in KEYS]
    problems += [f"tune.{key}: missing" for key in ("space", "trials") if key not in value]
    numbers = {f"tune.{key}": value.get(key, 1) for key in ("trials", "pick", "seed")}
    trials = pick = seed = 1
    if "trials" in value:
        trials = fields.whole(numbers, "tune.trials", 2, MOST_TRIALS, problems)
    pick = fields.whole(numbers, "tune.pick", 1, trials, problems)
    if value.get("seed") is not None:
        seed = fields.whole(numbers, "tune.seed", 0, MOST_SEED, problems)
    space = value.get("space")
    if "space" in value and (not isinstance(space, dict) or not space):
        problems.append(
            f"tune.space: {shown(space)}; expected {{KEY: {{low, high, log}}}} or {{KEY: {{choices: […]}}}}"
        )
    if len(problems) > before:
        return None
    return Tuning(dict(value["space"]), trials, pick, seed if "seed" in value else None)


def tuning_problems(experiment: Experiment) -> list[str]:
    """What is wrong with the tuning of a study whose arms are known.

    Args:
        experiment: the study.
    """
    tuning = experiment.tune
    assert tuning is not None
    problems = _part_problems(experiment) + _seed_problems(experiment, tuning)
    of_space = _space_problems(experiment, tuning)
    if of_space:
        return problems + of_space
    read: set[str] = set()
    for arm in experiment.names:
        own = tuning.space_of(experiment, arm)
        read |= own.keys()
        if own:
            continue
        keys = ", ".join(tuning.space)
        why = "; ".join(inert_problems(experiment.config(arm), tuning.space))
        problems.append(
            f"tune.space: {arm} reads none of its keys ({keys}), so that it would not be tuned ({why}); add the keys that it "
            "reads"
        )
    for key in tuning.space.keys() - read:
        problems.append(f"tune.space.{key}: no arm reads it; leave it out")
    return problems


def _part_problems(experiment: Experiment) -> list[str]:
    """Names of the parts that are taken or too long, and a budget that tuning does not go with."""
    problems = []
    for ending in (TRIALS, UNTUNED):
        name = experiment.name + ending
        if len(name) > LONGEST_NAME:
            problems.append(f"tune: the part {name} would have a name of more than {LONGEST_NAME}")
        if experiment.file.with_name(f"{name}.yaml").exists():
            problems.append(f"tune: {name} is another study's name, and this one's part has it")
    problems += [
        f"arms.{arm}: a name of more than {LONGEST_ARM} letters leaves no room for its trials'"
        for arm in experiment.arms
        if len(arm) > LONGEST_ARM
    ]
    if experiment.equal in MEASURED:
        problems.append(
            f"tune: does not go with equal: {experiment.equal}, which would have to be measured for every trial; "
            "say tokens or flops"
        )
    return problems


def _seed_problems(experiment: Experiment, tuning: Tuning) -> list[str]:
    """Seeds of trials that are seeds of the verdict as well."""
    first, last = experiment.first_seed, experiment.seeds.last or fields.MOST_SEEDS
    if tuning.seed is None:
        return []
    needed = range(tuning.seed, tuning.seed + (2 if tuning.pick > 1 else 1))
    shared = [seed for seed in needed if first <= seed < first + last]
    if not shared:
        return []
    return [
        f"tune.seed: {tuning.seed} makes trials at {', '.join(map(str, shared))}, which the verdict may use ({first} to "
        f"{first + last - 1}): what is chosen at a seed looks too good there; take {first + last} or more, or leave it out"
    ]


def _space_problems(experiment: Experiment, tuning: Tuning) -> list[str]:
    """Keys and ranges that are wrong, whatever the arm."""
    known = list(flatten(experiment.config()))
    declared = [name for stage in experiment.stages for name in definitions()[stage].params]
    problems = []
    for key, spread in tuning.space.items():
        where = f"tune.space.{key}"
        if key not in known:
            problems.append(f"tune.space: {shown(key)}: unknown key; {hint(key, known)}")
        elif key == "seed":
            problems.append(f"{where}: seeds are not tuned")
        elif key in HELD and experiment.equal != "none":
            problems.append(f"{where}: equal: {experiment.equal} decides it")
        elif not is_declared(key, declared):
            problems.append(f"{where}: none of {', '.join(experiment.stages)} reads it")
        else:
            wrong = spread_problems(key, spread)
            problems += [f"tune.space.{problem}" for problem in wrong]
            if not wrong:
                problems += _end_problems(experiment, key, spread)
        for arm, definition in experiment.arms.items():
            if key in definition.overrides:
                problems.append(
                    f"arms.{arm}: sets {key}, which tune.space tunes; one of them decides"
                )
    return problems


def _end_problems(experiment: Experiment, key: str, spread: Mapping[str, object]) -> list[str]:
    """Ends of a range, or choices, that params.yaml refuses."""
    problems: list[str] = []
    for end in ends_of(dict(spread)):
        try:
            experiment.config(extra={key: end})
        except UserError as error:
            problems += [f"tune.space.{problem}" for problem in error.problems]
    return problems

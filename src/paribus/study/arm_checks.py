"""Whether the arms of an ablation make sense beside its baseline: each has an effect, and can keep the equal budget."""

from __future__ import annotations

from paribus.config import Config, changes, flatten, inert_problems, merge_problems
from paribus.errors import UserError
from paribus.study.arm_code import ArmCode
from paribus.study.budget import budget_problems
from paribus.study.experiment import Experiment, changed_keys
from paribus.study.identity import chain_key

SEED_OF_ARM = "seed is not for an arm: every arm runs at the same seeds"


def arm_problems(experiment: Experiment) -> list[str]:
    """Arms that params.yaml refuses, that change nothing that runs, or that cannot keep the equal budget.

    Args:
        experiment: the study.
    """
    problems = []
    for name in experiment.arms:
        try:
            of_arm = _problems_of(experiment, name, experiment.config(name))
        except UserError as error:
            of_arm = error.problems
        problems += [f"arms.{name}: {problem}" for problem in of_arm]
    return problems


def _problems_of(experiment: Experiment, name: str, config: Config) -> list[str]:
    """The problems of an arm. config: the arm's."""
    arm, base = experiment.arms[name], experiment.config()
    if arm.code is not None:
        return _problems_beside_code(experiment, name, arm.code)
    changed = sorted(changed_keys(experiment, name))
    without_effect = inert_problems(config, arm.overrides)
    without_effect += merge_problems(flatten(base), flatten(config))
    if without_effect:
        return without_effect
    if "seed" in arm.overrides:
        return [SEED_OF_ARM]
    if not changed:
        return ["changes nothing: every value is the baseline's"]
    if not changes(base, config):
        return [
            f"{', '.join(changed)} changes nothing: the baseline computes the same, as what is null "
            "follows from other keys and weights are shares of their sum"
        ]
    if chain_key(experiment.stages, config) == chain_key(experiment.stages, base):
        return [
            f"{', '.join(changed)} changes nothing in the stages that run: "
            f"{', '.join(experiment.stages)}"
        ]
    return budget_problems(experiment, name)


def _problems_beside_code(experiment: Experiment, name: str, code: ArmCode) -> list[str]:
    """The problems of what an arm with code of its own sets; a key without effect in the baseline may have one there."""
    overrides = experiment.arms[name].overrides
    if "seed" in overrides:
        return [SEED_OF_ARM]
    problems = merge_problems(flatten(experiment.config()), flatten(experiment.config(name)))
    for key in experiment.overrides(name):
        if key in code.absent:
            where = "set" if key in overrides else "the baseline's"
            problems.append(
                f"{where} {key}: params.yaml at {code.asked} ({code.commit[:10]}) has no such key"
            )
    return problems or budget_problems(experiment, name)


def arm_warnings(experiment: Experiment) -> list[str]:
    """What a reader of the verdicts has to know of the arms.

    Args:
        experiment: the study.
    """
    warnings = []
    for name, arm in experiment.arms.items():
        changed = sorted(changed_keys(experiment, name))
        if arm.code is not None:
            changed = [f"the code of {arm.asked}", *sorted(arm.overrides)]
            if arm.code.note:
                warnings.append(f"{experiment.file}: arms.{name}.code: {arm.code.note}")
        if experiment.equal == "tokens" and any(key.startswith("tokenizer.") for key in changed):
            warnings.append(
                f"{experiment.file}: arms.{name} has another tokenizer, so that equal tokens are not equal text: its tokens "
                "hold more or fewer bytes; equal: bytes gives each arm the same text"
            )
        if len(changed) > 1 and arm.as_one is None:
            warnings.append(
                f"{experiment.file}: arms.{name} changes {len(changed)} things ({', '.join(changed)}), so that its "
                "verdict is on all of them together; if they are one thing, say which: "
                "{set: {…}, as_one: WHAT}"
            )
    return warnings

"""Arms that change nothing: the key is accepted, and the weights come out the same, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from paribus.curriculum import TRAINING_STAGES
from paribus.graph import chain
from paribus.study.experiment import Experiment
from paribus.study.identity import all_params, definitions
from paribus.study.results import Result

Pairs = Sequence[tuple[Result, Result]]  # (baseline, arm) at one seed


def changed_nothing(experiment: Experiment, arm: str, pairs: Pairs) -> bool:
    """Whether an arm that changes how a model is made ends in the baseline's weights and value at every matched seed.

    An arm that changes only an evaluation has the baseline's weights by intention, and does not count here.

    Args:
        experiment: the study.
        arm: its name.
        pairs: (baseline, arm) at each matched seed.
    """
    trained = [stage for stage in TRAINING_STAGES if stage in experiment.stages]
    if not pairs or not _concerns_training(experiment, arm, trained):
        return False
    for base, own in pairs:
        same_weights = bool(base.weights) and base.weights == own.weights
        if not same_weights or base.value != own.value:
            return False
    return True


def _concerns_training(experiment: Experiment, arm: str, trained: Sequence[str]) -> bool:
    base, own = experiment.config(), experiment.config(arm)
    for stage in chain(trained, definitions()):
        definition = definitions()[stage]
        if all_params(definition, base) != all_params(definition, own):
            return True
    return False

"""What the arms of a study share: the budget that was held equal, the rows they read, the values they begin with."""

from __future__ import annotations

from collections.abc import Sequence

from paribus.study.experiment import Experiment
from paribus.study.verdict import ArmVerdict
from paribus.text import quantity, share

# keys that change which rows a seed gives; other sizes of a step take the same rows in other portions
DECIDES_ROWS = (
    "corpus.",
    "tokenizer.",
    "tokens.",
    "model.seq_len",
    "pretrain.packing",
    "midtrain.mixture",
    "midtrain.epochs",
    "sft.mixture",
    "sft.epochs",
    "rl.curriculum",
    "rl.dynamic_sampling",
)


def held(experiment: Experiment, found: Sequence[ArmVerdict]) -> str:
    """What was held equal, and what matched seeds share, in words.

    Args:
        experiment: the study.
        found: the verdicts, the baseline left out.
    """
    amount = f" ({quantity(experiment.amount)})" if experiment.amount else ""
    budget = {
        "none": "Nothing was held equal: the arms cost what they cost; see the table of costs.",
        "tokens": f"Training tokens{amount}: every arm read as many.",
        "bytes": f"Training text{amount}: pretraining steps of each arm follow from the bytes of its tokens.",
        "flops": f"Training FLOPs{amount}: pretraining steps of each arm follow from the FLOPs of its steps, Muon's products "
        "and the keys that attention sees included.",
        "seconds": f"Training time{amount}: pretraining steps of each arm follow from the measured seconds of its steps.",
    }[experiment.equal]
    of_settings = [arm for arm in found if experiment.code(arm.name) is None]
    sentences = [budget]
    if of_settings:
        sentences += [shared_rows(of_settings), shared_values(experiment, of_settings)]
    if len(of_settings) < len(found):
        sentences.append(
            "What the seeds of an arm share whose code differs stands with its change."
        )
    return " ".join(sentences)


def shared_rows(found: Sequence[ArmVerdict]) -> str:
    """Whether the arms read the same rows in the same order at one seed."""
    others = []
    for arm in found:
        if any(key.startswith(DECIDES_ROWS) for key in arm.changed):
            others.append(arm.name)
    if not others:
        return "At one seed every arm reads the same rows in the same order."
    return f"At one seed the arms read the same rows in the same order, but for {', '.join(others)}, whose rows are others."


def shared_values(experiment: Experiment, found: Sequence[ArmVerdict]) -> str:
    """Which share of each arm's initial values is the baseline's at one seed: tensors of the same shape and scale.

    Args:
        experiment: the study.
        found: the verdicts, the baseline left out.
    """
    from paribus.model.initial import shared_initial_tensors
    from paribus.recipe import Recipe

    base = Recipe.of(experiment.config())
    shares = []
    for arm in found:
        own = Recipe.of(experiment.config(arm.name))
        shared = shared_initial_tensors(
            own.architecture, own.vocab_size, base.architecture, base.vocab_size
        )
        shares.append((arm.name, shared.same_fraction))
    if all(share == 1 for _, share in shares):
        return "Every tensor of every arm begins with the baseline's values there."
    listed = ", ".join(f"{name} {share(part)}" for name, part in shares)
    return (
        f"Of an arm's initial values these are the baseline's there: {listed}; "
        "the others have another shape or scale, or no tensor of the baseline has their name."
    )

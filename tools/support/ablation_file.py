"""A valid ablation file of tiny size, to be changed by tests."""

from __future__ import annotations

from typing import Any

from paribus.study.experiment import Experiment
from paribus.study.reading import parse_experiment
from support.tiny import TINY

FILE: dict[str, Any] = {
    "question": "Is it better?",
    "hypothesis": "It is.",
    "baseline": {"set": TINY},
    "arms": {"adamw": {"optimizer.kind": "adamw"}},
    "seeds": 2,
    "metric": "val_bpb",
    "smallest_effect": 0.01,
    "equal": "tokens",
    "stages": ["pretrain"],
}


def parse(**changes: Any) -> Experiment:
    """The ablation of the file with changed keys."""
    return parse_experiment("tiny", FILE | changes)

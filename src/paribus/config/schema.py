"""All of params.yaml: its sections. No values: `params.yaml` owns those.

Every key has its type, bounds, unit and meaning on one line, in the module of its section: text in `data_schema`, the
GPT in `model_schema`, optimiser and stages in `training_schema`, the machine and tracking in `machine_schema`,
evaluation in `eval_schema`. A key whose value may be `null` is *derived* when it is null; `derived` says how.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from typing import Any

from paribus.config import limits
from paribus.config.data_schema import Corpus, Tokenizer, Tokens
from paribus.config.eval_schema import Eval
from paribus.config.keys import key
from paribus.config.machine_schema import Tracking, Train
from paribus.config.model_schema import Model
from paribus.config.training_schema import RL, Conversations, Optimizer, Pretrain


@dataclass(frozen=True)
class Config:
    """All of params.yaml."""

    seed: int = key("initial weights, data order, sampling", ge=0, le=limits.SEED)
    corpus: Corpus = key("documents, conversations, problems, tasks")
    tokenizer: Tokenizer = key("byte-level BPE")
    tokens: Tokens = key("token shards")
    model: Model = key("the GPT")
    optimizer: Optimizer = key("optimiser")
    train: Train = key("how training runs")
    pretrain: Pretrain = key("pretraining")
    midtrain: Conversations = key("midtraining: chat format, tool")
    sft: Conversations = key("supervised fine-tuning")
    rl: RL = key("reinforcement learning")
    eval: Eval = key("evaluation")
    tracking: Tracking = key("experiment tracking")


@functools.cache
def types_of(cls: type) -> dict[str, Any]:
    """The types of a section's keys; working them out from their text takes most of the time of parsing."""
    return typing.get_type_hints(cls)


def describe(cls: type = Config, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every dotted key with its type and metadata, sections included, in order."""
    rows = []
    hints = types_of(cls)
    for field in dataclasses.fields(cls):
        rows.append((prefix + field.name, hints[field.name], field.metadata))
        if dataclasses.is_dataclass(hints[field.name]):
            rows += describe(hints[field.name], f"{prefix}{field.name}.")
    return rows


def flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass (or mapping) as dotted keys -> plain values.

    Args:
        section: a dataclass or a mapping; nested ones become dotted keys.
        prefix: of each key.
    """
    flat: dict[str, Any] = {}
    values = section if isinstance(section, dict) else vars(section)
    for name, value in values.items():
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat

"""The keys of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paribus.config import limits
from paribus.config.keys import key
from paribus.config.limits import Limit


@dataclass(frozen=True)
class Core:
    """DCLM CORE (arXiv:2406.11794)."""

    max_per_task: int | None = key(
        "items of each task, after the protocol's shuffle; null: all", ge=2, le=limits.PROBLEMS
    )
    batch_size: int = key("rows of one forward pass: memory, not results", ge=1, le=limits.ROWS)


@dataclass(frozen=True)
class Gsm8k:
    """Word problems, scored as GSM8K is."""

    split: Literal["validation", "test"] = key("validation to tune, test for the report")
    questions: int | None = key(
        "problems answered greedily; null: the whole split", ge=1, le=limits.PROBLEMS
    )
    samples: int = key("sampled answers per problem for pass@k", ge=1, le=limits.SAMPLES)
    sampled_questions: int | None = key(
        "problems answered by sampling; null: as many as greedily", ge=1, le=limits.PROBLEMS
    )
    temperature: float = key("of the sampled answers", ge=limits.COLDEST, le=limits.HOTTEST)
    few_shot: int = key(
        "worked examples before the question, base model only",
        ge=0,
        le=Limit(1_000, "more than any context holds"),
    )
    max_new_tokens: int = key("longest answer, tokens", ge=1, le=limits.CONTEXT)
    rows: int = key("answers generated side by side: memory, not results", ge=1, le=limits.ROWS)


@dataclass(frozen=True)
class Eval:
    """Evaluation of checkpoints."""

    bpb_tokens: int | None = key(
        "validation tokens for the final bits per byte; null: all", ge=1, le=limits.TOKENS
    )
    core: Core = key("CORE")
    gsm8k: Gsm8k = key("word problems")

"""One function per DVC stage: read the config, wire the parts, write the outputs; metrics come last."""

from paribus.stages.data import corpus, tokenizer, tokens
from paribus.stages.evaluation import compare_stages, core, gsm8k, report
from paribus.stages.training import midtrain, pretrain, rl, sft

__all__ = [
    "compare_stages",
    "core",
    "corpus",
    "gsm8k",
    "midtrain",
    "pretrain",
    "report",
    "rl",
    "sft",
    "tokenizer",
    "tokens",
]

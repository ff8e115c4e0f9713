"""params.yaml -> frozen dataclasses: every key typed, documented, strict; and the fingerprint.

Only the standard library is needed (PyYAML to read a file), so that the trainer runs where only torch is.
"""

from paribus.config.derived import resolve_model, resolve_pretrain
from paribus.config.parsing import (
    allowed,
    fingerprint,
    load_config,
    merge,
    parse_config,
    parse_yaml,
    read_yaml,
)
from paribus.config.schema import (
    RL,
    Architecture,
    Config,
    Conversations,
    Core,
    Corpus,
    Eval,
    Gsm8k,
    Model,
    Optimizer,
    Pretrain,
    Schedule,
    Tokenizer,
    Tokens,
    Tracking,
    Train,
    World,
    describe,
    flatten,
    key,
)
from paribus.config.sources import Archive, HubFiles, parse_source

__all__ = [
    "RL",
    "Architecture",
    "Archive",
    "Config",
    "Conversations",
    "Core",
    "Corpus",
    "Eval",
    "Gsm8k",
    "HubFiles",
    "Model",
    "Optimizer",
    "Pretrain",
    "Schedule",
    "Tokenizer",
    "Tokens",
    "Tracking",
    "Train",
    "World",
    "allowed",
    "describe",
    "fingerprint",
    "flatten",
    "key",
    "load_config",
    "merge",
    "parse_config",
    "parse_source",
    "parse_yaml",
    "read_yaml",
    "resolve_model",
    "resolve_pretrain",
]

"""params.yaml -> frozen dataclasses: every key typed, documented, strict; and the fingerprint.

Only the standard library is needed (ruamel.yaml to read a file), so that the trainer runs where only torch is.
"""

from paribus.config.batches import Batches, batches_of
from paribus.config.committed import change_notes
from paribus.config.conditions import GATED_MLPS
from paribus.config.corpus_rules import RESERVED_SOURCES
from paribus.config.courses import GROUPS, Course, course_of, groups_apart
from paribus.config.data_schema import Corpus, Tokenizer, Tokens, World
from paribus.config.derived import (
    SMALL_STD,
    embedding_std,
    mlp_hidden,
    resolve_model,
    resolve_pretrain,
)
from paribus.config.effects import changes, effective, inert, inert_problems, merge_problems
from paribus.config.eval_schema import Core, Eval, Gsm8k
from paribus.config.keys import key
from paribus.config.libraries import is_foreign, library, library_version, signature_of
from paribus.config.machine_schema import Tracking, Train
from paribus.config.model_schema import Architecture, Model
from paribus.config.parsing import (
    allowed,
    dotted,
    fingerprint,
    lay_over,
    load_config,
    merge,
    parse_architecture,
    parse_config,
)
from paribus.config.profiles import PROFILES, named_file, profile_overrides
from paribus.config.reading import dump_yaml, parse_value, parse_yaml, read_text, read_yaml
from paribus.config.schema import Config, describe, flatten
from paribus.config.sources import Archive, HubFiles, parse_source
from paribus.config.training_schema import RL, Conversations, Optimizer, Pretrain, Schedule, Shape

__all__ = [
    "GATED_MLPS",
    "GROUPS",
    "PROFILES",
    "RESERVED_SOURCES",
    "RL",
    "SMALL_STD",
    "Architecture",
    "Archive",
    "Batches",
    "Config",
    "Conversations",
    "Core",
    "Corpus",
    "Course",
    "Eval",
    "Gsm8k",
    "HubFiles",
    "Model",
    "Optimizer",
    "Pretrain",
    "Schedule",
    "Shape",
    "Tokenizer",
    "Tokens",
    "Tracking",
    "Train",
    "World",
    "allowed",
    "batches_of",
    "change_notes",
    "changes",
    "course_of",
    "describe",
    "dotted",
    "dump_yaml",
    "effective",
    "embedding_std",
    "fingerprint",
    "flatten",
    "groups_apart",
    "inert",
    "inert_problems",
    "is_foreign",
    "key",
    "lay_over",
    "library",
    "library_version",
    "load_config",
    "merge",
    "merge_problems",
    "mlp_hidden",
    "named_file",
    "parse_architecture",
    "parse_config",
    "parse_source",
    "parse_value",
    "parse_yaml",
    "profile_overrides",
    "read_text",
    "read_yaml",
    "resolve_model",
    "resolve_pretrain",
    "signature_of",
]

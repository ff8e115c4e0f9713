"""Values of the corpus and of the mixtures read from it that cannot work together: each rule yields the problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from paribus.config.schema import Config
from paribus.config.sources import Archive, HubFiles, source_problem
from paribus.config.training_schema import Conversations
from paribus.curriculum import CONVERSATION_STAGES
from paribus.errors import did_you_mean, escaped, shown

# Sources of the mixtures that are always there: the world's, and what other data gives.
RESERVED_SOURCES = (
    "facts",
    "smalltalk",
    "instructions",
    "problems_worked",
    "problems_direct",
    "documents",
)
MAIN = "main"  # the documents of corpus.source among the sources of pretrain.mixture

Rule = Callable[[Config], Iterator[str]]


# ---------------------------------------------------------------- places and names


def world_has_no_choice(config: Config) -> Iterator[str]:
    """Keys of other sources that would be passed over with the world."""
    corpus = config.corpus
    if corpus.source != "world":
        return
    only = "is for corpus.source text, local or hub"
    if corpus.texts:
        return
    if corpus.megabytes:
        yield f"corpus.megabytes: {corpus.megabytes:g} {only}; the world has corpus.world.megabytes"
    if corpus.drop_contaminated:
        yield f"corpus.drop_contaminated: {only}; the world keeps its test problems apart"
    if corpus.drop_near_duplicates:
        yield f"corpus.drop_near_duplicates: {only}; the world is made of templates, which repeat"


def paths_are_sources(config: Config) -> Iterator[str]:
    """A corpus from files names some, and each is of the kind that `corpus.source` calls for."""
    corpus = config.corpus
    if corpus.source not in ("local", "hub"):
        return
    if not corpus.paths:
        yield f"corpus.paths: empty, but corpus.source is {corpus.source}; name files"
    kind = str if corpus.source == "local" else HubFiles
    for path in corpus.paths:
        yield from _found(source_problem("corpus.paths", path, (kind,)))


def problems_are_a_source(config: Config) -> Iterator[str]:
    """`corpus.problems` is a local path or files of a Hub repository."""
    yield from _found(source_problem("corpus.problems", config.corpus.problems, (str, HubFiles)))


def core_is_a_source(config: Config) -> Iterator[str]:
    """`corpus.core` is a local path or an archive."""
    yield from _found(source_problem("corpus.core", config.corpus.core, (str, Archive)))


def conversations_are_sources(config: Config) -> Iterator[str]:
    """Each source of conversations is a path or files of the Hub, under a plain name that is still free."""
    for name, source in config.corpus.conversations.items():
        key = f"corpus.conversations.{escaped(name)}"
        yield from _found(source_problem(key, source, (str, HubFiles)))
        if name in RESERVED_SOURCES or not re.fullmatch(r"\w[\w-]{0,99}", name):
            yield f"{key}: this name is taken or odd; taken are {', '.join(RESERVED_SOURCES)}"


def texts_are_sources(config: Config) -> Iterator[str]:
    """Each further corpus is `text`, a path or files of the Hub, under a plain name that is still free."""
    for name, source in config.corpus.texts.items():
        key = f"corpus.texts.{escaped(name)}"
        yield from _found(source_problem(key, source, (str, HubFiles)))
        if name == MAIN or not re.fullmatch(r"\w[\w-]{0,99}", name):
            yield f"{key}: this name is taken or odd; taken is {MAIN}, for corpus.source"


def _no_such_source(source: str, known: Sequence[str]) -> str:
    hint = did_you_mean(source, known)
    there = ", ".join(map(escaped, known))
    return f"{escaped(source)}: no such source; {hint + ' ' if hint else ''}there are: {there}"


def documents_are_mixed(config: Config) -> Iterator[str]:
    """pretrain.mixture, .epochs and .source_order name corpora that there are, and agree with each other."""
    pretrain = config.pretrain
    known = [MAIN, *config.corpus.texts]
    named = {"mixture": pretrain.mixture, "epochs": pretrain.epochs}
    for key, sources in (*named.items(), ("source_order", pretrain.source_order)):
        for source in dict.fromkeys(sources):
            if source not in known:
                yield f"pretrain.{key}: {_no_such_source(source, known)} (more by corpus.texts)"
    amounts = pretrain.mixture | pretrain.epochs
    if amounts and sum(amounts.values()) <= 0:
        yield "pretrain.mixture: no source has a weight above 0"
    for source in pretrain.epochs:
        if pretrain.mixture.get(source):
            yield (
                f"pretrain.epochs: {escaped(source)} has a share in pretrain.mixture too; one of them decides"
            )
    read = sorted(source for source, amount in amounts.items() if amount > 0)
    if pretrain.source_order and sorted(pretrain.source_order) != read:
        yield (
            f"pretrain.source_order: {shown(pretrain.source_order)} is not the list of the sources that "
            f"pretrain.mixture and pretrain.epochs name, each once: {shown(read)}"
        )


def rows_are_cut_evenly(config: Config) -> Iterator[str]:
    """Rows at first are whole parts of a row."""
    short, seq_len = config.pretrain.short_context, config.model.seq_len
    if short is not None and (short >= seq_len or seq_len % short):
        yield (
            f"pretrain.short_context: {short} does not divide model.seq_len ({seq_len}) into two rows or more"
        )


def shots_exist(config: Config) -> Iterator[str]:
    """The embedded world has at least as many problems as GSM8K's few-shot examples need."""
    corpus, shots = config.corpus, config.eval.gsm8k.few_shot
    if corpus.problems == "world" and corpus.world.problems < shots:
        yield (
            f"eval.gsm8k.few_shot: {shots}, but corpus.world.problems has only {corpus.world.problems}"
        )


# ---------------------------------------------------------------- mixtures


def mixture_is_sound(name: str) -> Rule:
    """The rule for stage `name`: some source has a weight, and none is given both a share and a number of epochs."""

    def rule(config: Config) -> Iterator[str]:
        stage = _conversations(config, name)
        if sum(stage.mixture.values()) + sum(stage.epochs.values()) <= 0:
            yield f"{name}.mixture: no source has a weight above 0"
        for source in stage.epochs:
            if stage.mixture.get(source):
                yield (
                    f"{name}.epochs: {escaped(source)} has a share in {name}.mixture too; one of them decides"
                )

    return rule


def sources_exist(name: str, key: str) -> Rule:
    """The names follow from params.yaml alone, so that a slip is found before anything is computed.

    Args:
        name: of the stage, midtrain or sft.
        key: of its section that names sources, mixture or epochs.
    """

    def rule(config: Config) -> Iterator[str]:
        known = [*RESERVED_SOURCES, *config.corpus.conversations]
        for source in getattr(_conversations(config, name), key):
            if source in known:
                continue
            yield f"{name}.{key}.{_no_such_source(source, known)} (more by corpus.conversations)"

    return rule


def _found(problem: str | None) -> list[str]:
    return [problem] if problem else []


def _conversations(config: Config, name: str) -> Conversations:
    return cast(Conversations, getattr(config, name))


RULES: tuple[Rule, ...] = (
    world_has_no_choice,
    paths_are_sources,
    problems_are_a_source,
    core_is_a_source,
    conversations_are_sources,
    texts_are_sources,
    documents_are_mixed,
    rows_are_cut_evenly,
    shots_exist,
    *(mixture_is_sound(name) for name in CONVERSATION_STAGES),
    *(sources_exist(name, key) for name in CONVERSATION_STAGES for key in ("mixture", "epochs")),
)

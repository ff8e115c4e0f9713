"""The stages before training: corpus, tokenizer, tokens."""

from __future__ import annotations

from paribus.config import load_config
from paribus.curriculum import CORPUS, METRICS, TOKENIZER, TOKENS
from paribus.data.disk import writing
from paribus.machine.interrupt import stopping_at_once
from paribus.places import main_checkout
from paribus.progress import Progress
from paribus.stages.context import load_trained_tokenizer, name_changes, say_if_stale
from paribus.summary import write_json


def corpus() -> None:
    """Documents, conversations, problems and tasks -> data/corpus."""
    from paribus.data.corpus import build_corpus

    config = load_config()
    name_changes("corpus", config)
    say_if_stale("corpus")
    with stopping_at_once("corpus"), Progress("corpus") as bar, writing(CORPUS):
        build_corpus(config.corpus, CORPUS, main_checkout(), bar.count)


def tokenizer() -> None:
    """Byte-level BPE of the documents -> data/tokenizer, metrics/tokenizer.json."""
    with stopping_at_once("tokenizer"):
        make_tokenizer()


def make_tokenizer() -> None:
    """The stage `tokenizer` without its handling of signals."""
    from paribus.data.compression import bytes_per_token, trained_on
    from paribus.data.tokenizer import GPT2_BYTES_PER_TOKEN

    config = load_config()
    say_if_stale("tokenizer")
    trained = trained_on(CORPUS, config.tokenizer)
    with writing(TOKENIZER / "tokenizer.json"):
        trained.save_trained(TOKENIZER)
    of_token = bytes_per_token(trained, CORPUS)
    figures = {
        "vocab_size": trained.vocab_size,
        "bytes_per_token": of_token,
        "bytes_per_token_over_gpt2": of_token / GPT2_BYTES_PER_TOKEN,
    }
    with writing(METRICS / "tokenizer.json"):
        write_json(METRICS / "tokenizer.json", figures)


def tokens() -> None:
    """Documents -> token shards in data/tokens."""
    from paribus.data.shards import write_shards

    config = load_config()
    say_if_stale("tokens")
    with stopping_at_once("tokens"), Progress("tokens") as bar, writing(TOKENS):
        write_shards(
            CORPUS / "documents", load_trained_tokenizer(), config.tokens, TOKENS, bar.count
        )

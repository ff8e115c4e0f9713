"""Packed conversations: the mixture that was asked for, whole conversations, no leak, nothing depends on ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus import config
from paribus.data import write_jsonl
from paribus.data.chat import Messages, load_sources, render_batch
from paribus.data.conversation_rows import ConversationLoader
from paribus.data.loader import DocumentLoader
from paribus.data.packing import pack
from paribus.data.shards import write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.errors import UserError

SEQ_LEN = 64
ROWS = 8


def talk(kind: str, number: int) -> Messages:
    return [
        {"role": "user", "content": f"{kind} {number}?" + " well" * (number % 11)},
        {"role": "assistant", "content": f"answer {number} " + f" {kind}" * (number % 17)},
    ]


SOURCES = {
    kind: [talk(kind, number) for number in range(count)]
    for kind, count in (("short", 500), ("longer", 300))
}
TEXTS = [
    str(message["content"])
    for talks in SOURCES.values()
    for messages in talks
    for message in messages
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        TEXTS,
        config.Tokenizer(
            vocab_size=300, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )


def loader(
    tokenizer: Tokenizer,
    mixture: dict[str, float],
    sources: dict[str, Any] | None = None,
    **options: object,
) -> ConversationLoader:
    settings: dict[str, Any] = {"seq_len": SEQ_LEN, "seed": 5, "attend_across": False} | options
    return ConversationLoader(sources or SOURCES, mixture, tokenizer, **settings)


def conversations_of(batch_rows: torch.Tensor, tokenizer: Tokenizer) -> list[str]:
    """The texts of the conversations in rows of inputs."""
    return [
        text
        for row in batch_rows.tolist()
        for text in tokenizer.decode(row).split("<|bos|>")
        if text
    ]


def test_epochs_decide_how_often_a_source_is_seen(tokenizer: Tokenizer) -> None:
    """Two passes over "short" within 80 batches, but for what packing pads; the other source fills the rest."""
    steps, tokens = 80, 80 * ROWS * SEQ_LEN
    batches = loader(tokenizer, {"longer": 1}, epochs={"short": 2}, tokens=tokens)
    seen = Counter(
        text
        for step in range(steps)
        for text in conversations_of(batches.batch(step, range(ROWS), ROWS).inputs, tokenizer)
    )
    short = [count for text, count in seen.items() if "short" in text]
    assert sum(short) == pytest.approx(2 * len(SOURCES["short"]), rel=0.05)
    assert any("longer" in text for text in seen)


@pytest.mark.parametrize(
    ("mixture", "tokens", "words"),
    [({"longer": 1}, 1000, "ask for fewer"), ({}, 10**6, "another source")],
)
def test_epochs_that_do_not_fill_the_stage_are_refused(
    tokenizer: Tokenizer, mixture: dict[str, float], tokens: int, words: str
) -> None:
    with pytest.raises(
        UserError,
        match=rf"epochs: 1 of short are [\d,]+ tokens, and the stage draws {tokens:,}.*{words}",
    ):
        loader(tokenizer, mixture, epochs={"short": 1}, tokens=tokens)


def test_rows_hold_whole_conversations_with_their_own_mask(tokenizer: Tokenizer) -> None:
    known = {
        tuple(ids): mask
        for talks in SOURCES.values()
        for ids, mask in render_batch(talks, tokenizer)
    }
    batch = loader(tokenizer, {"short": 1, "longer": 1}).batch(0, range(ROWS), ROWS)
    assert batch.documents is not None
    for inputs, targets, documents in zip(
        batch.inputs, batch.targets, batch.documents, strict=True
    ):
        assert inputs[0] == tokenizer.bos
        for document in range(int(documents.max()) + 1):
            places = torch.nonzero(documents == document).flatten().tolist()
            assert places == list(range(places[0], places[-1] + 1))
            ids = inputs[places].tolist()
            if ids == [tokenizer.bos] * len(ids):
                assert (targets[places] == -1).all()  # padding
                continue
            if (
                targets[places[-1]] >= 0
            ):  # the row ends with the conversation's last token as a target
                ids.append(int(targets[places[-1]]))
            mask = known[tuple(ids)]
            expected = [token if bit else -1 for token, bit in zip(ids[1:], mask[1:], strict=True)]
            assert targets[places].tolist() == (expected + [-1])[: len(places)]


def test_each_conversation_comes_once_an_epoch(tokenizer: Tokenizer) -> None:
    """Rows are packed by blocks, each a stretch of the stream of epochs: at its end, counts differ by one at most."""
    seen: Counter[str] = Counter()
    spreads = []
    for row in loader(tokenizer, {"longer": 1}).batch(0, range(600), 600).inputs:
        texts = conversations_of(row[None], tokenizer)
        seen.update(text.removesuffix("<|end|>") for text in texts)
        if len(seen) == 300:
            spreads.append(max(seen.values()) - min(seen.values()))
    assert min(spreads) <= 1


def test_shares_are_shares_of_tokens_and_padding_is_little(tokenizer: Tokenizer) -> None:
    packed = loader(tokenizer, {"short": 3, "longer": 1}, seq_len=128)
    inputs = packed.batch(0, range(600), 600).inputs
    texts = conversations_of(inputs, tokenizer)
    tokens = Counter(
        {
            kind: sum(len(tokenizer.encode(text)) for text in texts if kind in text)
            for kind in SOURCES
        }
    )
    assert tokens["short"] / tokens["longer"] == pytest.approx(3, rel=0.1)
    padding = inputs.numel() - int((inputs != tokenizer.bos).sum()) - len(texts)
    assert padding / inputs.numel() < 0.04  # packed in order of arrival it is 0.10


def test_the_place_in_a_row_says_nothing_about_the_kind(tokenizer: Tokenizer) -> None:
    """Longest-first packing without the shuffle would open every row with the longest kind."""
    inputs = loader(tokenizer, {"short": 1, "longer": 1}).batch(0, range(500), 500).inputs
    texts = [
        [text for text in tokenizer.decode(row).split("<|bos|>") if text] for row in inputs.tolist()
    ]
    first = sum("longer" in row[0] for row in texts) / len(texts)
    overall = sum("longer" in text for row in texts for text in row) / sum(map(len, texts))
    assert abs(first - overall) < 0.08


def test_a_batch_is_the_same_for_any_ranks_and_after_any_steps(tokenizer: Tokenizer) -> None:
    used = loader(tokenizer, {"short": 0.7, "longer": 0.3})
    for step in (0, 200, 3, 64):  # across several blocks, and back
        whole = loader(tokenizer, {"longer": 0.3, "short": 0.7}).batch(step, range(ROWS), ROWS)
        for ranks in (2, 4):
            share = ROWS // ranks
            parts = [
                used.batch(step, range(rank * share, (rank + 1) * share), ROWS)
                for rank in range(ranks)
            ]
            for name in ("inputs", "targets", "documents"):
                assert torch.equal(
                    torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)
                )
    assert not torch.equal(
        loader(tokenizer, {"short": 1}, seed=6).batch(0, range(ROWS), ROWS).inputs,
        loader(tokenizer, {"short": 1}).batch(0, range(ROWS), ROWS).inputs,
    )


def test_another_seed_draws_other_conversations(tokenizer: Tokenizer) -> None:
    drawn = []
    for seed in (5, 6):
        packed = loader(tokenizer, {"short": 2, "longer": 98}, seed=seed)
        texts = conversations_of(packed.batch(0, range(500), 500).inputs, tokenizer)
        drawn.append({text.removesuffix("<|end|>") for text in texts if "short" in text})
    assert min(map(len, drawn)) > 5
    assert len(drawn[0] & drawn[1]) < len(drawn[0]) / 2


def test_attend_across_changes_only_the_documents(tokenizer: Tokenizer) -> None:
    across, apart = (
        loader(tokenizer, {"short": 1}, attend_across=flag).batch(1, range(4), 4)
        for flag in (True, False)
    )
    assert across.documents is None
    assert apart.documents is not None
    assert int(apart.documents.max()) > 0
    assert torch.equal(across.inputs, apart.inputs)
    assert torch.equal(across.targets, apart.targets)


def test_documents_fill_their_share_of_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "documents/0.jsonl", ({"text": f"plain text {text}"} for text in TEXTS))
    write_shards(tmp_path / "documents", tokenizer, config.Tokens(0.1, 10_000), tmp_path / "tokens")
    sources = SOURCES | {"documents": DocumentLoader(tmp_path / "tokens", "train", SEQ_LEN, seed=1)}
    batch = loader(tokenizer, {"documents": 0.3, "short": 0.7}, sources).batch(0, range(1000), 1000)
    plain = (batch.targets >= 0).all(1)
    assert plain.float().mean() == pytest.approx(0.3, abs=0.03)
    assert "<|assistant|>" not in tokenizer.decode(batch.inputs[plain].flatten().tolist())


def test_long_conversations_keep_their_start_and_silent_ones_are_dropped(
    tokenizer: Tokenizer,
) -> None:
    long = [
        {"role": "user", "content": "tell"},
        {"role": "assistant", "content": "more and " * 200},
    ]
    late = [{"role": "user", "content": "tell " * 200}, {"role": "assistant", "content": "no"}]
    packed = loader(tokenizer, {"own": 1}, {"own": [long, late, *SOURCES["short"][:20]]})
    assert packed.truncated == {"own": 2}
    assert packed.dropped == {"own": 1}
    texts = conversations_of(packed.batch(0, range(50), 50).inputs, tokenizer)
    assert any("more and more and" in text for text in texts)
    with pytest.raises(UserError, match="source 'own' has no conversation"):
        loader(tokenizer, {"own": 1}, {"own": [late]})


def test_unknown_sources_are_all_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "conversations/facts.jsonl", [{"messages": SOURCES["short"][0]}])
    with pytest.raises(UserError, match="there are: facts, problems_worked") as error:
        load_sources(tmp_path, ["facts", "fcats", "other"])
    assert len(error.value.problems) == 2
    assert load_sources(tmp_path, ["facts"]) == {"facts": [SOURCES["short"][0]]}


def test_pack_uses_every_index_once_within_capacity() -> None:
    lengths = [(7 * n) % 23 + 1 for n in range(200)]
    rows = pack(lengths, 40)
    assert sorted(index for row in rows for index in row) == list(range(200))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 40
    assert len(rows) <= -(-sum(lengths) // 40) + 1

"""The tokenizer: nothing lost, nothing forged, the same for the same text; conversations learn what they should."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from paribus import config
from paribus.data import tokenizer as module
from paribus.data.chat import problem_conversation, render, render_prompt
from paribus.data.shards import sample_documents
from paribus.data.tokenizer import (
    SPECIAL,
    Tokenizer,
    compression,
    count_words,
    in_proportion,
    pieces,
    train_tokenizer,
)
from paribus.errors import UserError

STORY = [
    f"Mara counted {n} apples and {n * 37} pears, don't you know?\n\n  Then she went home; it was {n} o'clock."
    for n in range(300)
]
PROBLEM = {
    "question": "Mara has 3 bags of 4 apples. How many apples?",
    "answer": "Mara has 3*4 = <<3*4=12>>12 apples.\nHalf is <<12/2=6>>6.\n#### 12",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        STORY,
        config.Tokenizer(
            vocab_size=360, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(0x250))),
        "日本語 ελληνικά 🦆\u200d🏳️ e\u0301",
        " \t\r\n\n  x\u3000\n ",
        "1234567 12.5 ½ ٣٤",
        "",
    ],
)
def test_text_survives_and_its_bytes_are_counted(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_text_that_spells_special_tokens_is_only_text(tokenizer: Tokenizer) -> None:
    text = "a" + "".join(SPECIAL) + " <|end|>\n<|bos|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.encode_batch([text]) == [ids]


def test_special_tokens_stay_out_of_text_after_a_reload(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = STORY[7] + "<|assistant|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special == tokenizer.special
    assert (again.token_bytes == tokenizer.token_bytes).all()


def test_digits_group_up_to_the_limit(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    assert max(sum(letter.isdigit() for letter in piece) for piece in pieces) == 2
    assert not any(any(map(str.isdigit, piece)) and not piece.isdigit() for piece in pieces)


@pytest.mark.parametrize(
    "limits",
    ["", "t.FED_MEGABYTES, t.FED_WORDS, t.MOST_WORDS, t.COUNTED_AT_ONCE = 0, 9_000, 2_000, 900;"],
    ids=["text", "counted words"],
)
def test_training_does_not_depend_on_threads_or_hash_seed(tmp_path: Path, limits: str) -> None:
    script = (
        "import sys; from paribus import config; from paribus.data import tokenizer as t;"
        + limits
        + "texts = [f'word{i % 97} thing{i % 89} and {i} more x{i}' for i in range(3000)];"
        "t.train_tokenizer(texts, config.Tokenizer(500, 3, 1.0, 'bpe', 'gpt4')).save(sys.argv[1])"
    )
    for number in (1, 2):
        environment = os.environ | {"RAYON_NUM_THREADS": str(number), "PYTHONHASHSEED": str(number)}
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / str(number))], check=True, env=environment
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def trained(texts: list[str], vocab_size: int = 500) -> str:
    """tokenizer.json, as it is saved."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(
            texts, config.Tokenizer(vocab_size, 2, 1.0, kind="bpe", pre_split="gpt4")
        ).save(path)
        return path.read_text(encoding="utf-8")


def words(count: int, seed: int = 0) -> list[str]:
    """Texts of words that are the rarer the longer they are; half of them occur once."""
    rng = random.Random(seed)
    pool = ["".join(rng.choices("abcdefghij", k=1 + number // 50)) for number in range(400)]
    return [
        " ".join(rng.choice(pool[: 1 + rng.randrange(400)]) for _ in range(100))
        + f" once{rng.random()}, 12 _!"
        for _ in range(count)
    ]


def test_counted_words_give_the_same_merges_as_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = words(300) + STORY
    plain = trained(texts)
    monkeypatch.setattr(module, "FED_MEGABYTES", 0)
    monkeypatch.setattr(module, "COUNTED_AT_ONCE", 5_000)
    assert trained(texts) == plain
    monkeypatch.setattr(module, "FED_WORDS", 3_000)  # of some 37,000
    fewer = trained(texts)
    assert fewer != plain
    assert fewer == trained(texts[::-1])
    learned = [set(json.loads(text)["model"]["vocab"]) for text in (plain, fewer)]
    assert len(learned[0] & learned[1]) > 0.8 * len(learned[0])


def test_memory_for_words_is_bounded_and_the_frequent_ones_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = tokenizers.Tokenizer.from_str(trained(STORY, 360)).pre_tokenizer
    whole = count_words(words(300), split)
    monkeypatch.setattr(module, "MOST_WORDS", 500)
    monkeypatch.setattr(module, "COUNTED_AT_ONCE", 5_000)
    bounded = count_words(words(300), split)
    assert len(bounded) <= 500 < len(whole)
    assert all(bounded[word] == count for word, count in whole.most_common(200))


COUNTS = Counter({"the": 6000, "of": 1500} | {f"rare{number}": 1 for number in range(2500)})


def fed_of(most: int) -> Counter[str]:
    """The words of COUNTS that are fed where `most` words may be."""
    lines = in_proportion(COUNTS, most)
    return Counter(word for line in lines for word in line.split())


def test_all_words_are_fed_where_they_may_be() -> None:
    assert fed_of(10**6) == COUNTS


@pytest.mark.parametrize("most", [100, 1000])
def test_words_are_fed_in_proportion_to_their_counts(most: int) -> None:
    fed = fed_of(most)
    share = most / 10_000
    assert [fed["the"], fed["of"]] == pytest.approx([6000 * share, 1500 * share], abs=1)
    assert fed.total() - fed["the"] - fed["of"] == pytest.approx(
        2500 * share, abs=4 * (2500 * share * (1 - share)) ** 0.5
    )


def test_lines_of_one_frequent_word_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)
    lines = list(in_proportion(Counter({"the": 30_000}), 10**6))
    assert max(map(len, lines)) < 2100
    assert sum(len(line.split()) for line in lines) == 30_000


def test_a_long_text_is_cut_where_it_is_split_anyway(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    text = "".join(
        rng.choice(["Ab", "é", " ", " ", "'s", "12", "\n", ".", "don't go", "\u3000", "x y"])
        for _ in range(4000)
    )
    whole = tokenizer.encode(text)
    for size in (1, 7, 100):
        monkeypatch.setattr(module, "PIECE", size)
        cut = list(pieces(text))
        assert "".join(cut) == text
        assert len(cut) > len(text) / (size + 200)
        assert [token for part in cut for token in tokenizer.encode(part)] == whole
        [document] = tokenizer.encode_documents([text], np.dtype("<u2"))
        assert document.dtype == np.uint16
        assert document.tolist() == [tokenizer.bos, *whole]
    assert list(pieces("x" * 500)) == ["x" * 500]


SCRIPTS = {
    "cyrillic": "слово дело, и ещё: «так». ",
    "chinese": "这是一个很长的句子，没有空格。",
    "devanagari": "यह एक लंबा वाक्य है। ",
    "arabic": "هذه جملة طويلة، جدا؟ ",
    "thai": "นี่คือประโยคยาวมาก ",
    "lines": "wort\nund\r\n\nzeile2\n",
    "marks": "e\u0301 ½ x² 1000000 (a) -- b!\t c\u00a0d ",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_text_of_any_script_is_cut_where_it_is_split_anyway(
    script: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = SCRIPTS[script]
    text = "".join(unit[-(number % len(unit)) :] + unit for number in range(300))
    whole = tokenizer.encode(text)
    for size in (1, 5, 64):
        monkeypatch.setattr(module, "PIECE", size)
        cut = list(pieces(text))
        assert "".join(cut) == text
        assert max(map(len, cut)) <= size + 2 * len(unit)
        assert [token for part in cut for token in tokenizer.encode(part)] == whole


def test_text_without_a_place_to_cut_is_cut_all_the_same(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 10)
    monkeypatch.setattr(module, "LONGEST_PIECE", 50)
    for text in ("a" * 1000, " " * 1000, "7" * 1000, "😀" * 1000, "\n" * 1000):
        assert max(map(len, pieces(text))) <= 60
        [document] = tokenizer.encode_documents([text], np.dtype("<u2"))
        assert tokenizer.decode(document[1:].tolist()) == text


@pytest.mark.parametrize("script", ["cyrillic", "chinese"])
def test_one_long_document_needs_bounded_memory(
    script: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Peak of a process of its own: the text itself takes 10 and 20 MB, its tokens 4 bytes for each of its bytes."""
    tokenizer.save(tmp_path / "tokenizer.json")
    program = (
        "import resource, sys; import numpy as np; from paribus.data.tokenizer import Tokenizer\n"
        "words = Tokenizer.load(sys.argv[1]); text = sys.argv[2] * (8_000_000 // len(sys.argv[2].encode()))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); words.encode_documents([text], np.dtype('<u2')); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "tokenizer.json"), SCRIPTS[script]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RAYON_NUM_THREADS": "2"},
    )
    assert int(done.stdout) < 500  # MB; before the text was cut it took 700 and more


def test_too_little_text_is_said(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="tokenizer.vocab_size: the text yields only"):
        train_tokenizer(
            ["one two"],
            config.Tokenizer(
                vocab_size=5000, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
            ),
        )


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match="t.json: not a tokenizer"):
        Tokenizer.load(tmp_path / "t.json")


def test_only_what_the_model_writes_is_learned(tokenizer: Tokenizer) -> None:
    ids, mask = render(problem_conversation(PROBLEM, "worked"), tokenizer)
    learned = tokenizer.decode([token for token, bit in zip(ids, mask, strict=True) if bit])
    assert tokenizer.decode(ids) == (
        f"<|bos|><|user|>{PROBLEM['question']}<|end|><|assistant|>Mara has 3*4 = <|tool|>3*4<|tool_end|>"
        "<|result|>12<|result_end|>12 apples.\nHalf is <|tool|>12/2<|tool_end|><|result|>6<|result_end|>6.\n"
        "#### 12<|end|>"
    )
    assert learned == (
        "Mara has 3*4 = <|tool|>3*4<|tool_end|>12 apples.\nHalf is <|tool|>12/2<|tool_end|>6.\n"
        "#### 12<|end|>"
    )


def test_a_prompt_is_what_training_saw_before_the_answer(tokenizer: Tokenizer) -> None:
    conversation = problem_conversation(PROBLEM, "direct")
    ids, mask = render(conversation, tokenizer)
    prompt = render_prompt(conversation[:1], tokenizer)
    assert ids[: len(prompt)] == prompt
    assert mask.index(1) == len(prompt)
    assert tokenizer.decode(ids[len(prompt) :]) == "#### 12<|end|>"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "robot", "content": "x"},
        {"role": "user", "content": 3},
        {"role": "user", "content": [{"type": "image", "text": "x"}]},
    ],
)
def test_a_malformed_message_is_refused(tokenizer: Tokenizer, message: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is not allowed; expected"):
        render([message], tokenizer)


def test_real_english_is_compressed_and_every_byte_string_survives(shared_data: Path) -> None:
    texts = list(sample_documents(shared_data / "corpus", 1.0))
    tokenizer = train_tokenizer(
        texts,
        config.Tokenizer(
            vocab_size=4096, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )
    assert 2.9 < compression(tokenizer, texts[:40]) < 4.5
    rng = random.Random(0)
    noise = [
        "".join(
            chr(
                rng.choice(
                    (rng.randrange(32, 127), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))
                )
            )
            for _ in range(200)
        )
        for _ in range(50)
    ]
    for text, ids in zip(
        texts[:40] + noise, tokenizer.encode_batch(texts[:40] + noise), strict=True
    ):
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())

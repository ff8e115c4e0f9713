"""The tokenizer: nothing lost, nothing forged, the same for the same text; conversations learn what they should."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from paribus import config
from paribus.data.chat import problem_conversation, render, render_prompt
from paribus.data.shards import sample_documents
from paribus.data.tokenizer import SPECIAL, Tokenizer, compression, train_tokenizer
from paribus.errors import UserError

STORY = [f"Mara counted {n} apples and {n * 37} pears, don't you know?\n\n  Then she went home; it was {n} o'clock."
         for n in range(300)]
PROBLEM = {"question": "Mara has 3 bags of 4 apples. How many apples?",
           "answer": "Mara has 3*4 = <<3*4=12>>12 apples.\nHalf is <<12/2=6>>6.\n#### 12"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(STORY, config.Tokenizer(vocab_size=360, max_digits=2, train_megabytes=1))


@pytest.mark.parametrize("text", [
    "".join(map(chr, range(0x250))), "日本語 ελληνικά 🦆\u200d🏳️ e\u0301", " \t\r\n\n  x\u3000\n ",
    "1234567 12.5 ½ ٣٤", "",
])
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


def test_special_tokens_stay_out_of_text_after_a_reload(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = STORY[7] + "<|assistant|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special == tokenizer.special and (again.token_bytes == tokenizer.token_bytes).all()


def test_digits_group_up_to_the_limit(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    assert max(sum(letter.isdigit() for letter in piece) for piece in pieces) == 2
    assert not any(any(map(str.isdigit, piece)) and not piece.isdigit() for piece in pieces)


def test_training_does_not_depend_on_threads_or_hash_seed(tmp_path: Path) -> None:
    script = ("import sys; from paribus import config; from paribus.data.tokenizer import train_tokenizer;"
              "texts = [f'word{i % 97} thing{i % 89} and {i} more' for i in range(3000)];"
              "train_tokenizer(texts, config.Tokenizer(500, 3, 1.0)).save(sys.argv[1])")
    for number in (1, 2):
        environment = os.environ | {"RAYON_NUM_THREADS": str(number), "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / str(number))], check=True, env=environment)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_too_little_text_is_said(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="tokenizer.vocab_size: the text yields only"):
        train_tokenizer(["one two"], config.Tokenizer(vocab_size=5000, max_digits=2, train_megabytes=1))


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
        "#### 12<|end|>")
    assert learned == ("Mara has 3*4 = <|tool|>3*4<|tool_end|>12 apples.\nHalf is <|tool|>12/2<|tool_end|>6.\n"
                       "#### 12<|end|>")


def test_a_prompt_is_what_training_saw_before_the_answer(tokenizer: Tokenizer) -> None:
    conversation = problem_conversation(PROBLEM, "direct")
    ids, mask = render(conversation, tokenizer)
    prompt = render_prompt(conversation[:1], tokenizer)
    assert ids[:len(prompt)] == prompt and mask.index(1) == len(prompt)
    assert tokenizer.decode(ids[len(prompt):]) == "#### 12<|end|>"


@pytest.mark.parametrize("message", [{"role": "robot", "content": "x"}, {"role": "user", "content": 3},
                                     {"role": "user", "content": [{"type": "image", "text": "x"}]}])
def test_a_malformed_message_is_refused(tokenizer: Tokenizer, message: dict) -> None:
    with pytest.raises(UserError, match="is not allowed; expected"):
        render([message], tokenizer)


def test_real_english_is_compressed_and_every_byte_string_survives(shared_data: Path) -> None:
    texts = list(sample_documents(shared_data / "corpus", 1.0))
    tokenizer = train_tokenizer(texts, config.Tokenizer(vocab_size=4096, max_digits=2, train_megabytes=1))
    assert 2.9 < compression(tokenizer, texts[:40]) < 4.5
    rng = random.Random(0)
    noise = ["".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))
                     for _ in range(200)) for _ in range(50)]
    for text, ids in zip(texts[:40] + noise, tokenizer.encode_batch(texts[:40] + noise), strict=True):
        assert tokenizer.decode(ids) == text and tokenizer.token_bytes[ids].sum() == len(text.encode())

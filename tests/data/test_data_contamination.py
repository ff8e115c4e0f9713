"""Test items in training text: found whatever the marks and capitals, in one document at a time, and dropped on request."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest

from paribus import config
from paribus.data.contamination import WORDS, Items, word_ngrams
from paribus.data.corpus import build_corpus
from paribus.data.shards import documents
from paribus.errors import UserError

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
)
ITEMS = {"problems": [[QUESTION, "short answer"], ["too short to be looked for"]]}


def expected_ngrams(texts: list[str]) -> list[tuple[int, tuple[str, ...]]]:
    """The same by words, slowly."""
    found = []
    for number, text in enumerate(texts):
        words = re.findall(r"[a-z0-9\x80-\uffff]+", text.lower())
        found += [(number, tuple(words[i : i + WORDS])) for i in range(len(words) - WORDS + 1)]
    return found


def test_runs_of_words_are_those_of_a_plain_count() -> None:
    rng = random.Random(2)
    pieces = ["a", "Ab", "ab", "b7", "7", "été", ". ", "-", "\n", " ", "the", "THE"]
    texts = [
        "".join(rng.choice(pieces) + rng.choice([" ", ", ", ""]) for _ in range(rng.randrange(60)))
        for _ in range(80)
    ]
    hashes, owner = word_ngrams(texts)
    expected = expected_ngrams(texts)
    assert owner.tolist() == [number for number, _ in expected]
    assert len(expected) > 300
    named = list(zip((run for _, run in expected), hashes.tolist(), strict=True))
    assert (
        len(set(named)) == len({run for run, _ in named}) == len(set(hashes.tolist()))
    )  # one hash a run, one run a hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"A page. {QUESTION.upper().replace(' ', ' -- ')} End.", True),
        (QUESTION.replace("April", "March"), False),
        (" ".join(QUESTION.split()[:WORDS]), True),
        (" ".join(QUESTION.split()[: WORDS - 1]), False),
        ("too short to be looked for", False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_tell(text: str, expected: bool) -> None:
    assert Items(ITEMS).contaminated(["another text", text]).tolist() == [False, expected]


def test_a_run_does_not_go_on_in_the_next_document() -> None:
    words = QUESTION.split()
    assert not Items(ITEMS).contaminated([" ".join(words[:9]), " ".join(words[9:])]).any()


def test_the_summary_counts_items_and_documents() -> None:
    items = Items(ITEMS | {"other": [[" ".join(str(n) for n in range(30))]]})
    items.contaminated([QUESTION, "clean", QUESTION + " again"])
    assert items.summary() == {
        "words": 13,
        "documents": 2,
        "benchmarks": {
            "problems": {"items": 2, "checked": 1, "found": 1},
            "other": {"items": 1, "checked": 1, "found": 0},
        },
    }


@pytest.mark.parametrize("drop", [False, True])
def test_a_corpus_reports_what_it_shares_and_drops_it_if_asked(
    tiny_config: config.Config, tmp_path: Path, drop: bool
) -> None:
    problems = [{"question": f"{QUESTION} Case {n}", "answer": f"#### {n}"} for n in range(20)]
    for split, rows in (("train", problems[:18]), ("test", problems[18:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["clean one", f"so: {QUESTION}", "clean two"]
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    cfg = dataclasses.replace(
        tiny_config.corpus,
        source="local",
        paths=["own.jsonl"],
        problems=".",
        drop_contaminated=drop,
    )
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == (texts[::2] if drop else texts)
    assert manifest["documents"]["contamination"] == {
        "words": 13,
        "documents": 1,
        "dropped": drop,
        "benchmarks": {"problems": {"items": 2, "checked": 2, "found": 2}},
    }


def test_dropping_needs_something_to_compare_with(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("text")
    cfg = dataclasses.replace(
        tiny_config.corpus, source="local", paths=["own.txt"], drop_contaminated=True
    )
    with pytest.raises(UserError, match="corpus.drop_contaminated: nothing to compare with"):
        build_corpus(cfg, tmp_path / "corpus", tmp_path)

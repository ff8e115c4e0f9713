"""Bad data is found when the corpus is built: named by file and row, all at once, and never with a traceback."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.corpora import with_local

from paribus import config
from paribus.data import load_jsonl
from paribus.data.chat import load_sources
from paribus.data.conversations import Unfit, to_conversation
from paribus.data.corpus import build_corpus
from paribus.data.corpus.problems import read_problems
from paribus.data.reading import read_documents
from paribus.data.shards import documents
from paribus.errors import UserError

GOOD = '{"text": "good"}\n'


def problems_of(cfg: config.Corpus, folder: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        build_corpus(cfg, folder / "corpus", folder)
    assert not (folder / "corpus").exists()
    return error.value.problems


# ---------------------------------------------------------------- documents


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bytes_that_are_no_text_are_named_with_their_line(
    packed: str, end: str, tiny_config: config.Config, tmp_path: Path
) -> None:
    rows = ['{"text": "größe"}'.encode()] * 2_000
    rows[1_234] = '{"text": "größe"}'.encode("latin-1")
    data = end.encode().join(rows)
    (tmp_path / f"x.jsonl{packed}").write_bytes(gzip.compress(data) if packed else data)
    [problem] = problems_of(with_local(tiny_config, f"x.jsonl{packed}"), tmp_path)
    assert f"x.jsonl{packed}:1235: not UTF-8: byte 13 of the line is 0xf6" in problem


def test_bytes_of_a_plain_text_that_are_none_are_named_with_their_line(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_bytes("one\n\ntwo é".encode("latin-1"))
    [problem] = problems_of(with_local(tiny_config, "x.txt"), tmp_path)
    assert "x.txt:3: not UTF-8: byte 5 of the line is 0xe9" in problem


def test_bytes_of_a_column_that_are_no_text_are_named_with_their_row(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    texts = pyarrow.array([b"good"] * 700 + [b"caf\xe9"] + [b"good"] * 9)
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), texts.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    [problem] = problems_of(with_local(tiny_config, "x.parquet"), tmp_path)
    assert "x.parquet: row 701: not UTF-8: byte 4 of its text is 0xe9" in problem


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x", "meta": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"text": "x", "meta": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "nested too"),
        ('{"text": "x", "meta": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"text": "x", "id": ' + "9" * 5000 + "}", "not read: Exceeds the limit"),
        ('{"text": 5}', "row 2 has no text in column 'text' (corpus.text_column), but a number: 5"),
        ('{"text": ["a"]}', "but a list: ['a']"),
        ('{"text": {"a": 1}}', "but an object"),
        ('{"text": true}', "but a truth value"),
        ('{"body": "x"}', "row 2 has no text in column 'text' (corpus.text_column); it has: body"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    line: str, reason: str, tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(GOOD + line + "\n" + GOOD)
    [problem] = problems_of(with_local(tiny_config, "x.jsonl"), tmp_path)
    assert reason in problem
    assert "x.jsonl" in problem
    assert "2" in problem
    assert len(problem) < 400


def test_half_of_a_surrogate_pair_is_replaced_and_said(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [r'{"text": "half \ud83d here", "k\udc00": 1}', r'{"text": "whole \ud83d\ude00"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    chat = r'{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "chat.jsonl").write_text(chat + "\n")
    cfg = with_local(tiny_config, "x.jsonl", conversations={"chat": "chat.jsonl"})
    build_corpus(cfg, tmp_path / "corpus", tmp_path)
    found = list(documents(tmp_path / "corpus/documents"))
    assert found == ["half \ufffd here", "whole \U0001f600"]
    [conversation] = load_sources(tmp_path / "corpus", ["chat"])["chat"]
    assert conversation[0]["content"] == "\ufffd"
    assert (
        "x.jsonl: 2 lone surrogates became U+FFFD, the first in line 1" in capsys.readouterr().err
    )


def column(kind: str) -> pyarrow.Array:
    texts = pyarrow.array(["a", None, "b", "a"])
    large = texts.cast(pyarrow.large_string())
    return {
        "dictionary": texts.dictionary_encode(),
        "dictionary of large": large.dictionary_encode(),
        "view": texts.cast(pyarrow.string_view()),
        "large": large,
    }[kind]


@pytest.mark.parametrize("kind", ["dictionary", "dictionary of large", "view", "large"])
def test_text_is_read_whatever_way_arrow_holds_it(kind: str, tmp_path: Path) -> None:
    table = pyarrow.table({"id": [1, 2, 3, 4], "text": column(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    assert list(read_documents(tmp_path / "x.parquet", "text")) == ["a", None, "b", "a"]


def test_a_shard_without_any_text_counts_as_empty(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(2)}), tmp_path / "x.parquet")
    assert list(read_documents(tmp_path / "x.parquet", "text")) == [None, None]


def test_parquet_that_cannot_be_meant_is_refused(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    twice = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"]
    )
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "b.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"x"]}), tmp_path / "c.parquet")
    found = problems_of(with_local(tiny_config, "*.parquet"), tmp_path)
    assert "2 columns are named 'text'" in found[0]
    assert "holds int64, not text" in found[1]
    assert "holds binary, not text" in found[2]


def test_one_document_in_all_is_said_before_it_is_tokenised(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "stories.txt").write_text("One.\n<|endoftext|>\nTwo.\n")
    [problem] = problems_of(with_local(tiny_config, "stories.txt"), tmp_path)
    assert "one document in all" in problem
    assert "<|endoftext|>" in problem


def test_a_limit_that_leaves_one_document_is_what_the_message_names(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "stories.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
    [problem] = problems_of(with_local(tiny_config, "stories.jsonl", megabytes=1e-30), tmp_path)
    assert problem.startswith("corpus.megabytes: 1e-30 ends the corpus with its first document")


@pytest.mark.parametrize("name", ["empty.jsonl.gz", "empty.txt.zst"])
def test_an_empty_packed_file_is_one_that_was_cut_off(
    name: str, tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(GOOD * 2)
    (tmp_path / name).write_bytes(b"")
    [problem] = problems_of(with_local(tiny_config, "x.jsonl", name), tmp_path)
    assert name in problem
    assert "truncated: it is empty" in problem


def test_a_date_beyond_those_of_python_is_named(tiny_config: config.Config, tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "question": ["q"],
            "answer": ["#### 5"],
            "when": pyarrow.array([2**62], pyarrow.timestamp("us")),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    cfg = dataclasses.replace(tiny_config.corpus, conversations={"own": "x.parquet"})
    [problem] = problems_of(cfg, tmp_path)
    assert "x.parquet: cannot be read: date value out of range" in problem


# ---------------------------------------------------------------- problems


def test_problems_are_written_without_their_other_columns(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    columns = {
        "id": [datetime.date(2026, 1, 1)] * 20,
        "question": [f"q{n}" for n in range(20)],
        "answer": [f"#### {n}" for n in range(20)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    rows = read_problems(tmp_path / "x.parquet")
    assert rows[0] == {"question": "q0", "answer": "#### 0"}
    assert len(rows) == 20


def test_every_answer_that_cannot_be_scored_is_named(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    rows = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(20)]
    rows[3]["answer"], rows[7]["answer"] = "It is late.\n#### 3:30", "#### five"
    rows[9]["answer"] = "#### £5"
    (tmp_path / "own").mkdir()
    for split, part in (("train", rows), ("test", [{"question": "t", "answer": "#### 5 to 6"}])):
        (tmp_path / f"own/{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in part)
        )
    found = problems_of(dataclasses.replace(tiny_config.corpus, problems="own"), tmp_path)
    assert len(found) == 3
    for problem, words in zip(
        found, ("row 4 .*3:30", "row 8 .*five", "row 1 .*5 to 6"), strict=True
    ):
        assert re.search(words, problem), problem


# ---------------------------------------------------------------- conversations


def messages(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
PARTS = [{"type": "text", "text": "look"}]
UNFIT = {
    "has a part of type 'image_url'": messages(("user", IMAGE), ("assistant", "ok")),
    "has a part of type 'image'": messages(
        ("user", [*PARTS, {"type": "image"}]), ("assistant", "k")
    ),
    "without text": messages(("user", [{"type": "text"}]), ("assistant", "ok")),
    "that is no object": messages(("user", ["hi"]), ("assistant", "ok")),
    "is int, not text": messages(("user", 5), ("assistant", "ok")),
    "is dict, not text": messages(("user", {"text": "a"}), ("assistant", "ok")),
    "the role tool": messages(("user", "a"), ("tool", "ok")),
    "the role User": messages(("User", "a"), ("assistant", "ok")),
    "turns are out of order": messages(("assistant", "a"), ("user", "ok")),
    "says nothing": messages(("user", None), ("assistant", "ok")),
    "without a message": {"messages": []},
}


def test_rows_that_the_chat_format_does_not_hold_are_counted_by_reason_and_said(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = messages(("system", PARTS), ("user", "hi"), ("assistant", PARTS))
    lines = [json.dumps(row) + "\n" for row in (*UNFIT.values(), good)]
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    cfg = dataclasses.replace(tiny_config.corpus, conversations={"own": "chat.jsonl"})
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    [entry] = manifest["conversations"]["files"]
    assert entry["skipped"] == len(UNFIT)
    assert sum(entry["why"].values()) == len(UNFIT)
    said = capsys.readouterr().err
    for reason in UNFIT:
        assert reason in said
    [kept] = load_sources(tmp_path / "corpus", ["own"])["own"]
    assert "".join(part["text"] for part in kept[0]["content"]) == "look\n\nhi"


def test_a_source_in_which_no_row_fits_is_refused_with_the_reason(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps(UNFIT["has a part of type 'image_url'"]) + "\n")
    cfg = dataclasses.replace(tiny_config.corpus, conversations={"own": "chat.jsonl"})
    [problem] = problems_of(cfg, tmp_path)
    assert "holds no conversation: rows left out: 1 whose content has a part of type" in problem


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a", None], "answer": 0},
        {"question": "q", "choices": {"text": ["a", "b"], "label": 5}, "answerKey": "A"},
        {"question": "q", "answer": 5},
        {"messages": "[]"},
        {"prompt": "x"},
    ],
)
def test_a_row_of_no_known_kind_is_named(
    row: dict[str, Any], tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    cfg = dataclasses.replace(tiny_config.corpus, conversations={"own": "chat.jsonl"})
    [problem] = problems_of(cfg, tmp_path)
    assert "chat.jsonl: row 1: " in problem


# ---------------------------------------------------------------- CORE


def bundle(folder: Path, rows: str = "", **entry: Any) -> Path:
    """A bundle of one task."""
    task = {"label": "a", "dataset_uri": "a.jsonl", "num_fewshot": [0], "icl_task_type": "schema"}
    (folder / "eval_data").mkdir(parents=True)
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": [task | entry]}))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\na,50\n")
    good = {"context_options": ["x", "y"], "continuation": "z", "gold": 0}
    (folder / "eval_data/a.jsonl").write_text(rows or (json.dumps(good) + "\n") * 3)
    return folder


def test_everything_wrong_with_a_bundle_is_found_by_the_corpus(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    whole = bundle(tmp_path / "b")
    good = (whole / "eval_data/a.jsonl").read_text()
    (whole / "eval_data/a.jsonl").write_text("\ufeff" + good + "\n" + good)
    (whole / "eval_meta_data.csv").write_text("Eval Task;Random baseline\na;50\n")
    entries = json.loads((whole / "core.yaml").read_text())["icl_tasks"]
    more = [{"num_fewshot": 0}, {"num_fewshot": [0, 5]}, {"icl_task_type": "generation_task"}]
    entries += [entries[0] | {"label": f"b{n}"} | one for n, one in enumerate(more)]
    (whole / "core.yaml").write_text(json.dumps({"icl_tasks": entries}))
    found = problems_of(dataclasses.replace(tiny_config.corpus, core="b"), tmp_path)
    expected = (
        "task 2: num_fewshot: expected a list of one whole number, not 0",
        "task 3: num_fewshot: expected a list of one whole number, not [0, 5]",
        "task 4: icl_task_type: expected one of",
        "eval_meta_data.csv:1: its columns are parted by ';'",
        "a.jsonl:1: begins with a byte order mark",
        "a.jsonl:4: blank",
    )
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    "change",
    [
        {"label": "../../escaped"},
        {"label": "./victim"},
        {"label": "/tmp/victim"},
        {"label": "a/b"},
        {"label": "<script>alert(1)</script>"},
        {"dataset_uri": "../a.jsonl"},
        {"dataset_uri": "/etc/passwd"},
        {"dataset_uri": "x/../../../a.jsonl"},
    ],
)
def test_a_bundle_names_no_place_outside(
    change: dict[str, str], tiny_config: config.Config, tmp_path: Path
) -> None:
    bundle(tmp_path / "b", **change)
    found = problems_of(dataclasses.replace(tiny_config.corpus, core="b"), tmp_path)
    assert any(next(iter(change)) in problem for problem in found)


def test_a_link_in_a_bundle_leads_nowhere_else(tiny_config: config.Config, tmp_path: Path) -> None:
    bundle(tmp_path / "b")
    (tmp_path / "outside.jsonl").write_text((tmp_path / "b/eval_data/a.jsonl").read_text())
    (tmp_path / "b/eval_data/a.jsonl").unlink()
    (tmp_path / "b/eval_data/a.jsonl").symlink_to(tmp_path / "outside.jsonl")
    [problem] = problems_of(dataclasses.replace(tiny_config.corpus, core="b"), tmp_path)
    assert "by a link" in problem


def test_a_corrupt_file_of_every_kind_is_named(tiny_config: config.Config, tmp_path: Path) -> None:
    writers: dict[str, Callable[[Path], Any]] = {
        "x.jsonl.gz": lambda path: path.write_bytes(b"no gzip"),
        "x.jsonl.zst": lambda path: path.write_bytes(b"no zstd"),
        "x.parquet": lambda path: path.write_bytes(b"PAR1 no parquet PAR1"),
        "x.txt": lambda path: path.write_bytes("é".encode("latin-1")),
    }
    for name, write in writers.items():
        write(tmp_path / name)
    found = problems_of(with_local(tiny_config, *writers), tmp_path)
    for name, problem in zip(writers, found, strict=True):
        reason = ":1: not UTF-8: byte 1" if name == "x.txt" else ": cannot be read: "
        assert f"{name}{reason}" in problem
    with pytest.raises(UserError, match="absent.jsonl: cannot be read: No such file"):
        list(load_jsonl(tmp_path / "absent.jsonl"))


def chat(user: object, assistant: object) -> dict[str, Any]:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": turns}


@pytest.mark.parametrize(
    "row",
    [
        chat(" \n", "yes"),
        chat("q", "\t"),
        chat("q", "\u00a0"),
        chat("q", [{"type": "text", "text": ""}]),
        chat([{"type": "text", "text": " "}, {"type": "text", "text": "\n"}], "yes"),
        {"question": " ", "answer": "#### 5"},
        {"question": "", "choices": ["a", "b"], "answer": 0},
    ],
)
def test_a_message_of_white_space_says_nothing(row: dict[str, Any]) -> None:
    with pytest.raises(Unfit, match="says nothing"):
        to_conversation(row, "x")


@pytest.mark.parametrize("labels", [["A", "A"], ["A"], ["A", "B", "C"], []])
def test_labels_that_do_not_tell_the_choices_apart_are_left_out(labels: list[str]) -> None:
    row = {"question": "q", "choices": {"text": ["a", "b"], "label": labels}, "answerKey": "A"}
    with pytest.raises(Unfit, match="labels are not one for each choice"):
        to_conversation(row, "x")

"""Rows of conversation datasets as conversations: SmolTalk's messages, MMLU's and ARC's choices, GSM8K's problems."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paribus.data import load_jsonl, open_bytes
from paribus.data.chat import Messages, problem_conversation
from paribus.errors import UserError

LETTERS = "ABCDEFGHIJ"
KNOWN = "`messages` (SmolTalk), `question` and `choices` (MMLU, ARC), or `question` and `answer` with #### (GSM8K)"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl or .parquet file, also packed. Raises UserError, and what corrupt files raise."""
    if ".parquet" not in path.suffixes:
        yield from load_jsonl(path)
        return
    import pyarrow.parquet

    packed = (
        path.suffix != ".parquet"
    )  # one has to be unpacked in memory: parquet is read from its end
    with pyarrow.parquet.ParquetFile(
        io.BytesIO(open_bytes(path).read()) if packed else path
    ) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def to_conversation(row: dict[str, Any], where: str) -> Messages | None:
    """The conversation of a row; None for one that the chat format does not hold (turns out of order, no answer).

    Raises UserError for a row of an unknown kind; `where` names it.
    """
    if "messages" in row:
        return _messages(row["messages"], where)
    if "choices" in row:
        return _choices(row, where)
    if isinstance(row.get("question"), str) and "####" in str(row.get("answer")):
        return problem_conversation(row, "worked")
    raise UserError(
        f"{where}: no conversation: expected {KNOWN}; it has: {', '.join(row) or 'nothing'}"
    )


def _messages(messages: Any, where: str) -> Messages | None:
    """User and assistant in turn; what a system message says opens the first user message."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise UserError(
            f"{where}: messages is {messages!r:.60}; expected a list of objects with `role` and `content`"
        )
    turns = [{"role": one.get("role"), "content": one.get("content")} for one in messages]
    if len(turns) > 1 and turns[0]["role"] == "system" and turns[1]["role"] == "user":
        system, user, *rest = turns
        turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    roles = [turn["role"] for turn in turns]
    in_turn = roles == ["user", "assistant"] * (len(roles) // 2)
    return turns if turns and in_turn and all(turn["content"] for turn in turns) else None


def _choices(row: dict[str, Any], where: str) -> Messages | None:
    """MMLU: choices [text], answer its index. ARC: choices {text: [], label: []}, answerKey one of the labels."""
    listed = row["choices"]
    choices, labels = (
        (listed.get("text"), listed.get("label")) if isinstance(listed, dict) else (listed, None)
    )
    if not isinstance(choices, list) or not isinstance(row.get("question"), str):
        raise UserError(
            f"{where}: no multiple choice: question is {row.get('question')!r:.40}, choices {row['choices']!r:.40}"
        )
    if labels is not None:
        answer = labels.index(row["answerKey"]) if row.get("answerKey") in labels else -1
    else:
        answer = row["answer"] if isinstance(row.get("answer"), int) else -1
    if not 0 <= answer < len(choices) <= len(LETTERS):
        return None
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    )
    return [
        {
            "role": "user",
            "content": f"{row['question'].strip()}\n\n{options}\n\nAnswer with the letter alone.",
        },
        {"role": "assistant", "content": LETTERS[answer]},
    ]

"""Rows of conversation datasets as conversations: SmolTalk's messages, MMLU's and ARC's choices, GSM8K's problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paribus.data.chat import Messages, content_problem, problem_conversation
from paribus.errors import UserError

LETTERS = "ABCDEFGHIJ"
KNOWN = "`messages` (SmolTalk), `question` and `choices` (MMLU, ARC), or `question` and `answer` with #### (GSM8K)"
KNOWN_COLUMNS = ("messages", "question")  # every kind of row has one


class Unfit(Exception):
    """A row of a known kind that the chat format does not hold; says why, in words that suit many rows."""


def to_conversation(row: dict[str, Any], where: str) -> Messages:
    """The conversation of a row of a dataset. where: names the row, for errors.

    Raises Unfit for one that the chat format does not hold (turns out of order, other content than text, no answer),
    UserError for a row of an unknown kind.
    """
    if "messages" in row:
        return _messages(row["messages"], where)
    if "choices" in row:
        return _choices(row, where)
    question, answer = row.get("question"), row.get("answer")
    if isinstance(question, str) and isinstance(answer, str) and "####" in answer:
        if not question.strip():
            raise Unfit("with a message that says nothing")
        return problem_conversation(row, "worked")
    raise UserError(
        f"{where}: no conversation: expected {KNOWN}; it has: {', '.join(row) or 'nothing'}"
    )


def _messages(messages: object, where: str) -> Messages:
    """User and assistant in turn; a system message's text opens the first user message."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise UserError(
            f"{where}: messages is {messages!r:.60}; expected a list of objects with `role` and `content`"
        )
    turns = [{"role": turn.get("role"), "content": turn.get("content")} for turn in messages]
    if not turns:
        raise Unfit("without a message")
    for turn in turns:
        _check_content(turn["content"])
    if len(turns) > 1 and turns[0]["role"] == "system" and turns[1]["role"] == "user":
        system, user, *rest = turns
        turns = [{"role": "user", "content": _joined(system["content"], user["content"])}, *rest]
    _check_roles([turn["role"] for turn in turns])
    return turns


def _check_content(content: Any) -> None:
    """Raises Unfit for a message whose content is not text, or is empty."""
    problem = content_problem(content)
    if problem and content:
        raise Unfit(f"whose content {problem}")
    if problem or not _says_something(content):
        raise Unfit("with a message that says nothing")


def _check_roles(roles: Sequence[object]) -> None:
    """Raises Unfit unless user and assistant take turns."""
    unknown = sorted({str(role) for role in roles} - {"system", "user", "assistant"})
    if unknown:
        raise Unfit(f"with the role {', '.join(unknown)!s:.60}")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Unfit("whose turns are out of order")


def _says_something(content: str | list[Any]) -> bool:
    """Whether there is more in a content than white space."""
    texts = [part["text"] for part in _parts(content)]
    return bool("".join(texts).strip())


def _joined(system: str | list[Any], user: str | list[Any]) -> str | list[object]:
    """What the system says, a blank line, what the user says."""
    if isinstance(system, str) and isinstance(user, str):
        return f"{system}\n\n{user}"
    blank = [{"type": "text", "text": "\n\n"}]
    return [*_parts(system), *blank, *_parts(user)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _choices(row: Mapping[str, object], where: str) -> Messages:
    """A question of multiple choice as a conversation, whose answer is the letter of a choice."""
    question, (choices, labels) = row.get("question"), _listed(row["choices"])
    if choices is None or not isinstance(question, str) or not isinstance(labels, list | None):
        listed = row["choices"]
        raise UserError(
            f"{where}: no multiple choice: question is {question!r:.40}, choices {listed!r:.40}"
        )
    if not question.strip():
        raise Unfit("with a message that says nothing")
    if labels is None:
        answer = row.get("answer")
    elif len(labels) != len(choices) or _has_twice(labels):
        raise Unfit("whose labels are not one for each choice")
    else:
        answer = _place(row.get("answerKey"), labels)
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise Unfit(_NO_CHOICE)
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise Unfit(_NO_CHOICE)
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    parts = [question.strip(), "\n".join(options), "Answer with the letter alone."]
    return [
        {"role": "user", "content": "\n\n".join(parts)},
        {"role": "assistant", "content": LETTERS[answer]},
    ]


_NO_CHOICE = "whose answer is none of the choices, or that have too many"


def _listed(listed: object) -> tuple[list[str] | None, object]:
    """(texts, labels or None) of choices: MMLU has [text], and ARC {text: [], label: []}. No texts where it is neither."""
    choices, labels = listed, None
    if isinstance(listed, dict):
        choices, labels = listed.get("text"), listed.get("label")
    if not isinstance(choices, list):
        return None, labels
    texts = [choice for choice in choices if isinstance(choice, str)]
    return (texts if len(texts) == len(choices) else None), labels


def _place(key: object, labels: Sequence[object]) -> int | None:
    """Where a label stands; None: nowhere."""
    return labels.index(key) if key in labels else None


def _has_twice(items: Sequence[object]) -> bool:
    """Whether two of the items are equal."""
    return any(item in items[:place] for place, item in enumerate(items))

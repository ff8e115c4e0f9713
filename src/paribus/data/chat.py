"""Conversations as tokens: who speaks, which tokens are learned, how a word problem becomes a conversation.

A conversation is a list of messages {"role": "user" | "assistant", "content"}; content is a string or a list
of parts {"type": "text" | "tool_call" | "tool_result", "text"}. As tokens:

    <|bos|> <|user|> text <|end|>
    <|assistant|> text <|tool|> 3*4 <|tool_end|> <|result|> 12 <|result_end|> text <|end|>
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from paribus.data import contents
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError

Message = dict[str, Any]
Messages = list[Message]
Problem = dict[str, Any]
Rendered = tuple[list[int], list[int]]  # token ids, mask of those learned
Piece = tuple[str, bool, bool]  # text or the name of a special token; is it special; is it learned

# GSM8K's calculator annotation, arXiv:2110.14168.
ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
BRACKETS = {
    "tool_call": ("<|tool|>", "<|tool_end|>"),
    "tool_result": ("<|result|>", "<|result_end|>"),
}
STYLES = ("worked", "direct")


def render(messages: Messages, tokenizer: Tokenizer) -> Rendered:
    """Token ids of a conversation, and a mask as long: 1 where the token is learned.

    Learned is what the model itself has to write: assistant text, tool calls and the assistant's <|end|>.
    Tool results are computed and forced into the stream, so they are not.

    Args:
        messages: of the conversation, in order.
        tokenizer: that encodes their text.
    """
    return render_batch([messages], tokenizer)[0]


def render_batch(conversations: Sequence[Messages], tokenizer: Tokenizer) -> list[Rendered]:
    """`render` of many conversations, encoded side by side.

    Args:
        conversations: each the messages of one.
        tokenizer: that encodes their text.
    """
    pieces = [_pieces(messages) for messages in conversations]
    texts = [text for conversation in pieces for text, special, _ in conversation if not special]
    encoded = iter(tokenizer.encode_batch(texts))
    rendered = []
    for conversation in pieces:
        ids: list[int] = []
        mask: list[int] = []
        for text, special, learned in conversation:
            new = [tokenizer.special[text]] if special else next(encoded)
            ids += new
            mask += [int(learned)] * len(new)
        rendered.append((ids, mask))
    return rendered


def render_prompt(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a conversation so far, ending with <|assistant|>: what comes next is the answer.

    Args:
        messages: of the conversation so far.
        tokenizer: that encodes their text.
    """
    return [*render(messages, tokenizer)[0], tokenizer.special["<|assistant|>"]]


def content_problem(content: object) -> str | None:
    """What keeps a message's content from being rendered, in words that suit many messages; None if nothing does."""
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"is {type(content).__name__}, not text or parts"
    for part in content:
        if not isinstance(part, dict):
            return "has a part that is no object"
        kind = part.get("type")
        if kind not in ("text", *BRACKETS):
            return f"has a part of type {kind!r:.40}"
        if not isinstance(part.get("text"), str):
            return f"has a part of type {kind!r} without text"
    return None


def _pieces(messages: Messages) -> list[Piece]:
    pieces: list[Piece] = [("<|bos|>", True, False)]
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            raise UserError(
                f"conversation: role {role!r} is not allowed; expected user or assistant"
            )
        if content_problem(content):
            raise UserError(
                f"conversation: content {content!r:.200} is not allowed; expected a string or parts "
                f"with a text and the type text, {' or '.join(BRACKETS)}"
            )
        learned = role == "assistant"
        pieces.append((f"<|{role}|>", True, False))
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts or ():
            pieces += _part(part, learned)
        pieces.append(("<|end|>", True, learned))
    return pieces


def _part(part: dict[str, str], learned: bool) -> list[Piece]:
    kind, text = part["type"], part["text"]
    learned = learned and kind != "tool_result"
    if kind == "text":
        return [(text, False, learned)]
    opening, closing = BRACKETS[kind]
    return [(opening, True, learned), (text, False, learned), (closing, True, learned)]


def problem_conversation(problem: dict[str, str], style: Literal["worked", "direct"]) -> Messages:
    """A GSM8K problem {"question", "answer"} as a conversation.

    worked: every `<<3*4=12>>` of the answer becomes a tool call and its result, the text around it stays.
    direct: only the last line, `#### 12`.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r}: expected one of {STYLES}")
    answer = problem["answer"]
    content = (
        _worked(answer) if style == "worked" else "#### " + answer.rpartition("####")[2].strip()
    )
    return [
        {"role": "user", "content": problem["question"]},
        {"role": "assistant", "content": content},
    ]


def _worked(answer: str) -> list[dict[str, str]]:
    parts = []
    position = 0
    for match in ANNOTATION.finditer(answer):
        parts.append({"type": "text", "text": answer[position : match.start()]})
        parts.append({"type": "tool_call", "text": match[1].strip()})
        parts.append({"type": "tool_result", "text": match[2].strip()})
        position = match.end()
    parts.append({"type": "text", "text": answer[position:]})
    return [part for part in parts if part["text"]]


def load_sources(corpus: Path, names: Collection[str]) -> dict[str, list[Messages]]:
    """The conversations of each named source of a corpus folder.

    `problems_worked` and `problems_direct` come from problems/train.jsonl, any other name from
    conversations/<name>.jsonl. Raises UserError that names every unknown source and the known ones.
    """
    files = {path.stem: path for path in sorted((corpus / "conversations").glob("*.jsonl"))}
    styles = {f"problems_{style}": style for style in STYLES}
    unknown = [name for name in names if name not in files and name not in styles]
    if unknown:
        known = ", ".join([*files, *styles, "documents"])
        raise UserError(
            [f"mixture: no source {name!r} in {corpus}; there are: {known}" for name in unknown]
        )
    problems: list[Problem] = []
    if any(name in styles for name in names):
        problems = list(contents.rows(corpus, "problems/train.jsonl"))
    sources: dict[str, list[Messages]] = {}
    for name in names:
        if name in styles:
            style = cast(Literal["worked", "direct"], styles[name])
            sources[name] = [problem_conversation(problem, style) for problem in problems]
        else:
            sources[name] = _conversations(corpus, name)
    return sources


def _conversations(corpus: Path, name: str) -> list[Messages]:
    """The conversations of a source of the corpus. Raises UserError for a damaged file."""
    path = corpus / f"conversations/{name}.jsonl"
    rows = list(contents.rows(corpus, f"conversations/{name}.jsonl"))
    for number, row in enumerate(rows, 1):
        messages = row.get("messages")
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise UserError(f"{path}: row {number} has no `messages`; {contents.REMAKE}")
    return [row["messages"] for row in rows]

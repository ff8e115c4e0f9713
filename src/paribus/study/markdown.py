"""Text of other people's (questions, values, names, logs) made safe to stand in a Markdown page."""

from __future__ import annotations

import re

# What begins an element of HTML or Markdown in the middle of a line; a backslash or an entity takes its meaning.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = re.compile(r"[\\`*\[\]|]")
_LINE_MARKS = re.compile(r"^(\s*)([#+=~-]|\d+[.)])")


def line(text: object) -> str:
    """Text on one line: no HTML, no links, no code, no table cells of its own."""
    joined = " ".join(str(text).split())
    for mark, entity in _ENTITIES.items():
        joined = joined.replace(mark, entity)
    escaped = _MARKS.sub(lambda match: "\\" + match[0], joined)
    # `__` and `_` at the edge of a word would be emphasis; inside a word (qk_norm) they are themselves.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)


def paragraph(text: object) -> str:
    """The same where it begins a line: nor is it a heading, a list or a rule."""
    return _LINE_MARKS.sub(lambda match: match[1] + "\\" + match[2], line(text))


def cell(text: object) -> str:
    """The same in a cell of a table, where nothing may be empty."""
    return line(text) or " "


def fenced(text: str, language: str = "") -> str:
    """Text as it is, in a block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{text}\n{fence}"

"""Text of other people's (questions, values, names, logs) made safe to stand in a Markdown page."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # "p < 0.05" stays as it is
_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKS = re.compile(r"[\\`*\[\]|]|~(?=~)|(?<=~)~")
_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")  # inside a word (qk_norm) it is itself
_LINE_MARKS = re.compile(r"^(\s*)([#+=~>-]|\d+[.)])")


def line(text: object) -> str:
    """Text on one line: no HTML, no links, no code, no table cells of its own."""
    joined = " ".join(str(text).split())
    without_entities = _ENTITY.sub("&amp;", joined)
    without_tags = _TAG.sub("&lt;", without_entities)
    escaped = _MARKS.sub(lambda match: "\\" + match[0], without_tags)
    return _UNDERSCORE.sub(r"\\_", escaped)


def paragraph(text: object) -> str:
    """The same where it begins a line: nor is it a heading, a list or a rule."""
    return _LINE_MARKS.sub(lambda match: match[1] + "\\" + match[2], line(text))


def cell(text: object) -> str:
    """The same in a cell of a table, where nothing may be empty."""
    return line(text) or " "


def fenced(text: str, language: str = "") -> str:
    """Text as it is, in a block of code whose fence is longer than any in the text.

    Args:
        text: of the block.
        language: by which it is coloured.
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{text}\n{fence}"

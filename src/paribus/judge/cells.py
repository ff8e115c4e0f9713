"""What a cell of somebody's table says: a number, nothing, or a name.

Numbers are written with a decimal point. A decimal comma is refused by name, as 3,280 could mean two things; so are units,
percent signs and thousands separators. No locale is guessed.
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from paribus.errors import shown

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
UNIT = re.compile(r"([+-]?[\d.]+)\s*([^\W\d_].*|%)")
WHOLE = re.compile(r"([+-]?\d+)\.0+")
MISSING = {"", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "-", "–", "—", "?"}
INFINITE = {"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity", "∞", "-∞"}


@dataclass(frozen=True, slots=True)
class Value:
    """A cell that should hold a number: a finite one, none (None), or a problem in words.

    Attributes:
        number: None where there is none.
        problem: why the cell cannot be read; "" where it can.
        text: the cell that has the problem, as in a message.
        infinite: whether it says infinity.
        blank: whether nothing stands there, where `nan` or `inf` say that something went wrong.
    """

    number: float | None
    problem: str = ""
    text: str = ""
    infinite: bool = False
    blank: bool = False


def value_of(cell: Any) -> Value:
    """Read a cell as a number.

    Args:
        cell: text of a file, or a value of a data frame.
    """
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return Value(None, blank=True)
    if isinstance(cell, str):
        return _of_text(cell)
    is_number = isinstance(cell, (numbers.Real, Decimal)) and not isinstance(cell, bool)
    if not is_number:
        return Value(None, "no number", shown(cell))
    number = float(cell)
    return Value(None, blank=True) if math.isnan(number) else _finite(number)


def _of_text(cell: str) -> Value:
    text = cell.strip().replace("\u2212", "-")
    if text.lower() in MISSING:
        return Value(None, blank=text.lower() not in ("nan", "-nan"))
    if text.lower() in INFINITE:
        return Value(None, infinite=True)
    if NUMBER.fullmatch(text):
        return _finite(float(text))
    return Value(None, _misread(text), shown(text))


def _finite(number: float) -> Value:
    return Value(None, infinite=True) if math.isinf(number) else Value(number)


def _misread(text: str) -> str:
    """Why a text is no number, as exactly as it can be said."""
    if THOUSANDS.fullmatch(text) or COMMA.fullmatch(text):
        return "a comma, which may be a decimal comma or separate thousands: write a point for decimals, and no separator"
    unit = UNIT.fullmatch(text)
    if unit and NUMBER.fullmatch(unit[1]):
        return f"a unit, {shown(unit[2])}: put it into the column's name and leave the number"
    return "no number"


def name_of(cell: Any) -> str:
    """A cell as a name: of an arm, a seed, a block. 42, 42.0 and "42.0" are the same name.

    Args:
        cell: text of a file, or a value of a data frame.

    Returns:
        The name without spaces around it, in Unicode's composed form; "" where the cell is empty.
    """
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(cell, float) or type(cell).__name__.startswith("float"):
        return "" if math.isnan(cell) else f"{float(cell):.17g}"
    text = unicodedata.normalize("NFC", str(cell)).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text

"""The calculator behind the tool call: exact arithmetic on untrusted text, in bounded time.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := ("-" | "+") factor | (number | "(" expression ")") "%"?
    number     := digits, with thousands commas, a decimal point, a "$" before it

The form of GSM8K's `<<48/2=24>>` annotations (arXiv:2110.14168). Nothing is evaluated by the interpreter.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 100  # characters; the longest annotation in GSM8K's train split has 39
MAX_NESTING = 12  # brackets and signs within each other
MAX_MAGNITUDE = 10**15  # of every value on the way: the same on every machine, and short to print

_TOKEN = re.compile(
    r"\s*(?:\$?(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)|(?P<sign>[-+*/()%]))\s*",
    re.ASCII,
)


class _NoResult(Exception):
    """The expression has no value: garbage, division by zero, out of bounds."""


def calculate(expression: str) -> str | None:
    """The value of an arithmetic expression as GSM8K writes it ("24", "0.5", "33.33"), or None for "no result".

    Values are exact fractions until the end; `format_number` rounds. Never raises, never takes long:
    length, nesting and magnitude are bounded, and there is no power operator.
    """
    try:
        return format_number(_Parser(_tokens(expression)).parse())
    except _NoResult:
        return None


def format_number(value: Fraction) -> str:
    """Shortest plain decimal: exact up to 6 places (0.0625), else rounded half up to 2, or to two figures if tiny."""
    places = _decimal_places(value)
    scaled = int(abs(value) * 10**places + Fraction(1, 2))
    text = str(scaled)
    if places:
        digits = text.rjust(places + 1, "0")
        text = f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and scaled else text


def _decimal_places(value: Fraction) -> int:
    """Places behind the point that `format_number` computes: as many as make it exact, up to 6; else 2, or more if tiny."""
    for places in range(7):
        if (value * 10**places).denominator == 1:
            return places
    places = 2
    while places < 12 and abs(value) * 10**places < 10:
        places += 1
    return places


def _tokens(expression: str) -> list[str]:
    if len(expression) > MAX_LENGTH:
        raise _NoResult
    tokens, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise _NoResult
        tokens.append(match["number"] or match["sign"])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens; one method a line of the grammar above."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.position = 0
        self.nesting = 0

    def parse(self) -> Fraction:
        value = self.expression()
        if self.next:
            raise _NoResult
        return value

    @property
    def next(self) -> str:
        return self.tokens[self.position]

    def take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1]

    def expression(self) -> Fraction:
        value = self.term()
        while self.next in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _bounded(value + sign * self.term())
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while self.next in ("*", "/"):
            divides = self.take() == "/"
            right = self.factor()
            value = _divide(value, right) if divides else _bounded(value * right)
        return value

    def factor(self) -> Fraction:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise _NoResult
        token = self.take()
        if token in ("-", "+"):
            value = self.factor() if token == "+" else -self.factor()
        else:
            value = self.bracket() if token == "(" else _number(token)
            if self.next == "%":
                self.take()
                value /= 100
        self.nesting -= 1
        return value

    def bracket(self) -> Fraction:
        value = self.expression()
        if self.take() != ")":
            raise _NoResult
        return value


def _number(token: str) -> Fraction:
    if not token or token in "-+*/()%":
        raise _NoResult
    return _bounded(Fraction(token.replace(",", "").rstrip(".")))


def _divide(value: Fraction, by: Fraction) -> Fraction:
    if by == 0:
        raise _NoResult
    return _bounded(value / by)


def _bounded(value: Fraction) -> Fraction:
    """The value, if numerator and denominator stay small: both grow with the length of the expression only."""
    if abs(value) >= MAX_MAGNITUDE:
        raise _NoResult
    return value

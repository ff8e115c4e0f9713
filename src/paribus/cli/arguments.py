"""Types of command-line arguments: numbers that are numbers, lists of cards, engines."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from paribus.errors import shown


class Finite(click.types.FloatParamType):
    """A number; `nan` and `inf` are refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read `value` as click does, and refuse what is not finite.

        param, ctx: the option and the command, which click's message names. Raises click.BadParameter.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Number(click.FloatRange, Finite):
    """A finite number in a range."""


class Temperature(Number):
    """0, or a number that logits can be divided by in 32 bits."""

    def __init__(self, coldest: float, hottest: float) -> None:
        super().__init__(0, hottest)
        self.coldest = coldest

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read `value` as a `Number`, and refuse what lies between 0 and the coldest temperature.

        param, ctx: the option and the command, which click's message names. Raises click.BadParameter.
        """
        number = super().convert(value, param, ctx)
        if 0 < number < self.coldest:
            self.fail(
                f"{value} is too cold; 0 takes the likeliest token, else at least {self.coldest}.",
                param,
                ctx,
            )
        return number


class Cards(click.ParamType[str]):
    """Cards of this machine: numbers or UUIDs with commas between, none twice."""

    name = "cards"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the cards of `value` with commas between and without spaces.

        param, ctx: the option and the command, which click's message names. Raises click.BadParameter for what is not the
        number or UUID of a card, or for a card named twice.
        """
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if not re.fullmatch(r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{4,80}", name):
                self.fail(
                    f"{shown(name)} is no card; expected numbers with commas between, as 0,1.",
                    param,
                    ctx,
                )
        if len(set(names)) < len(names):
            self.fail(f"{shown(value)} names a card twice.", param, ctx)
        return ",".join(names)


class EngineName(click.ParamType[str]):
    """What computes runs: `local`, `ray`, or `ray:HOST:PORT` with the head of a Ray cluster."""

    name = "engine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the engine of `value`.

        param, ctx: the option and the command, which click's message names. Raises click.BadParameter for another engine, or
        an address without a port.
        """
        text = str(value).strip()
        if not re.fullmatch(r"local|ray(:\[[0-9A-Fa-f:]+\]:\d{1,5}|:[\w.-]+:\d{1,5})?", text):
            self.fail(
                f"{shown(text)} is no engine; expected local, ray, or ray:HOST:PORT as ray:192.168.1.10:6379.",
                param,
                ctx,
            )
        return text

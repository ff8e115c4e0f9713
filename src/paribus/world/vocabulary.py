"""Vocabulary of the embedded world: names, places, things, verbs. Nothing here is random."""

from __future__ import annotations

from typing import Any, NamedTuple

from paribus.world.templates import read_templates

_WORDS = read_templates("vocabulary")

SHE, HE = tuple(_WORDS["she"]), tuple(_WORDS["he"])
PEOPLE = tuple((name, True) for name in SHE) + tuple((name, False) for name in HE)
"""(name, is she) of everybody who may occur in the world."""

PRONOUNS: dict[bool, dict[str, str]] = {
    True: _WORDS["pronouns"]["she"],
    False: _WORDS["pronouns"]["he"],
}
"""is she -> the fields {S}, {s}, {h}, {p} and {p2} of templates."""

DAYS, MONTHS = tuple(_WORDS["days"]), tuple(_WORDS["months"])
TOWNS = tuple(_WORDS["towns"])
LANDMARKS = tuple(_WORDS["landmarks"])
PRODUCTS = tuple(_WORDS["products"])
REGIONS = tuple(_WORDS["regions"])
JOBS = tuple(_WORDS["jobs"])
COLOURS = tuple(_WORDS["colours"])
FOODS = tuple(_WORDS["foods"])
PETS, PET_NAMES = tuple(_WORDS["pets"]), tuple(_WORDS["pet_names"])
HOBBIES = tuple(_WORDS["hobbies"])
THINGS, MATERIALS = tuple(_WORDS["things"]), tuple(_WORDS["materials"])
GOODS = tuple(_WORDS["goods"])
_PLURALS = _WORDS["plurals"]
_ONES, _TENS = _WORDS["numbers"]["ones"], _WORDS["numbers"]["tens"]


class Domain(NamedTuple):
    """Things that are counted in word problems, with the verbs and containers that go with them.

    Verbs are "present|past"; nouns are singular (see `plural`).
    """

    things: tuple[str, ...]
    gain: tuple[str, ...]
    lose: tuple[str, ...]
    containers: tuple[str, ...]
    kinds: tuple[str, ...]


def _domain(words: dict[str, Any]) -> Domain:
    return Domain(**{name: tuple(listed) for name, listed in words.items()})


DOMAINS = tuple(_domain(words) for words in _WORDS["domains"])


def number_word(n: int) -> str:
    """English words for 0 <= n <= 100."""
    if n < 20:
        return str(_ONES[n])
    if n == 100:
        return "one hundred"
    ones = f"-{_ONES[n % 10]}" if n % 10 else ""
    return f"{_TENS[n // 10]}{ones}"


def plural(noun: str) -> str:
    """The plural of a noun of this vocabulary."""
    if noun in _PLURALS:
        return str(_PLURALS[noun])
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")

"""Chains: word problems of the embedded world that are composed freely of an opening, changes and a question.

chains.yaml has their sentences, and says what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paribus.world.rng import Rng
from paribus.world.scripts import Problem, Unfit, annotated, calculate, common_fields, finish
from paribus.world.templates import Choices, choices, choices_by_name, read_templates
from paribus.world.vocabulary import DOMAINS, number_word, plural

WORD_SHARE = 0.05
INTRODUCTION_SHARE = 0.15
PAST_SHARE = 0.25

_TEXTS = read_templates("chains")
_INTRODUCTIONS = choices(_TEXTS["introductions"])
_JOINS = tuple(_TEXTS["joins"])
_OPEN = choices_by_name(_TEXTS["open"])
_CHANGE = choices_by_name(_TEXTS["change"])
_SUPPOSE = choices_by_name(_TEXTS["suppose"])
_ASK = choices_by_name(_TEXTS["ask"])
_ASK_STEP = choices_by_name(_TEXTS["ask_step"])
_SAY = choices_by_name(_TEXTS["say"])
_PRESENT = {name: present for name, (present, _) in _TEXTS["verbs"].items()}
_PAST = {name: past for name, (_, past) in _TEXTS["verbs"].items()}


class _Chain:
    """A problem under construction: `value` is what the person has now."""

    def __init__(self, rng: Rng) -> None:
        domain = rng.pick(DOMAINS)
        self.past = rng.chance(PAST_SHARE)
        thing, container = rng.pick(domain.things), rng.pick(domain.containers)
        q, q2, q3 = rng.sample(domain.kinds, 3)
        self.rng, self.fields = rng, common_fields(rng)
        self.fields.update(_PAST if self.past else _PRESENT)
        self.fields.update(gain=self._verb(domain.gain), lose=self._verb(domain.lose))
        self.fields.update(o=plural(thing), o1=thing, c=plural(container), c1=container)
        self.fields.update(q=q, q2=q2, q3=q3)
        self.words = rng.chance(WORD_SHARE)
        self.text: list[str] = []
        self.lines: list[str] = []
        self.value = self.other = 0
        self.kind = "start"

    def _verb(self, verbs: Choices) -> str:
        """One of the verbs, in the tense of the problem."""
        present, past = self.rng.pick(verbs).split("|")
        return past if self.past else present

    def say(self, templates: Choices, lead: str = "", **numbers: int) -> None:
        """A sentence of the question."""
        for letter, number in numbers.items():
            spelt = self.words and number <= 12
            self.fields[letter] = number_word(number) if spelt else str(number)
        sentence = lead + self.rng.pick(templates).format_map(self.fields)
        self.text.append(sentence[0].upper() + sentence[1:])

    def step(self, a: int, op: str, b: int, templates: Choices) -> int:
        """A line of the answer; returns its result."""
        result = calculate(a, op, b)
        self.fields["e"] = annotated(f"{a}{op}{b}", result)
        self.lines.append(self.rng.pick(templates).format_map(self.fields))
        return result

    def now(self, op: str, number: int) -> None:
        """A step after which the person has another number."""
        self.value = self.step(self.value, op, number, _SAY["now"])
        self.kind = "now"

    def left(self, op: str, number: int) -> None:
        """A step after which the person has fewer."""
        self.value = self.step(self.value, op, number, _SAY["left"])
        self.kind = "left"

    def compared(self) -> None:
        """After a sentence about two people a pronoun would be unclear: the name takes its place."""
        self.fields.update(s=self.fields["N"], S=self.fields["N"])
        self.kind = "compared"


def make_chain(rng: Rng, steps: int) -> Problem:
    """An opening, changes and a question that take `steps` steps together."""
    chain = _Chain(rng)
    if rng.chance(INTRODUCTION_SHARE):
        chain.say(_INTRODUCTIONS)
    left = steps
    if rng.chance(0.5):
        rng.pick(_OPENINGS)(chain)
        left -= 1
    else:
        chain.value = rng.small(4, 99)
        chain.say(_OPEN["plain"], a=chain.value)
    ask_costs = left > 0 and rng.chance(0.45)
    left -= ask_costs
    while left:
        left -= _change(chain, left, last=not ask_costs)
    if ask_costs:
        _ask_step(chain)
    elif chain.kind != "asked":
        _ask(chain)
    return finish(" ".join(chain.text), chain.lines, chain.value)


def _open_groups(chain: _Chain) -> None:
    a, b = chain.rng.between(2, 12), chain.rng.between(2, 12)
    chain.say(_OPEN["groups"], a=a, b=b)
    chain.value = chain.step(a, "*", b, _SAY["has"])


def _open_sum(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 60), chain.rng.small(2, 60)
    chain.say(_OPEN["sum"], a=a, b=b)
    chain.value = chain.step(a, "+", b, _SAY["has"])
    chain.kind = "total"


def _open_sum3(chain: _Chain) -> None:
    a, b, k = (chain.rng.small(2, 40) for _ in range(3))
    chain.say(_OPEN["sum3"], a=a, b=b, k=k)
    chain.fields["e"] = annotated(f"{a}+{b}+{k}", a + b + k)
    chain.lines.append(chain.rng.pick(_SAY["has"]).format_map(chain.fields))
    chain.value, chain.kind = a + b + k, "total"


def _open_more(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 60), chain.rng.small(2, 40)
    chain.say(_OPEN["more"], a=a, b=b)
    chain.value, chain.other = chain.step(a, "+", b, _SAY["name"]), a
    chain.compared()


def _open_fewer(chain: _Chain) -> None:
    a = chain.rng.small(6, 90)
    b = chain.rng.between(2, a - 2)
    chain.say(_OPEN["fewer"], a=a, b=b)
    chain.value, chain.other = chain.step(a, "-", b, _SAY["name"]), a
    chain.compared()


def _open_times(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 25), chain.rng.between(2, 6)
    chain.say(_OPEN["twice"] if b == 2 else _OPEN["times"], a=a, b=b)
    chain.value, chain.other = chain.step(a, "*", b, _SAY["name"]), a
    chain.compared()


def _open_half(chain: _Chain) -> None:
    a = 2 * chain.rng.small(2, 45)
    chain.say(_OPEN["half"], a=a)
    chain.value, chain.other = chain.step(a, "/", 2, _SAY["name"]), a
    chain.compared()


_OPENINGS = (
    _open_groups,
    _open_groups,
    _open_sum,
    _open_sum,
    _open_sum3,
    _open_more,
    _open_fewer,
    _open_times,
    _open_half,
)


def _change(chain: _Chain, left: int, last: bool) -> int:
    """One change of what the person has; returns the steps it took. The last one may be part of the question."""
    rng, u = chain.rng, chain.rng.random()
    if left >= 2 and u < 0.25:
        _change_groups(chain)
        return 2
    lead = rng.pick(_JOINS)
    suppose = last and left == 1 and not chain.past and rng.chance(0.25)
    if u < 0.6 and chain.value >= 4:
        _lose(chain, lead, suppose)
    elif u < 0.92:
        _gain(chain, lead, suppose)
    elif u < 0.96:
        chain.say(_CHANGE["double"], lead)
        chain.now("*", 2)
    else:
        chain.say(_CHANGE["half"], lead)
        chain.left("/", 2)
    return 1


def _lose(chain: _Chain, lead: str, suppose: bool) -> None:
    """A loss; supposed, it is one sentence with its question."""
    b = chain.rng.small(2, min(chain.value - 2, 60))
    if suppose:
        chain.say(_SUPPOSE["lose"], b=b)
    else:
        chain.say(_CHANGE["lose"], lead, b=b)
    chain.left("-", b)
    if suppose:
        chain.kind = "asked"


def _gain(chain: _Chain, lead: str, suppose: bool) -> None:
    """A gain; supposed, it is one sentence with its question."""
    b = chain.rng.small(2, 50)
    if suppose:
        chain.say(_SUPPOSE["gain"], b=b)
    else:
        chain.say(_CHANGE["gain"], lead, b=b)
    chain.now("+", b)
    if suppose:
        chain.kind = "asked"


def _change_groups(chain: _Chain) -> None:
    """A change by some groups of some things: two steps."""
    rng = chain.rng
    b, k = rng.between(2, 9), rng.between(2, 9)
    gain = rng.chance(0.5)
    wording = _CHANGE["gain_groups"] if gain else _CHANGE["lose_groups"]
    chain.say(wording, rng.pick(_JOINS), b=b, k=k)
    part = chain.step(b, "*", k, _SAY["part"])
    if gain:
        chain.now("+", part)
    else:
        chain.left("-", part)


def _ask(chain: _Chain) -> None:
    """A question for what the person has now, without a further step."""
    plain = _ASK["start"][:1]
    wordings = {
        "left": _ASK["left"] + _ASK["now"],
        "now": _ASK["now"] + _ASK["total"],
        "total": _ASK["total"] + plain,
        "compared": plain,
        "start": _ASK["start"] + _ASK["total"],
    }
    chain.say(wordings[chain.kind])


def _divisor(rng: Rng, value: int) -> int:
    divisors = [f for f in range(2, 13) if value % f == 0 and value > f]
    if not divisors:
        raise Unfit
    return rng.pick(divisors)


def _less(rng: Rng, value: int) -> int:
    if value < 4:
        raise Unfit
    return rng.small(2, min(value - 2, 60))


def _factor(rng: Rng, value: int) -> int:
    return rng.between(3, 9)


def _more(rng: Rng, value: int) -> int:
    return rng.small(2, 50)


class _Ask(NamedTuple):
    """A question with one step: value `op` f, where f is drawn; `goal` means (value + f) - value instead."""

    weight: int
    texts: Choices
    op: str
    draw: Callable[[Rng, int], int]
    answers: Choices
    goal: bool = False


_ASKS = tuple(
    ask
    for ask in (
        _Ask(8, _ASK_STEP["share"], "/", _divisor, _SAY["share"]),
        _Ask(6, _ASK_STEP["pack"], "/", _divisor, _SAY["pack"]),
        _Ask(3, _ASK_STEP["price"], "*", _factor, _SAY["price"]),
        _Ask(3, _ASK_STEP["need"], "-", _more, _SAY["need"], goal=True),
        _Ask(3, _ASK_STEP["compare"], "-", _less, _SAY["compare"]),
        _Ask(3, _ASK_STEP["together"], "+", _more, _SAY["together"]),
        _Ask(2, _ASK_STEP["other_times"], "*", _factor, _SAY["other"]),
        _Ask(2, _ASK_STEP["other_more"], "+", _more, _SAY["other"]),
        _Ask(2, _ASK_STEP["other_fewer"], "-", _less, _SAY["other"]),
    )
    for _ in range(ask.weight)
)


def _ask_step(chain: _Chain) -> None:
    """A question that takes one more step."""
    value = chain.value
    if chain.kind == "compared" and chain.rng.chance(0.4):
        chain.say(_ASK_STEP["both"])
        chain.value = chain.step(chain.other, "+", value, _SAY["together"])
        return
    ask = chain.rng.pick(_ASKS)
    number = ask.draw(chain.rng, value)
    shown = value + number if ask.goal else number
    chain.say(ask.texts, f=shown)
    a, b = (shown, value) if ask.goal else (value, number)
    chain.value = chain.step(a, ask.op, b, ask.answers)

"""Chains: word problems of the embedded world that are composed freely of an opening, changes and a question.

Fields of the templates: {N} the person, {S} She/He, {s} she/he, {p} her/his, {h} her/him; {M}, {L}, {K} other people;
{o} things, {o1} one of them; {c}, {c1} containers; {q}, {q2}, {q3} kinds of things; {day}, {town}; {a}, {b}, {k}, {f}
numbers; {has}, {gain}, ... verbs in the tense of the problem; {e} is the step with its annotation, as 3*4=<<3*4=12>>12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paribus.world.rng import Rng
from paribus.world.scripts import Problem, Unfit, annotated, calculate, common_fields, finish
from paribus.world.text import DOMAINS, number_word, plural

WORD_SHARE = 0.05
INTRO_SHARE = 0.15
PAST_SHARE = 0.25
_VERBS = {
    "has": "has|had", "gives": "gives|gave", "gets": "gets|got", "keeps": "keeps|kept",
    "starts": "starts|started",
    "fills": "fills|filled", "puts": "puts|put", "holds": "holds|held", "are": "are|were", "takes": "takes|took",
    "takes2": "take|took", "doubles": "doubles|doubled",
}  # fmt: skip
_TENSES = tuple({key: verb.split("|")[i] for key, verb in _VERBS.items()} for i in (0, 1))
_INTROS = (
    "It is a sunny day in {town}.", "It is {day}.", "{N} and {M} walk to {town}.",
    "{N} is at the market in {town}.",
    "{N} and {M} are friends.", "{N} visits {town}.", "It is cold and windy.", "{N} helps at home.",
)  # fmt: skip

OPEN_PLAIN = (
    "{N} {has} {a} {o}.",
    "{N} {gain} {a} {o}.",
    "There {are} {a} {o} in {N}'s {c1}.",
    "{N} {keeps} {a} {o} in a {c1}.",
    "{N} {starts} the day with {a} {o}.",
    "On {day} {N} {has} {a} {o}.",
    "In {town}, {N} {gain} {a} {o}.",
    "{N} {gets} {a} {o} from {p} uncle.",
)
OPEN_GROUPS = (
    "{N} {has} {a} {c} with {b} {o} in each.",
    "{N} {has} {a} {c}. Each {c1} {holds} {b} {o}.",
    "{N} {fills} {a} {c} and {puts} {b} {o} in each {c1}.",
    "There {are} {a} {c} in {N}'s house and {b} {o} in each {c1}.",
    "{N} {gets} {a} {c} of {b} {o} each.",
    "Each of {N}'s {a} {c} {has} {b} {o} in it.",
)
OPEN_SUM = (
    "{N} {has} {a} {q} {o} and {b} {q2} {o}.",
    "{N} {has} {a} {o} in one {c1} and {b} {o} in another {c1}.",
    "On {day} {N} {gain} {a} {o}. On {day2} {s} {gain} {b} {o}.",
    "{N} {gain} {a} {o} in the morning and {b} {o} in the afternoon.",
    "{N} {gets} {a} {o} from {M} and {b} {o} from {L}.",
)
OPEN_SUM3 = (
    "{N} {has} {a} {q} {o}, {b} {q2} {o} and {k} {q3} {o}.",
    "{N} {gain} {a} {o} on {day}, {b} on {day2} and {k} on {day3}.",
)
OPEN_MORE = (
    "{M} {has} {a} {o}. {N} {has} {b} more {o} than {M}.",
    "{M} {gain} {a} {o}. {N} {gain} {b} more than {M}.",
    "{N} {has} {b} more {o} than {M}, who {has} {a} {o}.",
)
OPEN_FEWER = (
    "{M} {has} {a} {o}. {N} {has} {b} fewer {o} than {M}.",
    "{M} {gain} {a} {o}. {N} {gain} {b} fewer than {M}.",
)
OPEN_TIMES = (
    "{M} {has} {a} {o}. {N} {has} {b} times as many {o} as {M}.",
    "{M} {gain} {a} {o}. {N} {gain} {b} times as many.",
)
OPEN_TWICE = (
    "{M} {has} {a} {o}. {N} {has} twice as many {o} as {M}.",
    "{M} {gain} {a} {o}. {N} {gain} double that number.",
)
OPEN_HALF = (
    "{M} {has} {a} {o}. {N} {has} half as many {o} as {M}.",
    "{M} {gain} {a} {o}. {N} {gain} half that number.",
)
CHANGE_GAIN = (
    "{s} {gain} {b} more {o}.",
    "{s} {gain} {b} more.",
    "{L} {gives} {h} {b} more {o}.",
    "{s} {gets} {b} {o} from {L}.",
    "{p} brother {gives} {h} {b} more.",
)
CHANGE_LOSE = (
    "{s} {lose} {b} of them.",
    "{s} {lose} {b} {o}.",
    "{s} {gives} {b} {o} to {L}.",
    "{L} {takes} {b} of them.",
    "{b} of the {o} {are} lost.",
)
CHANGE_DOUBLE = ("{s} {doubles} the number of {o}.", "{L} {doubles} {p} number of {o}.")
CHANGE_HALF = ("{s} {gives} half of them to {L}.", "{s} {lose} half of the {o}.")
CHANGE_GAIN_GROUPS = (
    "{s} {gain} {b} more {c} of {k} {o} each.",
    "{L} {gives} {h} {b} {c} with {k} {o} in each.",
)
CHANGE_LOSE_GROUPS = (
    "{s} {gives} {k} {o} to each of {p} {b} friends.",
    "{b} friends {takes2} {k} {o} each.",
)
JOINS = (
    "Then ",
    "Later ",
    "After that, ",
    "In the evening, ",
    "Next, ",
    "After lunch, ",
    "",
    "",
    "",
)

IF_LOSE = (
    "If {s} {lose} {b} of them, how many {o} does {s} have left?",
    "If {s} {gives} {b} {o} to {L}, how many does {s} have left?",
    "How many {o} are left if {s} {lose} {b}?",
)
IF_GAIN = (
    "If {s} {gain} {b} more, how many {o} does {s} have?",
    "How many {o} will {s} have if {L} {gives} {h} {b} more?",
)

ASK_START = (
    "How many {o} does {N} have?",
    "How many {o} is that?",
    "What is the number of {N}'s {o}?",
)
ASK_TOTAL = (
    "How many {o} does {N} have in total?",
    "How many {o} does {N} have altogether?",
    "How many {o} are there in all?",
)
ASK_NOW = (
    "How many {o} does {N} have now?",
    "How many {o} does {s} have now?",
    "How many {o} does {N} have at the end?",
)
ASK_LEFT = (
    "How many {o} are left?",
    "How many {o} does {N} have left?",
    "How many {o} does {s} still have?",
    "How many {o} remain?",
)
ASK_SHARE = (
    "{S} shares the {o} equally among {f} friends. How many {o} does each friend get?",
    "{S} puts the {o} into {f} {c}, the same number in each. How many {o} go in each {c1}?",
    "If {f} children share the {o} equally, how many does each child get?",
    "{S} splits the {o} into {f} equal groups. How many {o} are in each group?",
)
ASK_PACK = (
    "{S} packs the {o} in {c} of {f}. How many {c} does {s} need?",
    "{S} makes groups of {f} {o}. How many groups does {s} make?",
    "How many {c} does {s} fill if {f} {o} go in each {c1}?",
)
ASK_PRICE = (
    "{S} sells each {o1} for {f} coins. How many coins does {s} get?",
    "If each {o1} is worth {f} coins, how many coins are the {o} worth?",
    "{S} sells the {o} for {f} coins each. How much money does {s} make?",
)
ASK_NEED = (
    "{S} wants to have {f} {o}. How many more does {s} need?",
    "{S} needs {f} {o} for a party. How many {o} are missing?",
)
ASK_COMPARE = (
    "{K} has {f} {o}. How many more {o} does {N} have than {K}?",
    "{K} has only {f} {o}. What is the difference?",
)
ASK_TOGETHER = (
    "{K} has {f} {o}. How many {o} do {N} and {K} have together?",
    "{K} brings {f} {o}. How many {o} do they have together?",
)
ASK_OTHER_TIMES = ("{K} has {f} times as many {o}. How many {o} does {K} have?",)
ASK_OTHER_MORE = ("{K} has {f} more {o} than {N}. How many {o} does {K} have?",)
ASK_OTHER_FEWER = ("{K} has {f} fewer {o} than {N}. How many {o} does {K} have?",)
ASK_BOTH = ("How many {o} do {N} and {M} have together?", "How many {o} do they have in total?")

SAY_HAS = ("{N} has {e} {o}.", "{S} has {e} {o}.", "There are {e} {o}.")
SAY_NOW = (
    "Then {s} has {e} {o}.",
    "Now {s} has {e} {o}.",
    "{S} has {e} {o}.",
    "{N} has {e} {o}.",
    "That makes {e} {o}.",
)
SAY_LEFT = (
    "Then {s} has {e} {o}.",
    "Now {s} has {e} {o}.",
    "{S} has {e} {o} left.",
    "{N} has {e} {o} left.",
)
SAY_NAME = ("{N} has {e} {o}.",)
SAY_PART = ("That is {e} {o}.", "That makes {e} {o}.")

SAY_SHARE = ("Each gets {e} {o}.", "That is {e} {o} each.", "There are {e} {o} in each.")
SAY_PACK = ("That makes {e}.", "{S} gets {e} of them.")
SAY_PRICE = ("{S} gets {e} coins.", "That is {e} coins.")
SAY_NEED = ("{S} needs {e} more {o}.", "{e} {o} are missing.")
SAY_COMPARE = ("{N} has {e} more {o}.", "The difference is {e} {o}.")
SAY_TOGETHER = ("Together they have {e} {o}.", "In total they have {e} {o}.")
SAY_OTHER = ("{K} has {e} {o}.", "Then {K} has {e} {o}.")


class _Chain:
    """A problem under construction: `value` is what the person has now."""

    def __init__(self, rng: Rng) -> None:
        domain = rng.pick(DOMAINS)
        tense = 1 if rng.chance(0.25) else 0
        thing, container = rng.pick(domain.things), rng.pick(domain.containers)
        kinds = rng.sample(domain.kinds, 3)
        self.rng, self.fields = rng, common_fields(rng)
        self.fields.update(_TENSES[tense])
        self.fields.update(
            o=plural(thing), o1=thing, c=plural(container), c1=container, q=kinds[0], q2=kinds[1], q3=kinds[2],
            gain=rng.pick(domain.gain).split("|")[tense], lose=rng.pick(domain.lose).split("|")[tense],
        )  # fmt: skip
        self.past, self.words = bool(tense), rng.chance(WORD_SHARE)
        self.text: list[str] = []
        self.lines: list[str] = []
        self.value = self.other = 0
        self.kind = "start"

    def say(self, templates: tuple[str, ...], lead: str = "", **numbers: int) -> None:
        """A sentence of the question."""
        for letter, number in numbers.items():
            self.fields[letter] = (
                number_word(number) if self.words and number <= 12 else str(number)
            )
        sentence = lead + self.rng.pick(templates).format_map(self.fields)
        self.text.append(sentence[0].upper() + sentence[1:])

    def step(self, a: int, op: str, b: int, templates: tuple[str, ...]) -> int:
        """A line of the answer; returns its result."""
        result = calculate(a, op, b)
        self.fields["e"] = annotated(f"{a}{op}{b}", result)
        self.lines.append(self.rng.pick(templates).format_map(self.fields))
        return result

    def compared(self) -> None:
        """After a sentence about two people a pronoun would be unclear: the name takes its place."""
        self.fields.update(s=self.fields["N"], S=self.fields["N"])
        self.kind = "compared"


def make_chain(rng: Rng, steps: int) -> Problem:
    """An opening, changes and a question that take `steps` steps together."""
    chain = _Chain(rng)
    if rng.chance(INTRO_SHARE):
        chain.say(_INTROS)
    left = steps
    if rng.chance(0.5):
        rng.pick(_OPENINGS)(chain)
        left -= 1
    else:
        chain.value = rng.small(4, 99)
        chain.say(OPEN_PLAIN, a=chain.value)
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
    chain.say(OPEN_GROUPS, a=a, b=b)
    chain.value = chain.step(a, "*", b, SAY_HAS)


def _open_sum(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 60), chain.rng.small(2, 60)
    chain.say(OPEN_SUM, a=a, b=b)
    chain.value = chain.step(a, "+", b, SAY_HAS)
    chain.kind = "total"


def _open_sum3(chain: _Chain) -> None:
    a, b, k = (chain.rng.small(2, 40) for _ in range(3))
    chain.say(OPEN_SUM3, a=a, b=b, k=k)
    chain.fields["e"] = annotated(f"{a}+{b}+{k}", a + b + k)
    chain.lines.append(chain.rng.pick(SAY_HAS).format_map(chain.fields))
    chain.value, chain.kind = a + b + k, "total"


def _open_more(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 60), chain.rng.small(2, 40)
    chain.say(OPEN_MORE, a=a, b=b)
    chain.value, chain.other = chain.step(a, "+", b, SAY_NAME), a
    chain.compared()


def _open_fewer(chain: _Chain) -> None:
    a = chain.rng.small(6, 90)
    b = chain.rng.between(2, a - 2)
    chain.say(OPEN_FEWER, a=a, b=b)
    chain.value, chain.other = chain.step(a, "-", b, SAY_NAME), a
    chain.compared()


def _open_times(chain: _Chain) -> None:
    a, b = chain.rng.small(2, 25), chain.rng.between(2, 6)
    chain.say(OPEN_TWICE if b == 2 else OPEN_TIMES, a=a, b=b)
    chain.value, chain.other = chain.step(a, "*", b, SAY_NAME), a
    chain.compared()


def _open_half(chain: _Chain) -> None:
    a = 2 * chain.rng.small(2, 45)
    chain.say(OPEN_HALF, a=a)
    chain.value, chain.other = chain.step(a, "/", 2, SAY_NAME), a
    chain.compared()


_OPENINGS = (
    _open_groups, _open_groups, _open_sum, _open_sum, _open_sum3, _open_more, _open_fewer, _open_times, _open_half,
)  # fmt: skip


def _change(chain: _Chain, left: int, last: bool) -> int:
    """One change of what the person has; returns the steps it took. The last one may be part of the question."""
    rng, u = chain.rng, chain.rng.random()
    if left >= 2 and u < 0.25:
        return _change_groups(chain)
    lead = rng.pick(JOINS)
    merge = last and left == 1 and not chain.past and rng.chance(0.25)
    if u < 0.6 and chain.value >= 4:
        b = rng.small(2, min(chain.value - 2, 60))
        chain.say(IF_LOSE if merge else CHANGE_LOSE, "" if merge else lead, b=b)
        chain.value, chain.kind = chain.step(chain.value, "-", b, SAY_LEFT), "left"
    elif u < 0.92:
        b = rng.small(2, 50)
        chain.say(IF_GAIN if merge else CHANGE_GAIN, "" if merge else lead, b=b)
        chain.value, chain.kind = chain.step(chain.value, "+", b, SAY_NOW), "now"
    elif u < 0.96:
        merge = False
        chain.say(CHANGE_DOUBLE, lead)
        chain.value, chain.kind = chain.step(chain.value, "*", 2, SAY_NOW), "now"
    else:
        merge = False
        chain.say(CHANGE_HALF, lead)
        chain.value, chain.kind = chain.step(chain.value, "/", 2, SAY_LEFT), "left"
    if merge:
        chain.kind = "asked"
    return 1


def _change_groups(chain: _Chain) -> int:
    """A change by some groups of some things: two steps."""
    rng = chain.rng
    b, k = rng.between(2, 9), rng.between(2, 9)
    gain = rng.chance(0.5)
    chain.say(CHANGE_GAIN_GROUPS if gain else CHANGE_LOSE_GROUPS, rng.pick(JOINS), b=b, k=k)
    part = chain.step(b, "*", k, SAY_PART)
    chain.value = chain.step(chain.value, "+" if gain else "-", part, SAY_NOW if gain else SAY_LEFT)
    chain.kind = "now" if gain else "left"
    return 2


def _ask(chain: _Chain) -> None:
    """A question for what the person has now, without a further step."""
    if chain.kind == "left":
        chain.say(ASK_LEFT + ASK_NOW)
    elif chain.kind == "now":
        chain.say(ASK_NOW + ASK_TOTAL)
    elif chain.kind == "total":
        chain.say(ASK_TOTAL + ASK_START[:1])
    else:
        chain.say(ASK_START[:1] if chain.kind == "compared" else ASK_START + ASK_TOTAL)


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
    texts: tuple[str, ...]
    op: str
    draw: Callable[[Rng, int], int]
    answers: tuple[str, ...]
    goal: bool = False


_ASKS = tuple(
    ask
    for ask in (
        _Ask(8, ASK_SHARE, "/", _divisor, SAY_SHARE),
        _Ask(6, ASK_PACK, "/", _divisor, SAY_PACK),
        _Ask(3, ASK_PRICE, "*", _factor, SAY_PRICE),
        _Ask(3, ASK_NEED, "-", _more, SAY_NEED, goal=True),
        _Ask(3, ASK_COMPARE, "-", _less, SAY_COMPARE),
        _Ask(3, ASK_TOGETHER, "+", _more, SAY_TOGETHER),
        _Ask(2, ASK_OTHER_TIMES, "*", _factor, SAY_OTHER),
        _Ask(2, ASK_OTHER_MORE, "+", _more, SAY_OTHER),
        _Ask(2, ASK_OTHER_FEWER, "-", _less, SAY_OTHER),
    )
    for _ in range(ask.weight)
)


def _ask_step(chain: _Chain) -> None:
    """A question that takes one more step."""
    value = chain.value
    if chain.kind == "compared" and chain.rng.chance(0.4):
        chain.say(ASK_BOTH)
        chain.value = chain.step(chain.other, "+", value, SAY_TOGETHER)
        return
    ask = chain.rng.pick(_ASKS)
    number = ask.draw(chain.rng, value)
    shown = value + number if ask.goal else number
    chain.say(ask.texts, f=shown)
    a, b = (shown, value) if ask.goal else (value, number)
    chain.value = chain.step(a, ask.op, b, ask.answers)

"""Scripts: word problems of the embedded world that are whole templates, of one to four steps each.

Also what both kinds of problems share: names, checked arithmetic, annotations.
"""

from __future__ import annotations

from typing import NamedTuple

from paribus.world.rng import Rng
from paribus.world.text import DAYS, GOODS, PEOPLE, TOWNS, plural

MAX_RESULT = 300
TRIES = 30
"""Numbers are drawn again so often before a template is given up: else divisions, which rarely fit, would be rare."""
_OPERATION = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


class Unfit(Exception):
    """The numbers drawn do not suit the template: draw again."""


class Problem(NamedTuple):
    """A word problem and its worked answer, which ends in `#### NUMBER` as in GSM8K."""

    question: str
    answer: str


def calculate(a: int, op: str, b: int) -> int:
    """Compute a op b for + - * /; raises Unfit unless the result is a whole number in 1..MAX_RESULT."""
    if op == "/" and (b == 0 or a % b):
        raise Unfit
    result: int = _OPERATION[op](a, b)
    if not 1 <= result <= MAX_RESULT:
        raise Unfit
    return result


def annotated(expression: str, result: int) -> str:
    """For example 3*4=<<3*4=12>>12, as in GSM8K (Cobbe et al. 2021)."""
    return f"{expression}=<<{expression}={result}>>{result}"


def finish(text: str, lines: list[str], result: int) -> Problem:
    """The problem that `text` poses, whose worked answer consists of `lines` and ends with `result`."""
    return Problem(text, "\n".join(lines) + f"\n#### {result}")


def common_fields(rng: Rng) -> dict[str, str]:
    """Names, pronouns, a town and days."""
    first, *others = rng.sample_below(len(PEOPLE), 4)
    name, she = PEOPLE[first]
    day = rng.below(5)
    fields = {
        "N": name, "M": PEOPLE[others[0]][0], "L": PEOPLE[others[1]][0], "K": PEOPLE[others[2]][0],
        "town": rng.pick(TOWNS), "day": DAYS[day], "day2": DAYS[day + 1], "day3": DAYS[day + 2],
    }  # fmt: skip
    if she:
        fields.update(S="She", s="she", p="her", h="her", p2="Her")
    else:
        fields.update(S="He", s="he", p="his", h="him", p2="His")
    return fields


class Script(NamedTuple):
    """A problem's wording, its numbers and its steps.

    `ranges`: (letter, low, high); `steps`: ((left, operation, right), answer line). Results are named x, y, z, w in order.
    """

    ranges: tuple[tuple[str, int, int], ...]
    texts: tuple[str, ...]
    steps: tuple[tuple[tuple[str, str, str], str], ...]


def _numbers(rng: Rng, script: Script) -> tuple[dict[str, int], list[str]]:
    """The letters' values and the annotated steps; raises Unfit if no numbers that suit were found."""
    for _ in range(TRIES):
        values = {letter: rng.small(low, high) for letter, low, high in script.ranges}
        steps = []
        try:
            for name, ((left, op, right), _line) in zip("xyzw", script.steps, strict=False):
                a, b = values[left], int(right) if right.isdigit() else values[right]
                values[name] = calculate(a, op, b)
                steps.append(annotated(f"{a}{op}{b}", values[name]))
        except Unfit:
            continue
        return values, steps
    raise Unfit


def make_script(rng: Rng, steps: int) -> Problem:
    """A problem of `steps` steps from one of the templates; raises Unfit if no numbers that suit it were found."""
    script = rng.pick(_BY_STEPS[steps])
    values, annotations = _numbers(rng, script)
    fields = common_fields(rng)
    good, good2 = (GOODS[i] for i in rng.sample_below(len(GOODS), 2))
    fields.update(g=good, g2=good2, gs=plural(good), gs2=plural(good2))
    fields.update((letter, str(value)) for letter, value in values.items())
    lines = []
    for annotation, (_, line) in zip(annotations, script.steps, strict=True):
        fields["e"] = annotation
        lines.append(line.format_map(fields))
    return finish(rng.pick(script.texts).format_map(fields), lines, values["xyzw"[steps - 1]])


def _parse(block: str) -> Script:
    """Lines of a script: ranges, then "? question" (one of several wordings), then "= expression | answer line"."""
    head, *rest = block.replace("\n  ", " ").split("\n")
    ranges = []
    for part in head.split():
        letter, span = part.split(":")
        low, high = span.split("-")
        ranges.append((letter, int(low), int(high)))
    texts = tuple(line[2:] for line in rest if line.startswith("? "))
    steps = [line[2:].split(" | ") for line in rest if line.startswith("= ")]
    return Script(tuple(ranges), texts, tuple(((e[0], e[1], e[2]), line) for e, line in steps))


# Fields: {N} the person, {S} She/He, {s} she/he, {p} her/his, {h} her/him; {M} and {L} other people; {g}, {g2} goods,
# {gs}, {gs2} their plurals; {day}, {town}; single letters such as {a} are numbers; {e} the step with its annotation.
_TEMPLATES = """\
a:2-20 b:2-9
? {N} reads {a} pages every day. How many pages does {s} read in {b} days?
? {N} has a new book. {S} reads {a} pages a day for {b} days. How many pages is that?
= a*b | {S} reads {e} pages.

t:40-150 a:3-20 b:2-7
? A book has {t} pages. {N} reads {a} pages a day for {b} days. How many pages are left?
? {N} has a book with {t} pages. {S} reads {a} pages each day. How many pages are left after {b} days?
= a*b | {S} reads {e} pages.
= t-x | There are {e} pages left.

t:20-120 a:3-12
? A book has {t} pages. {N} reads {a} pages a day. How many days does {s} need?
? {N} reads {a} pages a day. How many days does it take {h} to read a book of {t} pages?
= t/a | {S} needs {e} days.

t:30-150 c:5-60 a:3-12
? A book has {t} pages. {N} has read {c} pages. {S} reads {a} pages a day now. How many more days does {s} need?
? {N} has read {c} of the {t} pages of a book. How many days does {s} need for the rest at {a} pages a day?
= t-c | There are {e} pages left.
= x/a | {S} needs {e} days.

a:2-15 b:2-9
? {N} walks {a} km every day. How many km does {s} walk in {b} days?
? The way to school is {a} km long. {N} goes there {b} times. How many km does {s} walk?
? {N} runs {b} rounds of {a} km each. How far does {s} run?
= a*b | {S} goes {e} km.

a:2-30 b:2-30
? {N} walks {a} km to {town} and then {b} km to the sea. How many km does {s} walk?
? {N} rides {a} km on {day} and {b} km on {day2}. How many km does {s} ride in total?
= a+b | {S} goes {e} km.

t:20-99 a:5-60
? The road to {town} is {t} km long. {N} has walked {a} km. How many km are left?
? {N} wants to ride {t} km today. {S} has done {a} km. How many km does {s} still have to ride?
= t-a | There are {e} km left.

a:2-12 b:2-9 c:2-12 d:2-7
? {N} runs {a} km a day for {b} days. {M} runs {c} km a day for {d} days. How many km do they run together?
? In one month {N} goes on {b} walks of {a} km and {M} goes on {d} walks of {c} km. How many km do the
  two walk in all?
= a*b | {N} goes {e} km.
= c*d | {M} goes {e} km.
= x+y | Together they go {e} km.

a:3-12 b:2-9
? {N} works {b} hours and gets {a} coins an hour. How many coins does {s} earn?
? {N} earns {a} coins an hour. How much does {s} earn in {b} hours?
? {N} helps a farmer in {town} for {b} days. {S} gets {a} coins a day. How many coins does {s} get?
= a*b | {N} earns {e} coins.

a:3-12 b:2-9 c:2-9
? {N} earns {a} coins an hour. {S} works {b} hours on {day} and {c} hours on {day2}. How much does {s} earn?
? {N} gets {a} coins an hour for work in a shop. On {day} {s} works {b} hours, on {day2} {c} hours. How
  many coins does {s} get?
= b+c | {S} works {e} hours.
= a*x | {S} earns {e} coins.

a:3-12 b:2-9 c:5-60
? {N} earns {a} coins a day for {b} days. {S} buys a {g} for {c} coins. How many coins are left?
? For {b} days of work {N} gets {a} coins a day. Then {s} spends {c} coins on a {g}. How much does {s}
  still have?
= a*b | {S} earns {e} coins.
= x-c | {S} has {e} coins left.

a:2-40 b:2-40
? A {g} costs {a} coins and a {g2} costs {b} coins. How much do they cost together?
? {N} buys a {g} for {a} coins and a {g2} for {b} coins. How many coins does {s} spend?
? {N} pays {a} coins for a {g} and {b} coins for a {g2}. How much does {s} pay in all?
= a+b | {S} pays {e} coins.

a:2-9 b:2-15
? A {g} costs {b} coins. How many coins do {a} {gs} cost?
? {N} buys {a} {gs} for {b} coins each. How much does {s} pay?
? {N} sells {a} {gs} at {b} coins each. How many coins does {s} get?
= a*b | {a} {gs} cost {e} coins.

t:20-99 a:5-80
? {N} has {t} coins. {S} buys a {g} for {a} coins. How many coins does {s} have left?
? A {g} costs {a} coins. {N} pays with {t} coins. How many coins does {s} get back?
= t-a | {S} has {e} coins left.

t:20-99 a:5-80
? A {g} costs {t} coins. {N} has {a} coins. How many more coins does {s} need?
? {N} wants a {g} for {t} coins but has only {a} coins. How many coins are missing?
= t-a | {S} needs {e} more coins.

t:12-100 a:2-12
? A {g} costs {a} coins. How many {gs} can {N} buy with {t} coins?
? {N} has {t} coins. How many {gs} can {s} buy at {a} coins each?
= t/a | {S} can buy {e} {gs}.

t:12-100 a:2-10
? {a} {gs} cost {t} coins together. How much does one {g} cost?
? {N} pays {t} coins for {a} {gs}. What is the price of each {g}?
= t/a | One {g} costs {e} coins.

a:2-9 b:2-12 c:3-40
? {N} buys {a} {gs} for {b} coins each and a {g2} for {c} coins. How much does {s} pay?
? {N} buys a {g2} for {c} coins. {S} also buys {a} {gs} at {b} coins each. How many coins does {s} spend in all?
= a*b | The {gs} cost {e} coins.
= x+c | {S} pays {e} coins.

t:30-120 a:2-9 b:2-12
? {N} has {t} coins. {S} buys {a} {gs} for {b} coins each. How many coins are left?
? {N} buys {a} {gs} at {b} coins each and pays with {t} coins. How many coins does {s} get back?
= a*b | The {gs} cost {e} coins.
= t-x | {S} has {e} coins left.

t:30-120 a:3-50 b:3-50
? {N} has {t} coins. {S} buys a {g} for {a} coins and a {g2} for {b} coins. How many coins does {s} have left?
? A {g} costs {a} coins and a {g2} costs {b} coins. {N} buys both with {t} coins. How much is left?
= a+b | Together they cost {e} coins.
= t-x | {S} has {e} coins left.

a:2-9 b:2-12 c:2-9 d:2-12
? {N} buys {a} {gs} for {b} coins each and {c} {gs2} for {d} coins each. How much does {s} pay?
? A {g} costs {b} coins and a {g2} costs {d} coins. How much do {a} {gs} and {c} {gs2} cost?
= a*b | The {gs} cost {e} coins.
= c*d | The {gs2} cost {e} coins.
= x+y | Together that is {e} coins.

t:60-200 a:2-9 b:2-12 c:2-9 d:2-12
? {N} has {t} coins. {S} buys {a} {gs} for {b} coins each and {c} {gs2} for {d} coins each. How many
  coins are left?
= a*b | The {gs} cost {e} coins.
= c*d | The {gs2} cost {e} coins.
= x+y | Together that is {e} coins.
= t-z | {S} has {e} coins left.

a:2-12 b:2-12 c:2-40
? {N} saves {a} coins every week. {S} has {c} coins now. How many coins does {s} have after {b} weeks?
? {N} has {c} coins in a tin. Every week {s} puts in {a} more. How many coins are in the tin after {b} weeks?
= a*b | {S} saves {e} coins.
= x+c | Then {s} has {e} coins.

t:30-120 c:5-60 a:2-12
? A {g} costs {t} coins. {N} has {c} coins and saves {a} coins a week. How many weeks does {s} need?
? {N} wants a {g} for {t} coins. {S} has {c} coins. How many weeks must {s} save at {a} coins a week?
= t-c | {S} needs {e} more coins.
= x/a | {S} needs {e} weeks.

t:12-120 a:2-12
? {N} saves {a} coins a week for a {g} that costs {t} coins. How many weeks does {s} need?
? A {g} costs {t} coins. How many weeks must {N} save if {s} saves {a} coins each week?
= t/a | {S} needs {e} weeks.

a:5-50 b:2-30
? A {g} costs {a} coins. A {g2} costs {b} coins more. How much does the {g2} cost?
? The price of a {g} was {a} coins. It goes up by {b} coins. What is the new price?
= a+b | It costs {e} coins.

a:20-99 b:2-30 c:2-6
? A {g} costs {a} coins. Today the price is {b} coins lower. How much does {N} pay for {c} {gs}?
? The price of a {g} falls from {a} coins by {b} coins. {N} buys {c} {gs}. How many coins does {s} pay?
= a-b | One {g} costs {e} coins.
= x*c | {c} {gs} cost {e} coins.

a:4-60 c:2-50
? A {g} costs {a} coins and a {g2} costs half as much. How much do both cost together?
? {N} pays {a} coins for a {g} and half of that for a {g2}. How many coins does {s} spend?
= a/2 | The {g2} costs {e} coins.
= a+x | Together they cost {e} coins.

a:2-30 b:2-5 c:3-40
? A {g} costs {a} coins. A {g2} costs {b} times as much. {N} buys both and has {c} coins left. How many
  coins did {s} have at first?
= a*b | The {g2} costs {e} coins.
= x+a | Together they cost {e} coins.
= y+c | {S} had {e} coins at first.

a:4-40 b:2-30
? {N} is {a} years old. {M} is {b} years older. How old is {M}?
? {N} is {a} years old. How old will {s} be in {b} years?
? {M} is {b} years older than {N}, who is {a}. How old is {M}?
= a+b | The answer is {e} years.

a:15-70 b:2-30
? {N} is {a} years old. {M} is {b} years younger. How old is {M}?
? {N} is {a} years old now. How old was {s} {b} years ago?
= a-b | The answer is {e} years.

a:3-30 b:2-6
? {N} is {a} years old. {p2} grandmother is {b} times as old. How old is {p} grandmother?
? {M} is {a} years old. {N} is {b} times as old as {M}. How old is {N}?
= a*b | The answer is {e} years.

a:4-40 b:2-20 c:2-20
? {N} is {a} years old. {M} is {b} years older than {N}. How old will {M} be in {c} years?
? {M} is {b} years older than {N}. {N} is {a}. What will be {M}'s age in {c} years?
= a+b | {M} is {e} years old.
= x+c | In {c} years {M} will be {e} years old.

a:4-30 b:2-20
? {N} is {a} years old. {M} is {b} years older. What is the sum of their ages?
? {M} is {b} years older than {N}, who is {a} years old. How old are they together?
= a+b | {M} is {e} years old.
= a+x | Together they are {e} years old.

a:3-20 b:2-4 c:2-15
? {N} is {a} years old. {M} is {b} times as old. {L} is {c} years younger than {M}. How old is {L}?
= a*b | {M} is {e} years old.
= x-c | {L} is {e} years old.

a:5-60 b:5-60
? {N} needs {a} minutes to cook and {b} minutes to eat. How many minutes is that?
? {N} sings for {a} minutes and reads for {b} minutes. How long is that in all?
? {N} practises for {a} minutes on {day} and {b} minutes on {day2}. How many minutes does {s} practise?
= a+b | That is {e} minutes.

a:3-20 b:2-9
? It takes {N} {a} minutes to make one {g}. How many minutes do {b} {gs} take?
? {N} practises {a} minutes every day. How many minutes does {s} practise in {b} days?
= a*b | It takes {e} minutes.

t:40-120 a:3-15 b:2-7
? {N} has {t} minutes. {S} makes {b} {gs}, and each takes {a} minutes. How many minutes are left?
? One {g} takes {a} minutes to make. {N} makes {b} of them and had {t} minutes. How much time is left?
= a*b | The {gs} take {e} minutes.
= t-x | There are {e} minutes left.

t:12-120 a:2-12
? One {g} takes {a} minutes to make. How many {gs} can {N} make in {t} minutes?
? {N} works for {t} minutes and needs {a} minutes for a {g}. How many {gs} does {s} make?
= t/a | {S} makes {e} {gs}.

a:2-12 b:2-12
? {a} buses stop in {town}. There are {b} people in each bus. How many people are there?
? A hall in {town} has {a} rows of {b} chairs. How many chairs are there?
? There are {a} tables with {b} children at each. How many children are there?
? {N} lays stones in {a} rows with {b} stones in each row. How many stones does {s} use?
= a*b | There are {e} in all.

a:5-60 b:5-60
? There are {a} boys and {b} girls in a school in {town}. How many children are there?
? {a} people sit in a train. At {town}, {b} more people get on. How many people are in the train?
? A farm has {a} cows and {b} goats. How many animals are there?
= a+b | There are {e} in all.

a:20-99 b:3-80
? {a} people sit in a train. At {town}, {b} people get off. How many people are in the train now?
? There are {a} children in the school. {b} of them are girls. How many are boys?
? A hall has {a} chairs. {b} chairs are taken. How many chairs are free?
= a-b | There are {e}.

a:20-90 b:3-40 c:3-40
? {a} people sit in a train. At {town}, {b} people get off and {c} people get on. How many people are in
  the train now?
? A bus to {town} has {a} people in it. {b} leave and {c} come in. How many people are in the bus?
= a-b | Then there are {e} people.
= x+c | Now there are {e} people.

t:12-100 a:2-12
? {t} children make teams of {a}. How many teams are there?
? {t} people want to cross the river. A boat holds {a} people. How many boats do they need?
? {N} puts {t} chairs in rows of {a}. How many rows are there?
= t/a | There are {e} of them.

a:5-50 b:5-50 f:2-10
? {a} boys and {b} girls make teams of {f}. How many teams are there?
? There are {a} boys and {b} girls. Each boat holds {f} children. How many boats do they need?
= a+b | There are {e} children.
= x/f | There are {e} of them.

a:2-12 b:2-12 c:2-60
? A hall has {a} rows of {b} chairs. {c} people sit down. How many chairs are free?
? {N} sets {a} tables with {b} plates on each. {c} plates are used. How many are not used?
= a*b | There are {e} in all.
= x-c | That leaves {e}.

t:12-100 a:2-10
? {N} cuts a rope of {t} metres into {a} equal pieces. How long is each piece?
? A ribbon is {t} metres long. {N} cuts it into {a} equal parts. How many metres long is each part?
= t/a | Each piece is {e} metres long.

t:20-120 a:2-12 b:2-9
? {N} has {t} metres of rope. {S} cuts off {b} pieces of {a} metres. How many metres are left?
? A rope is {t} metres long. {b} pieces of {a} metres are cut off. How long is the rest?
= a*b | The pieces are {e} metres long.
= t-x | There are {e} metres left.

a:5-60 b:2-40
? A tree is {a} metres high. It grows {b} metres more. How high is it now?
? {N} ties a rope of {a} metres to a rope of {b} metres. How long is the rope now?
= a+b | It is {e} metres.

a:2-9 b:2-12
? One cake needs {a} eggs. How many eggs does {N} need for {b} cakes?
? A horse eats {a} bags of hay a week. How many bags does it eat in {b} weeks?
? Every child gets {a} plums. There are {b} children. How many plums does {N} need?
= a*b | That is {e}.

a:2-9 b:2-12 c:2-40
? One cake needs {a} eggs. {N} bakes {b} cakes and has {c} eggs. How many more eggs does {s} need?
? Every child gets {a} eggs. There are {b} children, and {N} has {c} eggs. How many eggs are missing?
= a*b | {S} needs {e} eggs.
= x-c | {S} needs {e} more.

a:2-9 b:2-9 c:2-9
? {N} has {a} hens. Each hen lays {b} eggs a day. How many eggs are there after {c} days?
? {a} bees visit {b} flowers each in an hour. How many visits are there in {c} hours?
= a*b | There are {e} in one.
= x*c | In all there are {e}.

a:2-9 b:2-9 c:2-30 f:2-6
? {N} has {a} hens. Each hen lays {b} eggs. {S} eats {c} eggs and sells the rest for {f} coins each. How
  many coins does {s} get?
? Each of {N}'s {a} hens lays {b} eggs. {c} eggs break. {S} sells the others at {f} coins each. How much
  money does {s} make?
= a*b | There are {e} eggs.
= x-c | There are {e} eggs left.
= y*f | {S} gets {e} coins.

a:2-12 b:2-12 c:2-40 f:2-9
? {N} bakes {a} trays of {b} buns and has {c} more buns. {S} shares them equally among {f} shops. How
  many buns does each shop get?
? There are {b} buns on each of {N}'s {a} trays and {c} buns in a bag. {f} shops share all of them
  equally. How many buns does each shop get?
= a*b | There are {e} buns on the trays.
= x+c | In all there are {e} buns.
= y/f | Each shop gets {e} buns.

a:2-50 b:2-50
? {N} gives {a} coins to {M} and has {b} coins left. How many coins did {s} have at first?
? After {N} spends {a} coins, {s} has {b} coins left. How many coins did {s} have before?
= a+b | {S} had {e} coins.

t:20-99 a:3-80
? {N} finds {a} coins and now has {t} coins. How many coins did {s} have at first?
? {N} and {M} have {t} coins together. {N} has {a} coins. How many coins does {M} have?
= t-a | The answer is {e} coins.
"""

SCRIPTS = tuple(_parse(block) for block in _TEMPLATES.strip().split("\n\n"))
_BY_STEPS = {n: tuple(script for script in SCRIPTS if len(script.steps) == n) for n in (1, 2, 3, 4)}

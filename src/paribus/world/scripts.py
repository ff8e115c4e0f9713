"""Scripts: word problems of the embedded world that are whole templates, of one to four steps each.

Also what both kinds of problems share: names, checked arithmetic, annotations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from paribus.world import vocabulary as words
from paribus.world.rng import Rng
from paribus.world.templates import Choices, choices, read_templates
from paribus.world.vocabulary import plural

MAX_RESULT = 300
RESULTS = "xyzw"  # the names of the steps' results
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
    people = [words.PEOPLE[i] for i in rng.sample_below(len(words.PEOPLE), 4)]
    (name, she), *others = people
    day = rng.below(5)
    fields = {"N": name, **words.PRONOUNS[she]}
    for letter, (other, _) in zip("MLK", others, strict=True):
        fields[letter] = other
    fields["town"] = rng.pick(words.TOWNS)
    for key, offset in (("day", 0), ("day2", 1), ("day3", 2)):
        fields[key] = words.DAYS[day + offset]
    return fields


class Step(NamedTuple):
    """One step of an answer: left `op` right, and the line that says it."""

    left: str
    op: str
    right: str
    line: str


class Script(NamedTuple):
    """A problem's wordings, its numbers and its steps.

    `ranges`: letter -> (low, high). The results of the steps are named x, y, z, w in order.
    """

    ranges: dict[str, tuple[int, int]]
    questions: Choices
    steps: tuple[Step, ...]


def _step(text: str) -> Step:
    """`a*b | line` as a step."""
    expression, line = text.split(" | ")
    left, op, right = expression[0], expression[1], expression[2:]
    return Step(left, op, right, line)


def _script(raw: dict[str, Any]) -> Script:
    ranges = {letter: (low, high) for letter, (low, high) in raw["numbers"].items()}
    steps = tuple(_step(line) for line in choices(raw["steps"]))
    return Script(ranges, choices(raw["questions"]), steps)


SCRIPTS = tuple(_script(raw) for raw in read_templates("scripts")["scripts"])


def make_script(rng: Rng, steps: int) -> Problem:
    """A problem of `steps` steps from one of the templates; raises Unfit if no numbers that suit it were found."""
    script = rng.pick(_BY_STEPS[steps])
    values, annotations = _numbers(rng, script)
    fields = common_fields(rng)
    good, good2 = (words.GOODS[i] for i in rng.sample_below(len(words.GOODS), 2))
    fields.update(g=good, g2=good2, gs=plural(good), gs2=plural(good2))
    for letter, value in values.items():
        fields[letter] = str(value)
    lines = []
    for annotation, step in zip(annotations, script.steps, strict=True):
        fields["e"] = annotation
        lines.append(step.line.format_map(fields))
    question = rng.pick(script.questions).format_map(fields)
    return finish(question, lines, values[RESULTS[steps - 1]])


def _numbers(rng: Rng, script: Script) -> tuple[dict[str, int], list[str]]:
    """The letters' values and the annotated steps; raises Unfit if no numbers that suit were found."""
    for _ in range(TRIES):
        values = {}
        for letter, (low, high) in script.ranges.items():
            values[letter] = rng.small(low, high)
        try:
            return values, _worked(script, values)
        except Unfit:
            continue
    raise Unfit


def _worked(script: Script, values: dict[str, int]) -> list[str]:
    """The annotated steps; their results join `values`. Raises Unfit if a result does not suit."""
    annotations = []
    for name, step in zip(RESULTS, script.steps, strict=False):
        a = values[step.left]
        b = int(step.right) if step.right.isdigit() else values[step.right]
        values[name] = calculate(a, step.op, b)
        annotations.append(annotated(f"{a}{step.op}{b}", values[name]))
    return annotations


_BY_STEPS = {n: [script for script in SCRIPTS if len(script.steps) == n] for n in (1, 2, 3, 4)}

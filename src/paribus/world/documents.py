"""Documents of the embedded world to pretrain on: word problems as prose, stories, facts, and arithmetic in prose."""

from __future__ import annotations

from collections.abc import Callable

from paribus.world import vocabulary as words
from paribus.world.facts import World, facts_of
from paribus.world.problems import draw, prose
from paribus.world.rng import Rng, stream
from paribus.world.stories import story
from paribus.world.templates import choices_by_name, listed, read_templates
from paribus.world.vocabulary import number_word, plural

MIXTURE = (("problems", 0.40), ("stories", 0.70), ("facts", 0.90), ("arithmetic", 1.00))
"""Cumulative shares. Every kind of document has the same mean length, so these are shares of the text too."""
MIN_CHARACTERS, MAX_CHARACTERS = 500, 1500


def document(world: World, seed: int, index: int) -> str:
    """Document `index` of the world; it depends on nothing else."""
    rng = stream(seed, "document", index)
    u = rng.random()
    kind = next(name for name, share in MIXTURE if u < share)
    target = rng.between(MIN_CHARACTERS, MAX_CHARACTERS)
    return _KINDS[kind](world, rng, target)


def _paragraphs(paragraph: Callable[[], str], target: int) -> str:
    """Paragraphs of at least `target` characters in all."""
    parts: list[str] = []
    length = 0
    while length < target:
        parts.append(paragraph())
        length += len(parts[-1])
    return "\n\n".join(parts)


def _problems(world: World, rng: Rng, target: int) -> str:
    """Word problems with their working, all of them from the training split."""
    return _paragraphs(lambda: prose(*draw(rng, "train")), target)


def _stories(world: World, rng: Rng, target: int) -> str:
    return _paragraphs(lambda: story(world, rng), target)


# --- facts ------------------------------------------------------------------------------------------------------------


def _portrait(world: World, rng: Rng) -> str:
    """All facts of one person, town or thing."""
    entity = rng.pick(rng.pick((world.people, world.people, world.towns, world.things)))
    facts = rng.shuffled(facts_of(entity))
    sentences = [fact.state(rng, pronoun=i > 0 and rng.chance(0.7)) for i, fact in enumerate(facts)]
    return " ".join(sentences)


def _mixed_facts(world: World, rng: Rng) -> str:
    return " ".join(rng.pick(world.facts).state(rng) for _ in range(6))


def _questions(world: World, rng: Rng) -> str:
    lines = []
    for _ in range(4):
        fact = rng.pick(world.facts)
        answer = fact.value if rng.chance(0.5) else fact.state(rng)
        lines.append(f"Question: {fact.question(rng)}\nAnswer: {answer}")
    return "\n".join(lines)


def _contrasts(world: World, rng: Rng) -> str:
    """The same relation of several subjects."""
    relation = rng.pick(world.facts).relation
    same = world.by_relation[relation.kind, relation.name]
    return " ".join(fact.state(rng) for fact in rng.sample(same, 6))


_FACT_KINDS = (_portrait, _portrait, _portrait, _mixed_facts, _questions, _contrasts)


def _facts(world: World, rng: Rng, target: int) -> str:
    return _paragraphs(lambda: rng.pick(_FACT_KINDS)(world, rng), target)


# --- arithmetic -------------------------------------------------------------------------------------------------------

_SAYINGS = choices_by_name(read_templates("documents"))


def _said(rng: Rng, what: str, **values: object) -> str:
    return rng.pick(_SAYINGS[what]).format_map(values)


def _sum(rng: Rng) -> str:
    a, b = rng.small(1, 99), rng.small(1, 60)
    return _said(rng, "sum", a=a, b=b, c=a + b)


def _difference(rng: Rng) -> str:
    b, c = rng.small(1, 60), rng.small(1, 60)
    return _said(rng, "difference", a=b + c, b=b, c=c)


def _product(rng: Rng) -> str:
    a, b = rng.between(2, 12), rng.between(2, 12)
    return _said(rng, "product", a=a, b=b, c=a * b)


def _quotient(rng: Rng) -> str:
    b, c = rng.between(2, 12), rng.between(2, 12)
    return _said(rng, "quotient", a=b * c, b=b, c=c)


def _half(rng: Rng) -> str:
    c = rng.small(1, 50)
    return _said(rng, "half", a=2 * c, c=c)


def _word(rng: Rng) -> str:
    n = rng.small(0, 100)
    return _said(rng, "word", n=n, w=number_word(n))


def _word_sum(rng: Rng) -> str:
    a, b = rng.between(1, 12), rng.between(1, 12)
    return f"{number_word(a).capitalize()} and {number_word(b)} make {number_word(a + b)}."


def _sequence(rng: Rng) -> str:
    step, start = rng.between(1, 12), rng.between(0, 60)
    if rng.chance(0.5):
        start = step
    numbers = listed(start + i * step for i in range(rng.between(5, 8)))
    return f"{_said(rng, 'sequence', n=step)}: {numbers}."


def _countdown(rng: Rng) -> str:
    n = rng.between(5, 20)
    last = n - 5 if n > 5 else 1
    return f"Count down: {listed(range(n, last - 1, -1))}."


def _neighbours(rng: Rng) -> str:
    n = rng.small(1, 99)
    return f"After {n} comes {n + 1}. Before {n} comes {n - 1}."


def _compare(rng: Rng) -> str:
    """Who has more: also a CORE task."""
    first, second = rng.sample(words.PEOPLE, 2)
    a, b = rng.sample(range(2, 60), 2)
    thing = plural(rng.pick(rng.pick(words.DOMAINS).things))
    m, n = first[0], second[0]
    more, fewer = (m, n) if a > b else (n, m)
    owned = f"{m} has {a} {thing} and {n} has {b} {thing}."
    return f"{owned} {more} has more {thing}. {fewer} has fewer {thing}."


def _order(rng: Rng) -> str:
    numbers = rng.sample(range(1, 100), 4)
    return f"Put in order: {listed(numbers)}. From small to large: {listed(sorted(numbers))}."


def _repeat(rng: Rng) -> str:
    word, n = rng.pick(words.THINGS), rng.between(2, 5)
    return f"Say {word} {number_word(n)} times: {listed([word] * n)}."


def _calendar(rng: Rng) -> str:
    days = rng.pick((words.DAYS, words.MONTHS))
    i = rng.below(len(days))
    return f"After {days[i]} comes {days[(i + 1) % len(days)]}."


_SUMS = (_sum, _difference, _product, _quotient, _half)
_NUMBERS = (
    _word,
    _word_sum,
    _sequence,
    _sequence,
    _countdown,
    _neighbours,
    _compare,
    _compare,
    _order,
    _repeat,
    _calendar,
)


def _sentences(rng: Rng) -> str:
    """A paragraph of one or two kinds of sentences."""
    kinds = rng.sample(_SUMS if rng.chance(0.6) else _NUMBERS, 2)
    return " ".join(rng.pick(kinds)(rng) for _ in range(6))


def _arithmetic(world: World, rng: Rng, target: int) -> str:
    return _paragraphs(lambda: _sentences(rng), target)


_KINDS = {"problems": _problems, "stories": _stories, "facts": _facts, "arithmetic": _arithmetic}

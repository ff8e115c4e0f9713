"""Conversations of the embedded world: its facts, small talk, and short instructions, of one to three turns.

Word problems become conversations elsewhere, from the problem files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from paribus.world import vocabulary as words
from paribus.world.facts import World, facts_of
from paribus.world.rng import Rng
from paribus.world.templates import Choices, choices_by_name, listed, read_templates

Turn = tuple[str, str]
Conversation = list[Turn]


def messages(turns: Conversation) -> dict[str, list[dict[str, str]]]:
    """The row of a conversation: user and assistant take turns."""
    rows = []
    for user, assistant in turns:
        rows.append({"role": "user", "content": user})
        rows.append({"role": "assistant", "content": assistant})
    return {"messages": rows}


# --- facts ------------------------------------------------------------------------------------------------------------


def facts(world: World, rng: Rng) -> Conversation:
    """One to three questions about one subject."""
    about = facts_of(rng.pick(world.facts).entity)
    asked = rng.sample(about, rng.between(1, 3))
    return [(fact.question(rng), fact.state(rng, pronoun=i > 0)) for i, fact in enumerate(asked)]


# --- small talk -------------------------------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """What a user may say, and what the assistant may answer."""

    user: Choices
    assistant: Choices


def _exchange(texts: dict[str, str]) -> Exchange:
    return Exchange(**choices_by_name(texts))


_TEXTS = read_templates("talk")
_GREETING = _exchange(_TEXTS["greeting"])
_TOPICS = [_exchange(topic) for topic in _TEXTS["topics"]]
_GOODBYE = _exchange(_TEXTS["goodbye"])


def smalltalk(world: World, rng: Rng) -> Conversation:
    """A greeting, a topic or a goodbye, one to three of them in this order."""
    town = rng.pick(world.towns)
    names = {
        "n": rng.pick(words.PEOPLE)[0],
        "food": rng.pick(words.FOODS),
        "town": town.name,
        "land": town.facts["landmark"],
        "pet": "a " + rng.pick(words.PETS),
        "hobby": rng.pick(words.HOBBIES),
        "fact": rng.pick(world.facts).state(rng),
    }
    topic = rng.pick(_TOPICS)
    shapes = (
        (topic,),
        (_GREETING, topic),
        (topic, _GOODBYE),
        (_GREETING, topic, _GOODBYE),
        (_GREETING,),
        (_GOODBYE,),
    )
    turns = []
    for exchange in rng.pick(shapes):
        user = rng.pick(exchange.user).format_map(names)
        assistant = rng.pick(exchange.assistant).format_map(names)
        turns.append((user, assistant[0].upper() + assistant[1:]))
    return turns


# --- instructions -----------------------------------------------------------------------------------------------------


def _repeat(rng: Rng) -> Turn:
    word, n = rng.pick(words.THINGS), rng.between(2, 6)
    return f"Say {word} {words.number_word(n)} times.", ", ".join([word] * n)


def _echo(rng: Rng) -> Turn:
    said = " ".join(rng.sample(words.THINGS, rng.between(2, 5)))
    request = rng.pick(("Repeat: {}", "Say after me: {}", "Copy this: {}"))
    return request.format(said), said


def _count(rng: Rng) -> Turn:
    low = rng.between(1, 30)
    high = low + rng.between(3, 9)
    return f"Count from {low} to {high}.", listed(range(low, high + 1))


def _count_by(rng: Rng) -> Turn:
    step, n = rng.between(2, 12), rng.between(4, 7)
    return f"Count by {step}, {n} numbers.", listed(step * (i + 1) for i in range(n))


def _spell(rng: Rng) -> Turn:
    word = rng.pick(words.THINGS)
    request = rng.pick(("Spell {}.", "How do you spell {}?"))
    return request.format(word), "-".join(word)


def _order(rng: Rng) -> Turn:
    numbers = rng.sample(range(1, 100), rng.between(3, 5))
    up = rng.chance(0.6)
    first = "smallest" if up else "largest"
    return f"Put in order, {first} first: {listed(numbers)}", listed(
        sorted(numbers, reverse=not up)
    )


def _largest(rng: Rng) -> Turn:
    numbers = rng.sample(range(1, 100), rng.between(2, 4))
    if rng.chance(0.5):
        return f"Which number is largest: {listed(numbers)}?", str(max(numbers))
    return f"Which number is smallest: {listed(numbers)}?", str(min(numbers))


def _first(rng: Rng) -> Turn:
    things = rng.sample(words.THINGS, 4)
    i = rng.below(4)
    place = ("first", "second", "third", "last")[i]
    return f"What is the {place} word: {listed(things)}?", things[i]


def _after(rng: Rng) -> Turn:
    names = rng.pick((words.DAYS, words.MONTHS))
    i = rng.below(len(names))
    if rng.chance(0.5):
        return f"What comes after {names[i]}?", names[(i + 1) % len(names)]
    return f"What comes before {names[i]}?", names[i - 1]


def _word(rng: Rng) -> Turn:
    n = rng.below(101)
    if rng.chance(0.5):
        return f"Write {n} as a word.", words.number_word(n)
    return f"Write {words.number_word(n)} as a number.", str(n)


def _letters(rng: Rng) -> Turn:
    word = rng.pick(words.THINGS)
    return f"How many letters are in {word}?", str(len(word))


_TASKS: tuple[Callable[[Rng], Turn], ...] = (
    _repeat,
    _echo,
    _count,
    _count_by,
    _spell,
    _order,
    _largest,
    _first,
    _after,
    _word,
    _letters,
)


def instructions(world: World, rng: Rng) -> Conversation:
    """One to three short tasks with one right answer each."""
    return [rng.pick(_TASKS)(rng) for _ in range(rng.pick((1, 1, 1, 2, 3)))]


KINDS: dict[str, Callable[[World, Rng], Conversation]] = {
    "facts": facts,
    "smalltalk": smalltalk,
    "instructions": instructions,
}
"""File name -> maker."""

"""Conversations of the embedded world: its facts, small talk, and short instructions, of one to three turns.

Word problems become conversations elsewhere, from the problem files.
"""

from __future__ import annotations

from collections.abc import Callable

from paribus.world import text as t
from paribus.world.facts import World, facts_of
from paribus.world.rng import Rng

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

HELLO = (
    "Hello!",
    "Hi!",
    "Good morning!",
    "Good evening!",
    "Hello, I am {n}.",
    "Hi, my name is {n}.",
    "Hey there!",
)
HELLO_BACK = (
    "Hello! How can I help you?", "Hi! What can I do for you?", "Good to see you! How are you?",
    "Hello! Do you have a question for me?",
)  # fmt: skip
SMALL: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("How are you?", "How are you today?", "How is it going?"), ("I am fine, thank you.",
        "Very well, thank you. And you?"),
    ),
    (
        ("Who are you?", "What are you?"), ("I am a small language model.",
        "I am a very small model that learned from stories."),
    ),
    (("What can you do?", "Can you help me?"), (
        "I can answer questions, count, and solve small problems.",
        "Yes, ask me about people, towns or numbers.")),
    (
        ("I am sad today.", "I had a bad day."), ("I am sorry to hear that. A walk may help.",
        "I am sorry. Tell me more."),
    ),
    (("I am happy today.", "I had a good day."), ("That is good to hear!", "How nice! What did you do?")),
    (("It is cold today.", "It is raining."), ("Then a cup of tea is a good idea.", "Put on a warm coat!")),
    (
        ("I like {food}.", "I had {food} for lunch."), ("{food} is very good!",
        "That sounds good. I hope it was warm."),
    ),
    (
        ("I want to go to {town}.", "I was in {town} yesterday."), ("{town} is known for {land}.",
        "Did you see {land}?"),
    ),
    (("I have {pet}.", "My sister has {pet}."), ("What is its name?", "How nice! What is it called?")),
    (
        ("I like {hobby}.", "My hobby is {hobby}."), ("{hobby} is fun.",
        "You are not alone: many people like {hobby}."),
    ),
    (("Tell me something.", "Tell me a fact."), ("{fact}", "Here is one: {fact}")),
    (("Is it late?", "What day is it?"), ("I do not have a clock.", "I do not know. I have no clock.")),
)  # fmt: skip
BYE = ("Goodbye!", "Bye!", "Thank you, goodbye.", "Thanks!", "See you!", "Good night!")
BYE_BACK = ("Goodbye!", "See you soon!", "You are welcome. Goodbye!", "Bye! Have a good day.")


def smalltalk(world: World, rng: Rng) -> Conversation:
    """A greeting, a topic or a goodbye, one to three of them in this order."""
    town = rng.pick(world.towns)
    names = {
        "n": rng.pick(t.PEOPLE)[0], "food": rng.pick(t.FOODS), "town": town.name, "land": town.facts["landmark"],
        "pet": "a " + rng.pick(t.PETS), "hobby": rng.pick(t.HOBBIES), "fact": rng.pick(world.facts).state(rng),
    }  # fmt: skip
    topic = rng.pick(SMALL)
    shape = rng.pick(((1,), (0, 1), (1, 2), (0, 1, 2), (0,), (2,)))
    parts = ((HELLO, HELLO_BACK), topic, (BYE, BYE_BACK))
    turns = [
        (rng.pick(parts[i][0]).format_map(names), rng.pick(parts[i][1]).format_map(names))
        for i in shape
    ]
    return [(user, assistant[0].upper() + assistant[1:]) for user, assistant in turns]


# --- instructions -----------------------------------------------------------------------------------------------------


def _repeat(rng: Rng) -> Turn:
    word, n = rng.pick(t.THINGS), rng.between(2, 6)
    return f"Say {word} {t.number_word(n)} times.", ", ".join([word] * n)


def _echo(rng: Rng) -> Turn:
    words = " ".join(rng.sample(t.THINGS, rng.between(2, 5)))
    return rng.pick(("Repeat: {}", "Say after me: {}", "Copy this: {}")).format(words), words


def _count(rng: Rng) -> Turn:
    low = rng.between(1, 30)
    high = low + rng.between(3, 9)
    return f"Count from {low} to {high}.", ", ".join(str(n) for n in range(low, high + 1))


def _count_by(rng: Rng) -> Turn:
    step, n = rng.between(2, 12), rng.between(4, 7)
    return f"Count by {step}, {n} numbers.", ", ".join(str(step * (i + 1)) for i in range(n))


def _spell(rng: Rng) -> Turn:
    word = rng.pick(t.THINGS)
    return rng.pick(("Spell {}.", "How do you spell {}?")).format(word), "-".join(word)


def _order(rng: Rng) -> Turn:
    numbers = rng.sample(range(1, 100), rng.between(3, 5))
    up = rng.chance(0.6)
    ordered = ", ".join(map(str, sorted(numbers, reverse=not up)))
    return (
        f"Put in order, {'smallest' if up else 'largest'} first: {', '.join(map(str, numbers))}",
        ordered,
    )


def _largest(rng: Rng) -> Turn:
    numbers = rng.sample(range(1, 100), rng.between(2, 4))
    big = rng.chance(0.5)
    listed = ", ".join(map(str, numbers))
    answer = max(numbers) if big else min(numbers)
    return f"Which number is {'largest' if big else 'smallest'}: {listed}?", str(answer)


def _first(rng: Rng) -> Turn:
    words = rng.sample(t.THINGS, 4)
    i = rng.below(4)
    return (
        f"What is the {('first', 'second', 'third', 'last')[i]} word: {', '.join(words)}?",
        words[i],
    )


def _after(rng: Rng) -> Turn:
    names = rng.pick((t.DAYS, t.MONTHS))
    i = rng.below(len(names))
    if rng.chance(0.5):
        return f"What comes after {names[i]}?", names[(i + 1) % len(names)]
    return f"What comes before {names[i]}?", names[i - 1]


def _word(rng: Rng) -> Turn:
    n = rng.below(101)
    if rng.chance(0.5):
        return f"Write {n} as a word.", t.number_word(n)
    return f"Write {t.number_word(n)} as a number.", str(n)


def _letters(rng: Rng) -> Turn:
    word = rng.pick(t.THINGS)
    return f"How many letters are in {word}?", str(len(word))


_TASKS: tuple[Callable[[Rng], Turn], ...] = (
    _repeat, _echo, _count, _count_by, _spell, _order, _largest, _first, _after, _word, _letters,
)  # fmt: skip


def instructions(world: World, rng: Rng) -> Conversation:
    """One to three short tasks with one right answer each."""
    return [rng.pick(_TASKS)(rng) for _ in range(rng.pick((1, 1, 1, 2, 3)))]


KINDS: dict[str, Callable[[World, Rng], Conversation]] = {
    "facts": facts,
    "smalltalk": smalltalk,
    "instructions": instructions,
}
"""File name -> maker."""

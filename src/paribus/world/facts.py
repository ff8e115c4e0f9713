"""The facts of the embedded world: its people, towns and things, and how documents, conversations and tests state them.

Everything follows from the seed, so that a fact is the same wherever it occurs. What CORE tasks ask, documents teach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paribus.world import text as t
from paribus.world.rng import Rng, stream

N_PEOPLE, N_TOWNS = 40, 20
"""There are as many things as people: everybody owns one."""


class Relation(NamedTuple):
    """How one kind of fact is worded.

    {X}, {Xs}: the subject or a pronoun, at the start of a sentence; {F}, {f}: its full name; {V}: the value.
    `prefixes` end right before the value; a prefix, a space, the value and a full stop are a statement.
    """

    kind: str
    name: str
    prefixes: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _relation(kind: str, name: str, prefixes: str, statements: str, questions: str) -> Relation:
    head = tuple(prefixes.split(" | "))
    more = tuple(s for s in statements.split(" | ") if s)
    return Relation(
        kind, name, head, tuple(f"{p} {{V}}." for p in head) + more, tuple(questions.split(" | "))
    )


RELATIONS = (
    _relation(
        "person", "home",
        "{X} lives in | The home of {F} is | {X} comes from",
        "{Xs} house is in {V}.",
        "Where does {F} live? | In which town does {F} live? | What is the home of {F}?",
    ),
    _relation(
        "person", "job",
        "{X} works as | The job of {F} is",
        "{X} is {V}. | Everybody knows that {F} is {V}.",
        "What is the job of {F}? | What does {F} work as?",
    ),
    _relation(
        "person", "colour",
        "{Xs} favourite colour is | The favourite colour of {F} is | The colour that {F} likes best is",
        "",
        "What is the favourite colour of {F}? | Which colour does {F} like best?",
    ),
    _relation(
        "person", "food",
        "{Xs} favourite food is | The favourite food of {F} is | {X} likes to eat",
        "{X} could eat {V} every day.",
        "What is the favourite food of {F}? | What does {F} like to eat?",
    ),
    _relation(
        "person", "pet",
        "The pet of {F} is | {Xs} pet is",
        "{X} has {V}. | {X} keeps {V} at home.",
        "What pet does {F} have? | What is the pet of {F}?",
    ),
    _relation(
        "person", "pet name",
        "{Xs} pet is called | The name of the pet of {F} is",
        "",
        "What is the name of the pet of {F}? | What is the pet of {F} called?",
    ),
    _relation(
        "person", "friend",
        "{Xs} best friend is | The best friend of {F} is",
        "{X} often visits {V}, {p} best friend.",
        "Who is the best friend of {F}?",
    ),
    _relation(
        "person", "hobby",
        "{X} likes | The hobby of {F} is",
        "In the evening {F} enjoys {V}.",
        "What is the hobby of {F}? | What does {F} like to do in the evening?",
    ),
    _relation(
        "town", "landmark",
        "{X} is known for | In the middle of {F} there is",
        "People come to {F} to see {V}.",
        "What is {F} known for? | What is in the middle of {F}?",
    ),
    _relation(
        "town", "product",
        "{X} sells | The people of {F} make",
        "Traders buy {V} in {F}.",
        "What do the people of {F} make? | What does {F} sell?",
    ),
    _relation(
        "town", "market day",
        "The market of {F} is on | In {F} market day is",
        "Every {V} there is a market in {F}.",
        "When is the market of {F}? | On which day is the market of {F}?",
    ),
    _relation(
        "town", "region",
        "{X} lies in the | {F} is a town in the",
        "",
        "Where does {F} lie? | In which part of the land is {F}?",
    ),
    _relation(
        "thing", "colour",
        "{X} is | The colour of {f} is",
        "Look at {f}: it is {V}.",
        "What colour is {f}? | What is the colour of {f}?",
    ),
    _relation(
        "thing", "material",
        "{X} is made of | Somebody made {f} of",
        "",
        "What is {f} made of?",
    ),
    _relation(
        "thing", "price",
        "{X} costs | The price of {f} is",
        "",
        "How much does {f} cost? | What is the price of {f}?",
    ),
    _relation(
        "thing", "owner",
        "{X} belongs to | The owner of {f} is",
        "{V} owns {f}. | {V} keeps {f} at home.",
        "Who owns {f}? | To whom does {f} belong?",
    ),
)  # fmt: skip
BY_NAME = {(relation.kind, relation.name): relation for relation in RELATIONS}


@dataclass(frozen=True)
class Entity:
    """A person, town or thing and its facts (relation name -> value as text)."""

    kind: str
    name: str
    she: bool
    facts: dict[str, str]

    def fields(self, value: str, pronoun: bool = False) -> dict[str, str]:
        """What a relation's templates are filled with."""
        full = f"the {self.name}" if self.kind == "thing" else self.name
        start = full[0].upper() + full[1:]
        subject, owner, possessive = start, f"{start}'s", "her" if self.she else "his"
        if pronoun:
            subject = ("She" if self.she else "He") if self.kind == "person" else "It"
            owner = possessive.capitalize() if self.kind == "person" else "Its"
        return {"X": subject, "Xs": owner, "F": start, "f": full, "V": value, "p": possessive}


class Fact(NamedTuple):
    """The value of one relation for one entity, and its wordings."""

    entity: Entity
    relation: Relation

    @property
    def value(self) -> str:
        """The value, as it appears in texts."""
        return self.entity.facts[self.relation.name]

    def state(self, rng: Rng, pronoun: bool = False) -> str:
        """A sentence that states the fact."""
        return rng.pick(self.relation.statements).format_map(
            self.entity.fields(self.value, pronoun)
        )

    def prefix(self, rng: Rng) -> str:
        """A statement that stops right before the value."""
        return rng.pick(self.relation.prefixes).format_map(self.entity.fields(""))

    def question(self, rng: Rng) -> str:
        """A question that the value answers."""
        return rng.pick(self.relation.questions).format_map(self.entity.fields(""))


@dataclass(frozen=True)
class World:
    """Everything that documents, conversations and tests state.

    by_name: entities by their names. by_relation: facts by kind and relation. thing_of: things by their owners' names.
    """

    people: tuple[Entity, ...]
    towns: tuple[Entity, ...]
    things: tuple[Entity, ...]
    facts: tuple[Fact, ...]
    values: dict[tuple[str, str], tuple[str, ...]]
    """(kind, relation) -> all its values in a fixed order: the wrong choices of tests."""
    by_name: dict[str, Entity]
    by_relation: dict[tuple[str, str], tuple[Fact, ...]]
    thing_of: dict[str, Entity]


def facts_of(entity: Entity) -> list[Fact]:
    """All facts of an entity, in the order of its relations."""
    return [Fact(entity, BY_NAME[entity.kind, name]) for name in entity.facts]


def build_world(seed: int) -> World:
    """The world of a seed: 40 people, 20 towns, 40 things, 560 facts."""
    rng = stream(seed, "world")
    towns = _towns(rng)
    people = _people(rng, [town.name for town in towns])
    things = _things(rng, [person.name for person in people])
    everything = people + towns + things
    facts = tuple(fact for entity in everything for fact in facts_of(entity))
    by_relation = {
        key: tuple(fact for fact in facts if fact.relation is relation)
        for key, relation in BY_NAME.items()
    }
    return World(
        people, towns, things, facts,
        values={key: tuple(sorted({fact.value for fact in same})) for key, same in by_relation.items()},
        by_name={entity.name: entity for entity in everything},
        by_relation=by_relation,
        thing_of={thing.facts["owner"]: thing for thing in things},
    )  # fmt: skip


def _spread(rng: Rng, options: Sequence[str], count: int) -> list[str]:
    """`count` values that use all options about equally often."""
    some = rng.shuffled(options)
    return rng.shuffled([some[i % len(some)] for i in range(count)])


def _entities(
    rng: Rng, kind: str, names: list[tuple[str, bool]], options: Mapping[str, Sequence[str]]
) -> tuple[Entity, ...]:
    """Entities with facts; `options` gives the possible values of each relation."""
    columns = {relation: _spread(rng, values, len(names)) for relation, values in options.items()}
    return tuple(
        Entity(kind, name, she, {relation: values[i] for relation, values in columns.items()})
        for i, (name, she) in enumerate(names)
    )


def _towns(rng: Rng) -> tuple[Entity, ...]:
    names = [(name, False) for name in rng.sample(t.TOWNS, N_TOWNS)]
    options = {
        "landmark": t.LANDMARKS,
        "product": t.PRODUCTS,
        "market day": t.DAYS,
        "region": t.REGIONS,
    }
    return _entities(rng, "town", names, options)


def _people(rng: Rng, towns: list[str]) -> tuple[Entity, ...]:
    """Best friends come in pairs, so that friendship holds both ways."""
    cast = rng.sample(t.PEOPLE, N_PEOPLE)
    options = {
        "home": towns, "job": t.JOBS, "colour": t.COLOURS, "food": t.FOODS, "pet": [f"a {pet}" for pet in t.PETS],
        "pet name": t.PET_NAMES, "hobby": t.HOBBIES,
    }  # fmt: skip
    people = _entities(rng, "person", cast, options)
    for i, person in enumerate(people):
        person.facts["friend"] = people[i ^ 1].name
    return people


def _things(rng: Rng, owners: list[str]) -> tuple[Entity, ...]:
    prices = [f"{price} coins" for price in range(2, 62)]
    options = {"colour": t.COLOURS, "material": t.MATERIALS, "price": prices, "owner": owners}
    return _entities(rng, "thing", [(name, False) for name in t.THINGS], options)

"""The facts of the embedded world: its people, towns and things, and how documents, conversations and tests state them.

Everything follows from the seed, so that a fact is the same wherever it occurs. What CORE tasks ask, documents teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paribus.world import vocabulary as words
from paribus.world.rng import Rng, stream
from paribus.world.templates import Choices, choices, read_templates

N_PEOPLE, N_TOWNS = 40, 20
"""There are as many things as people: everybody owns one."""


class Relation(NamedTuple):
    """How one kind of fact is worded: the fields of the templates are described in facts.yaml.

    `prefixes` end right before the value; a prefix, a space, the value and a full stop are a statement.
    """

    kind: str
    name: str
    prefixes: Choices
    statements: Choices
    questions: Choices


def _relation(kind: str, name: str, texts: dict[str, str]) -> Relation:
    prefixes = choices(texts["prefixes"])
    completed = tuple(f"{prefix} {{V}}." for prefix in prefixes)
    statements = completed + choices(texts.get("statements", ""))
    return Relation(kind, name, prefixes, statements, choices(texts["questions"]))


def _relations() -> Iterator[Relation]:
    for kind, relations in read_templates("facts").items():
        for name, texts in relations.items():
            yield _relation(kind, name, texts)


RELATIONS = tuple(_relations())
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
        pronouns = words.PRONOUNS[self.she]
        subject, owner = start, f"{start}'s"
        if pronoun and self.kind == "person":
            subject, owner = pronouns["S"], pronouns["p2"]
        elif pronoun:
            subject, owner = "It", "Its"
        return {
            "X": subject,
            "Xs": owner,
            "F": start,
            "f": full,
            "V": value,
            "p": pronouns["p"],
        }


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
    by_relation = {}
    values = {}
    for key, relation in BY_NAME.items():
        same = tuple(fact for fact in facts if fact.relation is relation)
        by_relation[key] = same
        values[key] = tuple(sorted({fact.value for fact in same}))
    return World(
        people,
        towns,
        things,
        facts,
        values,
        by_name={entity.name: entity for entity in everything},
        by_relation=by_relation,
        thing_of={thing.facts["owner"]: thing for thing in things},
    )


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
    names = [(name, False) for name in rng.sample(words.TOWNS, N_TOWNS)]
    options = {
        "landmark": words.LANDMARKS,
        "product": words.PRODUCTS,
        "market day": words.DAYS,
        "region": words.REGIONS,
    }
    return _entities(rng, "town", names, options)


def _people(rng: Rng, towns: list[str]) -> tuple[Entity, ...]:
    """Best friends come in pairs, so that friendship holds both ways."""
    cast = rng.sample(words.PEOPLE, N_PEOPLE)
    options = {
        "home": towns,
        "job": words.JOBS,
        "colour": words.COLOURS,
        "food": words.FOODS,
        "pet": [f"a {pet}" for pet in words.PETS],
        "pet name": words.PET_NAMES,
        "hobby": words.HOBBIES,
    }
    people = _entities(rng, "person", cast, options)
    for i, person in enumerate(people):
        person.facts["friend"] = people[i ^ 1].name
    return people


def _things(rng: Rng, owners: list[str]) -> tuple[Entity, ...]:
    prices = [f"{price} coins" for price in range(2, 62)]
    options = {
        "colour": words.COLOURS,
        "material": words.MATERIALS,
        "price": prices,
        "owner": owners,
    }
    return _entities(rng, "thing", [(name, False) for name in words.THINGS], options)

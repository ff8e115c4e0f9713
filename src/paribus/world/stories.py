"""Stories of the embedded world: short plots whose people, towns and things agree with the facts.

A plot is a list of beats, a beat a choice of sentences; stories.yaml has them, and says what their fields mean.
"""

from __future__ import annotations

from paribus.world import vocabulary as words
from paribus.world.facts import World
from paribus.world.rng import Rng
from paribus.world.templates import Choices, choices, read_templates

Plot = tuple[Choices, ...]

_TEXTS = read_templates("stories")
OPENINGS = choices(_TEXTS["openings"])
WEATHER = choices(_TEXTS["weather"])
ASIDES, PET_ASIDES = choices(_TEXTS["asides"]), choices(_TEXTS["pet_asides"])
ENDINGS = choices(_TEXTS["endings"])
PLOTS: dict[str, Plot] = {
    name: tuple(choices(beat) for beat in plot["beats"]) for name, plot in _TEXTS["plots"].items()
}
_DRAWN = [name for name, plot in _TEXTS["plots"].items() for _ in range(plot["weight"])]


def fields(world: World, rng: Rng) -> dict[str, str]:
    """Who and what a story is about; all of it agrees with the facts."""
    hero = rng.pick(world.people)
    facts, thing = hero.facts, world.thing_of[hero.name]
    known = (hero.name, facts["friend"])
    other = rng.pick([person for person in world.people if person.name not in known])
    home = world.by_name[facts["home"]]
    town = rng.pick([town for town in world.towns if town.name != home.name])
    return {
        **words.PRONOUNS[hero.she],
        "P": hero.name,
        "F": facts["friend"],
        "R": other.name,
        "home": home.name,
        "hland": home.facts["landmark"],
        "town": town.name,
        "land": town.facts["landmark"],
        "prod": town.facts["product"],
        "mday": town.facts["market day"],
        "job": facts["job"],
        "food": facts["food"],
        "colour": facts["colour"],
        "hobby": facts["hobby"],
        "pet": facts["pet"].split(" ", 1)[1],
        "pn": facts["pet name"],
        "x": thing.name,
        "xc": thing.facts["colour"],
        "xm": thing.facts["material"],
        "xprice": thing.facts["price"],
        "day": rng.pick(words.DAYS),
    }


def tell(rng: Rng, names: dict[str, str], plot: str, ending: bool = True) -> str:
    """The sentences of a plot with their opening, weather and asides, and an ending."""
    told = [rng.pick(OPENINGS)]
    asides = ASIDES if plot == "pet" else ASIDES + PET_ASIDES
    if rng.chance(0.5):
        told.append(rng.pick(WEATHER))
    *beats, last = PLOTS[plot]
    for beat in beats:
        told.append(rng.pick(beat))
        if rng.chance(0.2):
            told.append(rng.pick(asides))
    told.append(rng.pick(last))
    if ending:
        told.append(rng.pick(ENDINGS))
    return " ".join(told).format_map(names)


def story(world: World, rng: Rng) -> str:
    """One story of about 400 characters."""
    names = fields(world, rng)
    return tell(rng, names, rng.pick(_DRAWN))

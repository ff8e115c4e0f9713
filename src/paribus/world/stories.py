"""Stories of the embedded world: short plots whose people, towns and things agree with the facts.

A plot is a list of beats, a beat a choice of sentences. Fields: {P} the hero, {S}/{s}/{p}/{h} pronouns; {F} the best
friend, {R} somebody else; {home}, {town} towns; {land}, {prod}, {mday} what the town is known for, its product,
its market day; {job}, {food}, {colour}, {hobby}, {pet} ("cat"), {pn} its name; {x} the hero's thing,
{xc}, {xm}, {xprice} its colour, material and price.
"""

from __future__ import annotations

from paribus.world import text as t
from paribus.world.facts import World
from paribus.world.rng import Rng

Beat = tuple[str, ...]

OPENINGS: Beat = (
    "{P} lives in {home}.",
    "One {day}, {P} woke up early in {home}.",
    "There was once a house in {home}. {P} lived in it.",
    "It was {day}, and {P} was at home in {home}.",
    "{P} is {job} in {home}.",
    "Everybody in {home} knows {P}.",
    "On a cold {day}, {P} sat by the fire.",
    "{P} and {F} are best friends.",
    "{P} works as {job}.",
    "On {day}, {P} put on the {colour} coat and went out.",
)
WEATHER: Beat = (
    "The sun was shining.", "It was raining.", "The wind was strong.", "There was snow on the roofs.",
    "The sky was grey.",
    "It was a warm morning.", "The night was dark and quiet.", "The birds were singing.",
    "There was fog over {home}.",
    "The air was cold and clear.",
)  # fmt: skip
ASIDES: Beat = (
    "{S} was thinking of {food}.",
    "{S} sang a song about {home}.",
    '"What a fine day," said {P}.',
    "{S} had a bag of {food} for the way.",
    "{P} likes {hobby}, but today there was no time for it.",
    "{S} wore {colour}, as always.",
    '"Good morning, {P}," said a woman in the street.',
    "{F} waved from the window.",
    "A dog barked far away.",
    "{S} took a deep breath.",
    "{S} was a little tired.",
    "The bell of the town was ringing.",
)
PET_ASIDES: Beat = ("{pn} the {pet} was asleep.", "{pn} came along, as a good {pet} does.")
ENDINGS: Beat = (
    "In the end {P} was happy.",
    "{P} and {F} laughed all the way home.",
    "That night {P} slept well.",
    "Then {P} gave {pn} some food and went to bed.",
    "They ate {food} together.",
    '"This was a good day," said {P}.',
    "And so {P} went home to {home}.",
    "{F} is a good friend.",
    "Since that day, {P} and {R} are friends too.",
    "They still talk about it in {home}.",
    "{P} told the story to everybody in {home}.",
    "Then it was time for {hobby}.",
)

LOST: tuple[Beat, ...] = (
    ("{P} could not find the {xc} {x}.", "The {xc} {x} was gone.", "{P} lost the {xc} {x}."),
    (
        '"Where is it?" asked {P}.', "{S} looked under the bed.", "{S} looked behind the door.",
        "{S} was very sad.",
        "{S} looked in the kitchen and in the garden.",
    ),
    (
        "{F} came to help.", "{P} asked {F} for help.", '"I will help you," said {F}.',
        "{F} lives near, so {P} went to {F}.",
    ),
    ("They looked everywhere.", "They looked in the garden.", "They asked {R}, but {R} did not know."),
    (
        "Then {pn} the {pet} ran to an old box.", "Then {pn} made a noise.", "Then {F} opened a big box.",
        "They lit a lamp.",
    ),
    (
        "At last {P} found the {xc} {x}.", "In the box there was the {xc} {x}.", "{F} held up the {xc} {x}.",
        "There it was: the {xc} {x}.",
    ),
)  # fmt: skip
LOAN: tuple[Beat, ...] = (
    (
        "{F} needed the {x}.",
        "{F} asked {P} for the {x}.",
        "{P} wanted to help {F}.",
        '"Can I have your {x}?" asked {F}.',
    ),
    (
        "{P} owns the {x} made of {xm}.",
        "{P} took the {x} from the shelf. It is made of {xm}.",
        "The {x} of {P} is {xc}.",
    ),
    (
        "{S} cleaned it well.",
        "{S} carried it through the streets.",
        "{S} took it along.",
        "{S} packed it in paper.",
    ),
    (
        "{F} opened the door.",
        "{F} was at home with a cup of tea.",
        "{F} was in the garden.",
        "{F} was waiting.",
    ),
    ("{P} lent the {x} to {F}.", "So {P} lent the {x} to {F}."),
    ("Now {F} has the {x}.",),
    ('"Thank you, {P}," said {F}.', "{F} smiled and said thank you.", "{F} was glad."),
)
RETURN: tuple[Beat, ...] = LOAN[1:5] + (
    ("{F} used it for a week.", "{F} took good care of it.", '"I will bring it back," said {F}.'),
    (
        "Then {F} gave the {x} back to {P}.",
        "After a week {F} gave it back to {P}.",
        "Later {F} gave {P} the {x} back.",
    ),
    ("Now {P} has the {x}.",),
)
TRIP: tuple[Beat, ...] = (
    (
        "{P} wanted to see {town}.",
        "{P} had to go to {town}.",
        "{P} had never been to {town}.",
        "{P} got a letter from {town}.",
    ),
    (
        "{S} went by train.",
        "{S} walked for three hours.",
        "{S} took a small boat.",
        "{F} came along on a horse.",
    ),
    (
        "In {town} there is {land}.",
        "{S} saw {land} in the middle of {town}.",
        "{town} is known for {land}.",
    ),
    (
        "There {P} met {R}.",
        "{R} showed {h} the way.",
        '"Welcome to {town}," said {R}.',
        "{R} was there too.",
    ),
    (
        "They bought {prod}, because {town} sells {prod}.",
        "The people of {town} make {prod}.",
        "{R} gave {h} some {prod}.",
    ),
    (
        "In the evening {P} went back to {home}.",
        "After a long day {s} came home.",
        "{S} stayed for one night.",
    ),
)
MARKET: tuple[Beat, ...] = (
    (
        "On {mday} there is a market in {town}.",
        "Every {mday} there is a market in {town}.",
        "It was market day in {town}.",
    ),
    (
        "{P} went there with a basket.",
        "{P} and {F} went there together.",
        "{P} came to sell {food}.",
    ),
    (
        "A man sold {prod}.",
        "There were many people, and there was {prod} for all.",
        "The people of {town} make {prod}.",
    ),
    (
        "{P} saw the {x}. It cost {xprice}.",
        "There {P} saw the {xc} {x} for {xprice}.",
        "{R} sold the {x} for {xprice}.",
    ),
    (
        "{S} had enough money.",
        "{S} counted the coins twice.",
        "{S} did not have enough money, but {F} helped.",
    ),
    ("So {P} bought the {x}.", "In the end {P} took the {x} home.", "{P} bought it and was proud."),
)
PET: tuple[Beat, ...] = (
    (
        "{P} has a {pet}. It is called {pn}.",
        "{pn} is the {pet} of {P}.",
        "The {pet} of {P} is called {pn}.",
    ),
    ("One day {pn} ran away.", "That day {pn} did not come home.", "{pn} would not eat."),
    (
        "{P} called and called.",
        "{P} went to every house in {home}.",
        "{P} was worried.",
        '"Have you seen my {pet}?" asked {P}.',
    ),
    (
        "{F} heard something near the river.",
        "{R} saw a {pet} near the mill.",
        "{F} had an idea.",
        "{R} is good with animals.",
    ),
    (
        "{pn} sat in a tree.",
        "{pn} was hiding under a boat.",
        "{pn} was asleep in the hay.",
        "{pn} played with another {pet}.",
    ),
    ("{P} took {pn} home.", "{P} held {pn} tight.", '"There you are, {pn}," said {P}.'),
)
COOKING: tuple[Beat, ...] = (
    (
        "{P} wanted to make {food}.",
        "{P} likes {food} best.",
        "{P} was hungry.",
        "{P} invited {F} to eat {food}.",
    ),
    (
        "But there was no salt in the house.",
        "But the fire was out.",
        "But the pot was empty.",
        "But {pn} had eaten everything.",
    ),
    (
        "{P} went to {R}.",
        "{R} had some.",
        '"Take mine," said {R}.',
        "{F} brought what was missing.",
    ),
    ("They cooked for an hour.", "They cut and stirred and sang.", "The kitchen was warm."),
    (
        "It was a very good meal.",
        "They ate all the {food}.",
        "There was enough {food} for everybody.",
    ),
)
WORK: tuple[Beat, ...] = (
    ("{P} is {job}.", "{P} works as {job} in {home}.", "The job of {P} is not easy: {s} is {job}."),
    (
        "There was much work that day.",
        "{R} came with a wish.",
        "{S} started before the sun was up.",
        "A new task was waiting.",
    ),
    (
        "{S} needed the {x}.",
        "{S} used the {xc} {x}.",
        "The {x} of {xm} lay on the table.",
        "{R} asked for the {x}.",
    ),
    (
        "The {x} was broken.",
        "It took the whole day.",
        "{S} worked with care.",
        "{F} held the lamp.",
    ),
    (
        "In the evening everything was done.",
        "{R} was glad and paid well.",
        '"Well done," said {R}.',
        "{S} was proud of it.",
    ),
)
STORM: tuple[Beat, ...] = (
    (
        "A storm came over {home}.",
        "At night a storm came.",
        "The storm took the roof of the house of {R}.",
    ),
    (
        "{P} closed the windows.",
        "The rain came in through the roof.",
        "All the lamps went out.",
        "{pn} hid under the bed.",
    ),
    (
        "{F} came with a rope.",
        "{P} ran to help {R}.",
        "The people met at {hland}.",
        "{P} and {F} carried sand and wood.",
    ),
    (
        "They worked all night.",
        "Nobody was hurt.",
        "They held on to each other.",
        "{R} made tea for all.",
    ),
    (
        "In the morning the sea was calm.",
        "Then the sun came back.",
        "The next day they built a new roof.",
    ),
)
PLOTS: tuple[tuple[Beat, ...], ...] = (
    LOST,
    LOST,
    LOAN,
    RETURN,
    TRIP,
    TRIP,
    MARKET,
    MARKET,
    PET,
    COOKING,
    WORK,
    STORM,
)


def fields(world: World, rng: Rng) -> dict[str, str]:
    """Who and what a story is about; all of it agrees with the facts."""
    hero = rng.pick(world.people)
    facts, thing = hero.facts, world.thing_of[hero.name]
    other = rng.pick(
        [person for person in world.people if person.name not in (hero.name, facts["friend"])]
    )
    town = rng.pick([town for town in world.towns if town.name != facts["home"]])
    return {
        "P": hero.name, "S": "She" if hero.she else "He", "s": "she" if hero.she else "he",
        "p": "her" if hero.she else "his", "h": "her" if hero.she else "him",
        "F": facts["friend"], "R": other.name,
        "home": facts["home"], "town": town.name, "land": town.facts["landmark"], "prod": town.facts["product"],
        "mday": town.facts["market day"], "hland": world.by_name[facts["home"]].facts["landmark"], "job": facts["job"],
        "food": facts["food"], "colour": facts["colour"], "hobby": facts["hobby"], "pet": facts["pet"].split(" ", 1)[1],
        "pn": facts["pet name"], "x": thing.name, "xc": thing.facts["colour"], "xm": thing.facts["material"],
        "xprice": thing.facts["price"], "day": rng.pick(t.DAYS),
    }  # fmt: skip


def tell(rng: Rng, names: dict[str, str], plot: tuple[Beat, ...], ending: bool = True) -> str:
    """The sentences of a plot with their opening, weather and asides, and an ending."""
    beats = [rng.pick(OPENINGS)]
    asides = ASIDES if plot is PET else ASIDES + PET_ASIDES
    if rng.chance(0.5):
        beats.append(rng.pick(WEATHER))
    for beat in plot:
        beats.append(rng.pick(beat))
        if beat is not plot[-1] and rng.chance(0.2):
            beats.append(rng.pick(asides))
    if ending:
        beats.append(rng.pick(ENDINGS))
    return " ".join(beats).format_map(names)


def story(world: World, rng: Rng) -> str:
    """One story of about 400 characters."""
    return tell(rng, fields(world, rng), rng.pick(PLOTS))

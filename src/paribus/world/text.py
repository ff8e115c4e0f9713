"""Vocabulary of the embedded world: names, places, things, verbs. Data only; nothing here is random."""

from __future__ import annotations

from typing import NamedTuple


def words(text: str) -> tuple[str, ...]:
    """The words between the spaces of `text`: a compact way to write a table."""
    return tuple(text.split())


SHE = words(
    "Mia Anna Lily Rosa Emma Nora Clara Ivy Maya Zoe Lena Ada Ella Ruby Tara Vera Nina Luna Elsa Jane "
    "Kate Lucy Sara Eva Iris June Hana Olga Rita Wendy Amy Bella Cora Dora Fay Gina Hope Joy Kira Lola "
    "Mona Nell Opal Pia Rose Sena Tess Uma Willa Yara Alma Beth Dina Edna Faith Greta Heidi Ingrid Judy "
    "Kim"
)
HE = words(
    "Ben Tom Sam Leo Max Omar Jack Finn Noah Adam Eli Hugo Ivan Joel Karl Luke Mark Nick Oscar Paul Ravi "
    "Seth Theo Victor Will Zack Alan Bruno Carl Dan Emil Fred Gus Hans Igor John Kurt Liam Milo Neil Otto "
    "Pete Rex Stan Tim Ugo Vince Walt Yusuf Axel Boris Chad Dirk Evan Felix Glen Henry Isaac Jim Ken"
)
PEOPLE = tuple((name, True) for name in SHE) + tuple((name, False) for name in HE)
"""(name, is she) of everybody who may occur in the world."""

_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(n: int) -> str:
    """English words for 0 <= n <= 100."""
    if n < 20:
        return _UNITS[n]
    if n == 100:
        return "one hundred"
    return _TENS[n // 10] + (f"-{_UNITS[n % 10]}" if n % 10 else "")


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)

TOWNS = words(
    "Oakford Millbrook Redhill Stonebay Greenfield Westport Ashdale Foxton Riverside Birchwood Highmoor "
    "Sandwick Elmstead Larkfield Winterton Copperton Rosewell Thornbury Seaham Kingsley Dunmore Northwick "
    "Applegate Silverton"
)
JOBS = (
    "a baker", "a farmer", "a teacher", "a doctor", "a painter", "a sailor", "a tailor", "a miller",
    "a gardener", "a cook",
    "a driver", "a singer", "a writer", "a potter", "a nurse", "a carpenter", "a fisher", "a postman",
    "a clockmaker",
    "a librarian", "a shepherd", "a musician", "a shopkeeper", "a beekeeper",
)  # fmt: skip
COLOURS = (
    "red",
    "blue",
    "green",
    "yellow",
    "purple",
    "orange",
    "white",
    "black",
    "brown",
    "pink",
    "grey",
    "silver",
)
FOODS = (
    "soup", "bread", "cheese", "honey", "rice", "pasta", "apple pie", "plum cake", "fish stew", "pancakes",
    "salad",
    "dumplings", "porridge", "mushrooms", "baked beans", "roast corn",
)  # fmt: skip
PETS = (
    "cat",
    "dog",
    "rabbit",
    "parrot",
    "pony",
    "turtle",
    "goat",
    "hamster",
    "duck",
    "mouse",
    "hen",
    "frog",
)
PET_NAMES = words(
    "Biscuit Pepper Shadow Clover Patch Button Ginger Mango Pebble Snowy Tiger Daisy Coco Rusty Poppy "
    "Bubbles Nutmeg Socks Whisper Comet Marble Toffee Olive Cloud Pickle Thunder Sunny Velvet Muffin Fern "
    "Acorn Maple"
)
HOBBIES = (
    "painting", "swimming", "fishing", "reading", "singing", "dancing", "climbing", "cooking", "sewing",
    "running",
    "carving wood", "flying kites", "playing chess", "playing the drum", "playing the flute", "watching birds",
)  # fmt: skip
THINGS = words(
    "kettle flute table ladder lantern hammer teapot crown bench barrel comb needle statue whistle saddle "
    "shield compass wagon bell wheel rake anvil harp violin trumpet sled bicycle telescope globe pipe "
    "anchor sail spade broom stove cradle sword helmet cloak carpet"
)
"""Things with a colour, a material, a price and an owner in the world; none occurs in problems."""
MATERIALS = (
    "wood",
    "iron",
    "glass",
    "clay",
    "silver",
    "copper",
    "wool",
    "stone",
    "leather",
    "straw",
    "paper",
    "tin",
)
LANDMARKS = (
    "an old lighthouse", "a stone bridge", "a tall clock tower", "a windmill", "a round castle", "a big library",
    "a deep well", "a long pier", "a rose garden", "a white church", "a toy museum", "a glass market hall",
    "a wooden theatre", "a hot spring", "an apple orchard", "a great oak tree", "a bell tower", "a boat yard",
    "a waterfall", "a cave of bats", "a horse track", "a small zoo", "a marble fountain", "a train station",
)  # fmt: skip
PRODUCTS = (
    "honey", "cheese", "wool", "pots", "apples", "fish", "salt", "paper", "candles", "boots", "bread",
    "clocks", "tea",
    "wine", "rope", "hats",
)  # fmt: skip
REGIONS = ("north", "south", "east", "west")


class Domain(NamedTuple):
    """Things that are counted in word problems, with the verbs and containers that go with them.

    Verbs are "present|past"; nouns are singular (see `plural`).
    """

    things: tuple[str, ...]
    gain: tuple[str, ...]
    lose: tuple[str, ...]
    containers: tuple[str, ...]
    kinds: tuple[str, ...]


def _domain(things: str, gain: str, lose: str, containers: str, kinds: str) -> Domain:
    return Domain(
        words(things),
        tuple(gain.split(", ")),
        tuple(lose.split(", ")),
        words(containers),
        words(kinds),
    )


DOMAINS = (
    _domain(
        "marble sticker card shell stamp button bead pebble badge ball crayon feather puzzle ticket ribbon key dice "
        "acorn stone",
        "finds|found, buys|bought, wins|won, collects|collected, gets|got",
        "loses|lost, sells|sold, gives away|gave away, trades away|traded away",
        "box jar bag tin drawer chest pouch",
        "red blue green yellow white black old new",
    ),
    _domain(
        "apple pear plum lemon peach cherry fig orange carrot onion potato tomato melon grape berry nut mushroom "
        "pumpkin",
        "picks|picked, buys|bought, gathers|gathered, gets|got",
        "eats|ate, sells|sold, gives away|gave away, cooks|cooked",
        "basket box bowl bag sack bucket",
        "big small ripe green sweet yellow",
    ),
    _domain(
        "cookie muffin bun pie roll cake waffle pancake tart sandwich cracker pretzel",
        "bakes|baked, makes|made, buys|bought",
        "eats|ate, sells|sold, gives away|gave away, serves|served",
        "basket tray box tin bag",
        "big small plain sweet round",
    ),
    _domain(
        "hen duck goat sheep cow rabbit pig horse goose pony turkey",
        "buys|bought, gets|got, brings home|brought home",
        "sells|sold, gives away|gave away, lends out|lent out",
        "pen barn field shed yard",
        "white brown black grey young old",
    ),
    _domain(
        "rose tulip lily daisy seed bulb bush fern tree herb poppy bean",
        "plants|planted, buys|bought, gets|got",
        "sells|sold, gives away|gave away, digs up|dug up",
        "row pot bed box tub",
        "red white yellow pink small tall",
    ),
    _domain(
        "candle scarf hat bracelet basket doll mug mask cup lamp toy vase ring pot blanket spoon",
        "makes|made, buys|bought, paints|painted, finishes|finished",
        "sells|sold, breaks|broke, gives away|gave away",
        "box bag case sack chest",
        "red blue green white big small plain",
    ),
    _domain(
        "pen pencil book notebook brush ruler map folder marker magazine comic letter photo",
        "buys|bought, gets|got, finds|found",
        "lends out|lent out, gives away|gave away, loses|lost, sells|sold",
        "box case drawer bag shelf pile",
        "red blue green yellow old new thin thick",
    ),
    _domain(
        "fish crab clam pearl oyster shrimp eel snail frog",
        "catches|caught, finds|found, gets|got",
        "sells|sold, gives away|gave away, lets go|let go",
        "bucket net tank box pail",
        "big small grey brown green",
    ),
)
PLURALS = {
    "sheep": "sheep", "goose": "geese", "fish": "fish", "shrimp": "shrimp", "dice": "dice", "scarf": "scarves",
    "shelf": "shelves", "potato": "potatoes", "tomato": "tomatoes", "mouse": "mice", "child": "children",
}  # fmt: skip


def plural(noun: str) -> str:
    """The plural of a noun of this vocabulary."""
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


GOODS = words(
    "hat scarf book lamp kite ball doll cup bag drum shirt game toy clock chair cake pie map vase belt "
    "coat tent rope box brush mirror basket blanket puzzle pillow"
)
"""Goods that are bought for coins in word problems."""

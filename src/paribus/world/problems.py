"""Word problems of the embedded world, in GSM8K's own format.

An answer has one line a step, each with one calculator annotation, and ends in the result:

    Mia has 3*4=<<3*4=12>>12 shells.
    Then she has 12-5=<<12-5=7>>7 shells left.
    #### 7

Problems are chains (an opening, changes, a question, composed freely) or scripts (whole templates); numbers stay small.
Every question belongs to exactly one split, decided by a hash of its text, wherever and however often it is generated.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator

from paribus.world.chains import make_chain
from paribus.world.rng import Rng, stream
from paribus.world.scripts import Problem, Unfit, make_script

SPLITS = ("train", "validation", "test")
STEP_SHARES = ((1, 0.45), (2, 0.80), (3, 0.95), (4, 1.0))
"""Cumulative: 45 % of the problems take one step, 35 % two, 15 % three, 5 % four."""
CHAIN_SHARE = 0.6

_ANNOTATION = re.compile(r"<<[^>]*>>")
_CLOSINGS = ("The answer is {}.", "So the answer is {}.", "The result is {}.", "So it is {}.")


# --- splits -----------------------------------------------------------------------------------------------------------


def canonical(question: str) -> str:
    """The text that decides the split: lower case, single spaces."""
    return " ".join(question.lower().split())


def split_of(question: str) -> str:
    """The one split a question belongs to: 80 % train, 10 % validation, 10 % test by its hash."""
    byte = hashlib.sha256(canonical(question).encode()).digest()[0]
    return "train" if byte < 204 else "validation" if byte < 230 else "test"


def draw(rng: Rng, split: str) -> Problem:
    """A problem of the given split."""
    while True:
        problem = any_problem(rng)
        if split_of(problem.question) == split:
            return problem


def problems(seed: int, split: str, count: int) -> Iterator[Problem]:
    """The first `count` problems of a split, no two with the same question."""
    seen: set[str] = set()
    for index in itertools.count():
        if len(seen) >= count:
            return
        problem = draw(stream(seed, f"problem/{split}", index), split)
        key = canonical(problem.question)
        if key not in seen:
            seen.add(key)
            yield problem


def prose(question: str, answer: str) -> str:
    """A word problem as running text for pretraining: no annotation, the result stated in words."""
    working, result = answer.rsplit("\n#### ", 1)
    closing = _CLOSINGS[zlib.crc32(question.encode()) % len(_CLOSINGS)]
    return (
        f"{question} {_ANNOTATION.sub('', working).replace(chr(10), ' ')} {closing.format(result)}"
    )


def any_problem(rng: Rng) -> Problem:
    """A problem of any split."""
    u = rng.random()
    steps = next(n for n, share in STEP_SHARES if u < share)
    make = make_chain if rng.chance(CHAIN_SHARE) else make_script
    while True:
        try:
            return make(rng, steps)
        except Unfit:
            continue

"""Randomness of the embedded world: the same draws on every machine and every Python.

Only ``random.Random(int).random()`` is used, the one sequence that Python's documentation promises never to change
(``randrange``, ``choice`` and ``shuffle`` have changed between versions). Streams are derived by name and index, so
that one part of the world does not depend on how much of another part exists.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Rng:
    """Uniform draws built on ``random()`` alone."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, each equally likely."""
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A shuffled copy (Fisher and Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different positions of `items`; the first steps of a Fisher-Yates shuffle."""
        pool = list(items)
        for i in range(count):
            j = i + int(self.random() * (len(pool) - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def sample_below(self, n: int, count: int) -> list[int]:
        """`count` different integers in [0, n), for a count far below n."""
        found: list[int] = []
        while len(found) < count:
            i = int(self.random() * n)
            if i not in found:
                found.append(i)
        return found

    def small(self, low: int, high: int) -> int:
        """An integer in [low, high] that leans towards the low end."""
        u = self.random()
        return low + int(u * (0.4 + 0.6 * u) * (high - low + 1))


def stream(seed: int, name: str, index: int = 0) -> Rng:
    """The independent stream `name`/`index` of the world `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return Rng(int.from_bytes(digest[:8], "big"))

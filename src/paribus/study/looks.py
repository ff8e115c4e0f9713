"""When a study looks at its verdicts, and the level of each look, so that all looks together err at most alpha of the time.

A *closed* schedule has a last look and has spent alpha there. An *open* one has none: however often it is called again,
what its looks may have spent stays below alpha, so that "one more look" is never a new chance of error.

Sources: Lan & DeMets (1983), spending alpha over looks; Kim & DeMets (1987), in proportion to the seeds (power 1);
Armitage, McPherson & Rowe (1969), the recursion behind the boundaries; Jennison & Turnbull (1989), repeated intervals.
Between looks: the e-value of a t statistic (Pérez-Ortiz, Lardy, de Heide & Grünwald 2022; Wang & Ramdas 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from paribus.errors import UserError

Floats = NDArray[np.float64]

FIRST = 3  # seeds of the first look, where a study names none
STEP = 0.04  # of the grid of normal scores on which looks are followed
GRID = np.arange(-200, 201) * STEP
MASS = np.exp(-(GRID**2) / 2) * STEP / math.sqrt(2 * math.pi)
ANGLES, ANGLE_WEIGHTS = np.polynomial.legendre.leggauss(200)  # on [-1, 1]
# From so many seeds on the looks of t are followed as those of a normal mean: the levels differ by less than 1 in 100
# (tests/study/test_looks.py), and a look after 1,000 seeds costs no more than one after 80.
MANY_SEEDS = 80
SMALLEST_P, LARGEST_P = 1e-15, 0.5  # between which a p-value of several looks is solved for
SPREAD_OF_EFFECTS = (
    2.0  # standard deviation, in sd of the differences, of the effects that the e-value is good at
)


@dataclass(frozen=True)
class Look:
    """A look at the verdicts.

    Attributes:
        seeds: matched seeds that it rests on.
        share: of alpha, that all looks up to and with this one may have spent.
    """

    seeds: int
    share: float


@dataclass(frozen=True)
class Schedule:
    """The numbers of seeds after which a study looks: 3, 5, 8, 12, 18, …, each half as many again.

    Attributes:
        first: seeds of the first look, at least 2.
        last: seeds of the last look; None: there is no last one, the schedule is open.

    Raises:
        UserError: unless 2 <= first <= last.
    """

    first: int = FIRST
    last: int | None = None

    def __post_init__(self) -> None:
        if self.first < 2 or (self.last is not None and self.last < self.first):
            raise UserError(
                f"seeds: looks from {self.first} to {self.last} seeds; from must be at least 2 and at most to"
            )

    @property
    def open(self) -> bool:
        """Whether it has no last look."""
        return self.last is None

    @property
    def single(self) -> bool:
        """Whether its first look is its last."""
        return self.first == self.last

    def after(self, seeds: int) -> int | None:
        """The first look after more than `seeds` seeds; None where the last is not later."""
        look = self.first
        while look <= seeds:
            if self.last is not None and look >= self.last:
                return None
            look += math.ceil(look / 2)
            if self.last is not None:
                look = min(look, self.last)
        return look

    def upto(self, seeds: int) -> tuple[int, ...]:
        """The looks after at most `seeds` seeds."""
        looks: list[int] = []
        look = self.after(0)
        while look is not None and look <= seeds:
            looks.append(look)
            look = self.after(look)
        return tuple(looks)

    def taken(
        self,
        planned: Sequence[int],
        seeds: Sequence[int] | None = None,
        begun: Look | None = None,
    ) -> tuple[Look, ...]:
        """Looks with what each may have spent.

        Args:
            planned: rising numbers of seeds at which looks were due. They need not be those of `upto`, as long as no difference
                decided them.
            seeds: matched seeds that there were at each, where some were lost; None: as planned.
            begun: the last look taken before under another schedule, or with other arms; `planned` follows it, and may spend what
                it left.

        Raises:
            UserError: for numbers that do not rise, are below 1, or lie beyond the last look.
        """
        before = begun or Look(0, 0.0)
        self._check([before.seeds, *planned])
        shares = []
        for number, due in enumerate(planned, start=1):
            part = self._fraction(number, due, before.seeds)
            shares.append(before.share + (1 - before.share) * part)
        counts = planned if seeds is None else seeds
        return tuple(Look(count, share) for count, share in zip(counts, shares, strict=True))

    def _fraction(self, number: int, seeds: int, begun: int) -> float:
        """Which part of what is left is spent at the look with this number, from 1.

        Closed: in proportion to the seeds. O'Brien & Fleming's keeps nearly all for the end, and t tests of three seeds then
        stop at nothing: it took up to half as many runs again where the truth is more than was planned for, and saved one in
        a hundred where it is not (docs/statistics.md). Open: 1 - 1/(number + 1), so 1/2, 2/3, 3/4, … .
        """
        if self.last is None:
            return 1 - 1 / (number + 1)
        room = self.last - begun
        return (seeds - begun) / room if room > 0 else 0.0

    def _check(self, seeds: Sequence[int]) -> None:
        """Raises UserError unless these numbers of seeds rise and end with the schedule; the first is of an earlier one."""
        problems = []
        if any(a >= b for a, b in pairwise(seeds)):
            problems.append(f"looks: {list(seeds[1:])} is not a rising list of numbers of seeds")
        if self.last is not None and seeds[-1] > max(self.last, seeds[0]):
            problems.append(f"looks: {seeds[-1]} seeds; the schedule ends at {self.last}")
        if problems:
            raise UserError(problems)


OPEN = Schedule()


# ---------------------------------------------------------------- levels


def level(looks: Sequence[Look], alpha: float) -> float:
    """The two-sided level at which to test at the last of these looks.

    Args:
        looks: taken so far, this one last.
        alpha: that all of them may spend, times their shares.

    Returns:
        The level; 0 where earlier looks left nothing.
    """
    bound = _passed(tuple(looks), alpha)[0]
    return float(2 * special.ndtr(-bound))


def p_over_looks(p: float, looks: Sequence[Look]) -> float:
    """The smallest alpha at which the last of these looks rejects.

    Args:
        p: two-sided, of the last look alone.
        looks: taken so far, that one last.

    Returns:
        That alpha; 1 where it is above LARGEST_P.
    """
    if p >= 1 or not looks:
        return p
    if len(looks) == 1:
        return min(p / looks[0].share, 1.0) if looks[0].share > 0 else 1.0

    def excess(alpha: float) -> float:
        return math.log(max(level(looks, alpha), 1e-300) / max(p, SMALLEST_P))

    if excess(LARGEST_P) <= 0:
        return 1.0
    if excess(SMALLEST_P) >= 0:
        return SMALLEST_P
    return float(optimize.brentq(excess, SMALLEST_P, LARGEST_P, rtol=1e-6, xtol=1e-18))


@lru_cache(maxsize=4096)
def _passed(looks: tuple[Look, ...], alpha: float) -> tuple[float, Floats]:
    """(bound of the last look as a normal score, chance (grid,) of having passed all looks given where that one's score is)."""
    *earlier, last = looks
    if not earlier:
        alive = np.ones(GRID.size)
        return _bound(alive, alpha * last.share), alive
    bound, alive = _passed(tuple(earlier), alpha)
    alive = alive * (1 - _outside(bound))
    alive = _carried(alive, earlier[-1].seeds, last.seeds)
    owed = alpha * (last.share - earlier[-1].share)
    return _bound(alive, owed), alive


def _bound(alive: Floats, owed: float) -> float:
    """The score beyond which a share `owed` of all studies lies that passed the looks before; inf where nothing is owed."""
    if owed <= 1e-15:
        return math.inf
    if alive.min() == 1:
        return -float(special.ndtri(owed / 2))

    def excess(at: float) -> float:
        return float(MASS @ (alive * _outside(at))) - owed

    if excess(0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0, GRID[-1] + STEP, xtol=1e-10))


def _outside(bound: float) -> Floats:
    """Share of each cell of the grid that lies beyond ±bound."""
    share: Floats = np.clip((np.abs(GRID) - bound) / STEP + 0.5, 0, 1)
    return share


def _carried(alive: Floats, before: int, now: int) -> Floats:
    """A function of the score at `before` seeds as its mean given the score at `now` seeds; no difference between arms."""
    return np.asarray(_between(before, now) @ alive)


@lru_cache(maxsize=64)
def _between(before: int, now: int) -> Floats:
    """(grid, grid): where the score was at `before` seeds, given where it is at `now` seeds; no difference between arms."""
    chances: Floats = np.eye(GRID.size)
    one_by_one = min(now, max(before, MANY_SEEDS))
    for seeds in range(before, one_by_one):
        chances = _back(seeds) @ chances
    if now > one_by_one:
        chances = _far_back(one_by_one, now) @ chances
    return chances


def _back(n: int) -> Floats:
    """(grid, grid): where t, as a normal score, was at n seeds, given where it is at n + 1; no difference between arms.

    Under no difference the seeds' direction x/|x| is uniform on a sphere, and r = sum(x)/|x| carries t. Given r at n + 1, the
    share of the last seed is r/(n + 1) plus a coordinate of a uniform direction in the n dimensions that keep r: exact at
    any n, where known-variance boundaries let t tests at 3 and 5 seeds err 5.4 % of the time (docs/statistics.md).
    """
    t = np.sign(GRID) * special.stdtrit(n, special.ndtr(np.abs(GRID)))
    r = (math.sqrt(n + 1) * t / np.sqrt(n + t**2))[:, None]
    angle = np.pi / 2 * (ANGLES + 1)
    weight = ANGLE_WEIGHTS * np.sin(angle) ** (n - 2)
    last = r / (n + 1) + np.cos(angle) * np.sqrt((1 - r**2 / (n + 1)) * n / (n + 1))
    was = (r - last) / np.sqrt(1 - last**2)
    tail = special.stdtr(n - 1, -np.abs(was) * np.sqrt((n - 1) / np.maximum(n - was**2, 1e-30)))
    score = -np.sign(was) * special.ndtri(np.maximum(tail, 1e-30))
    return _on_grid(score, weight)


def _far_back(before: int, now: int) -> Floats:
    """(grid, grid): the same from `now` to `before` seeds at once, for so many seeds that t is nearly normal."""
    fraction = before / now
    nodes, weight = np.polynomial.hermite_e.hermegauss(64)
    spread = math.sqrt(1 - fraction)
    score = math.sqrt(fraction) * GRID[:, None] + spread * nodes
    return _on_grid(score, weight)


def _on_grid(score: Floats, weight: Floats) -> Floats:
    """(grid, grid) of chances, from scores (grid, nodes) with weights (nodes,): each between its two neighbours."""
    place = np.clip((score - GRID[0]) / STEP, 0, GRID.size - 1.000001)
    found = np.zeros((GRID.size, GRID.size))
    rows, column, part = np.arange(GRID.size)[:, None], place.astype(int), place % 1
    np.add.at(found, (rows, column), (1 - part) * weight)
    np.add.at(found, (rows, column + 1), part * weight)
    return np.asarray(found / weight.sum())


# ---------------------------------------------------------------- between looks


def anytime_bound(n: int, alpha: float) -> float:
    """The |t| that matched seeds pass at any time, however often one looks, with a chance of at most alpha.

    By Ville's inequality on the e-value of "the effect is drawn from N(0, SPREAD_OF_EFFECTS²), in standard deviations of the
    differences" against "there is none", at n seeds:

        E = (1 + n g)^(-1/2) [(1 + t²/(n - 1)) / (1 + t²/((n - 1)(1 + n g)))]^(n/2),  g = SPREAD_OF_EFFECTS²

    Args:
        n: matched seeds so far.
        alpha: chance, over all numbers of seeds together.

    Returns:
        The bound; inf where so few seeds can never pass it.
    """
    if n < 2:
        return math.inf
    prior = 1 + n * SPREAD_OF_EFFECTS**2
    # E = 1/alpha solved for u = t²/(n - 1): (1 + u)/(1 + u/prior) = ratio.
    ratio = (math.sqrt(prior) / alpha) ** (2 / n)
    if ratio >= prior:
        return math.inf
    u = (ratio - 1) / (1 - ratio / prior)
    return math.sqrt(u * (n - 1))

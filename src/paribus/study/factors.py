"""Factors: several changes at once, each cell of the design a run, so that every run says something of every change.

    factors:
      mlp: {model.mlp: [swiglu, relu2]}        # the baseline's value, then the other
      qk: {model.qk_norm: [true, false]}
    design: full                # every combination; or fraction: the fewest cells that estimate what is asked; or {fraction: 16}
    interactions: all           # of two factors each; or none, or a list: [[mlp, qk]]

A cell is named by the factors that it has at their second level, joined by dashes; the one without any is the baseline. A
fraction is a regular one (Box & Hunter, 1961), turned so that the baseline is among its cells. Two effects are aliased where no
cell of the design tells one from the other; what is asked must not be aliased with anything else that is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paribus.config import flatten
from paribus.errors import UserError
from paribus.execute.run import LONGEST_NAME
from paribus.study import fields
from paribus.study.arms import Arm
from paribus.study.fields import hint, shown
from paribus.study.identity import settings

FEWEST, MOST = 2, 8  # factors
MEANT = "expected {KEY: [THE BASELINE'S VALUE, ANOTHER]}"

Signs = NDArray[np.float64]
Term = tuple[str, ...]  # the factors of an effect: one, or the two of an interaction


def name_of(term: Term) -> str:
    """An effect as pages name it: `mlp`, or `mlp x qk`."""
    return " x ".join(term)


@dataclass(frozen=True)
class Factor:
    """One change. first: the baseline's values, dotted key -> value; second: the others."""

    first: dict[str, object]
    second: dict[str, object]

    def words(self) -> str:
        """What it changes."""
        changes = []
        for key, after in self.second.items():
            changes.append(
                f"{key}: {fields.as_written(self.first[key])} → {fields.as_written(after)}"
            )
        return "; ".join(changes)


@dataclass(frozen=True)
class Factorial:
    """The design of a study with factors.

    Attributes:
        factors: by name.
        cells: arm -> the level of each factor, -1 (first) or +1 (second).
        resolution: letters of the shortest word of the defining relation; None: a full design.
        asked: effects that the study asks for, single factors first.
    """

    factors: dict[str, Factor]
    cells: dict[str, tuple[int, ...]]
    resolution: int | None
    asked: tuple[Term, ...]

    def signs(self, term: Term) -> Signs:
        """The level of an effect in each cell (cells,): the product of its factors'."""
        names = list(self.factors)
        levels = np.array(list(self.cells.values()), float)
        return np.asarray(levels[:, [names.index(one) for one in term]].prod(axis=1))

    def aliases(self) -> dict[Term, list[Term]]:
        """Effect that is asked -> other effects of one or two factors that no cell tells from it."""
        found = {}
        for term in self.asked:
            others = [other for other in terms_of(self.factors) if other != term]
            same = [other for other in others if _aliased(self.signs(term), self.signs(other))]
            if same:
                found[term] = same
        return found

    def words(self) -> str:
        """The design in a sentence."""
        number = len(self.factors)
        if self.resolution is None:
            return f"All {len(self.cells)} combinations of {number} factors of two levels."
        notes = []
        for term, others in self.aliases().items():
            notes.append(f"{name_of(term)} = {' = '.join(map(name_of, others))}")
        told = f"aliased, so that one stands for both: {'; '.join(notes)}" if notes else ""
        told = told or "no effect of one or two factors is aliased with another such effect"
        return (
            f"{len(self.cells)} of the {2**number} combinations of {number} factors of two levels, resolution "
            f"{ROMAN.get(self.resolution, str(self.resolution))}: {told}."
        )


ROMAN = {2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}


def terms_of(factors: Iterable[str]) -> list[Term]:
    """Every effect of one factor, then of two."""
    names = list(factors)
    single: list[Term] = [(name,) for name in names]
    return single + list(itertools.combinations(names, 2))


def _aliased(one: Signs, other: Signs) -> bool:
    return bool(abs(float(one @ other)) == len(one))


# ---------------------------------------------------------------- reading


def read_factorial(
    raw: Mapping[str, object], base: Mapping[str, object], problems: list[str]
) -> tuple[Factorial | None, dict[str, Arm]]:
    """(the design, its cells as arms); (None, {}) where something is wrong.

    Args:
        raw: the values of the study's file.
        base: the baseline's overrides, dotted key -> value.
        problems: the list that receives the messages.
    """
    before = len(problems)
    factors = _factors(raw["factors"], base, problems)
    asked = _asked(raw.get("interactions", "all"), factors, problems)
    cells = _asked_cells(raw.get("design", "full"), len(factors), problems)
    if len(problems) > before:
        return None, {}
    signs = _design(factors, asked, cells, problems)
    if signs is None:
        return None, {}
    names = list(factors)
    levels: dict[str, tuple[int, ...]] = {}
    arms: dict[str, Arm] = {}
    cells_in_order = sorted(
        map(tuple, signs.astype(int).tolist()), key=lambda row: (sum(row), row[::-1])
    )
    for row in cells_in_order:
        changed = [name for name, level in zip(names, row, strict=True) if level > 0]
        overrides: dict[str, object] = {}
        for name in changed:
            overrides |= factors[name].second
        cell = "-".join(changed) or "baseline"
        if cell in levels or len(cell) > LONGEST_NAME:
            problems.append(
                f"factors: a cell would be named {shown(cell)}, which is {'another one' if cell in levels else 'too long'}; "
                "give the factors shorter names without a dash"
            )
            return None, {}
        levels[cell] = row
        if changed:
            arms[cell] = Arm(overrides, f"the cell with {', '.join(changed)}")
    return Factorial(factors, levels, resolution_of(signs), asked), arms


def factorial_problems(raw: Mapping[str, object]) -> list[str]:
    """What does not go together with factors in a study's file.

    Args:
        raw: the values of the file.
    """
    problems = []
    if "arms" in raw:
        problems.append("arms: the cells of `factors` are the arms; leave out one of them")
    for key in ("borrow", "skewed"):
        if key in raw:
            problems.append(f"{key}: `factors` has a model of its own; leave it out")
    seeds = raw.get("seeds")
    if not isinstance(seeds, int):
        problems.append(
            "seeds: a study with `factors` has one look, after all of its cells; expected a whole number, as seeds: 3"
        )
    return problems


def _factors(value: object, base: Mapping[str, object], problems: list[str]) -> dict[str, Factor]:
    """The factors of a file; those that are wrong are left out, and named."""
    if not isinstance(value, dict) or not FEWEST <= len(value) <= MOST:
        problems.append(
            f"factors: {shown(value)}; expected {FEWEST} to {MOST} of them, as NAME: {{KEY: [VALUE, OTHER]}}; a single change "
            "is an arm"
        )
        return {}
    factors: dict[str, Factor] = {}
    keys: dict[str, str] = {}
    for name, levels in value.items():
        where = f"factors.{name}"
        wrong_name = fields.name_problem(name)
        if wrong_name:
            problems.append(f"factors: {wrong_name}")
            continue
        found = _level_problems(where, levels, base)
        if not found:
            found = [
                f"{where}: {key} is a key of factors.{keys[key]} too"
                for key in levels
                if key in keys
            ]
            keys |= dict.fromkeys(levels, name)
        problems += found
        if not found:
            first = {key: values[0] for key, values in levels.items()}
            second = {key: values[1] for key, values in levels.items()}
            factors[name] = Factor(first, second)
    return factors


def _level_problems(where: str, levels: object, base: Mapping[str, object]) -> list[str]:
    """What is wrong with the levels of one factor."""
    if not isinstance(levels, dict) or not levels:
        return [f"{where}: {shown(levels)}; {MEANT}"]
    known = flatten(settings(base))
    problems = []
    for key, values in levels.items():
        if key not in known:
            problems.append(f"{where}: {shown(key)}: unknown key; {hint(key, list(known))}")
        elif key == "seed":
            problems.append(f"{where}: seed is no factor: every cell runs at the same seeds")
        else:
            problems += _value_problems(f"{where}.{key}", values, known[key])
    if not problems:
        second = {key: values[1] for key, values in levels.items()}
        try:
            settings(dict(base) | second)
        except UserError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
    return problems


def _value_problems(where: str, values: object, baseline: object) -> list[str]:
    """What is wrong with the levels of one key, whose value in the baseline is `baseline`."""
    if not isinstance(values, list):
        return [f"{where}: {shown(values)}; {MEANT}: two levels, no more and no fewer"]
    if len(values) != 2:
        count = f"{len(values)} level{'' if len(values) == 1 else 's'}"
        return [f"{where}: {count}; {MEANT}: two levels, no more and no fewer"]
    first, second = values
    if first == second:
        return [f"{where}: both levels are {shown(first)}"]
    if first != baseline:
        return [
            f"{where}: its first level is {shown(first)}, and the baseline's value is {shown(baseline)}; the "
            "first level is the baseline's"
        ]
    return []


def _asked(value: object, factors: Mapping[str, Factor], problems: list[str]) -> tuple[Term, ...]:
    """The effects that are asked for."""
    terms = terms_of(factors)
    single = tuple(term for term in terms if len(term) == 1)
    if value == "all":
        return tuple(terms)
    if value == "none":
        return single
    if isinstance(value, list) and value:
        pairs: list[Term] = []
        for pair in value:
            names = tuple(sorted(pair, key=list(factors).index)) if _is_pair(pair, factors) else ()
            if names and names not in pairs:
                pairs.append(names)
            else:
                problems.append(
                    f"interactions: {shown(pair)}; expected two of {', '.join(factors) or 'the factors'}, each pair once"
                )
        return single + tuple(pairs)
    problems.append(f"interactions: {shown(value)}; expected all, none, or a list as [[A, B]]")
    return single


def _is_pair(pair: object, factors: Mapping[str, Factor]) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        return False
    return all(isinstance(name, str) and name in factors for name in pair)


def _asked_cells(value: object, factors: int, problems: list[str]) -> int | None:
    """How many cells the design has; 0: the fewest that will do; None: all."""
    if value == "full":
        return None
    if value == "fraction":
        return 0
    if isinstance(value, dict) and set(value) == {"fraction"}:
        allowed = [2**power for power in range(2, factors)]
        if value["fraction"] in allowed and not isinstance(value["fraction"], bool):
            return int(value["fraction"])
        if factors:
            problems.append(
                f"design.fraction: {shown(value['fraction'])} cells of {2**factors} are no fraction; "
                f"expected {', '.join(map(str, allowed)) or 'design: full'}"
            )
        return None
    problems.append(f"design: {shown(value)}; expected full, fraction, or {{fraction: CELLS}}")
    return None


# ---------------------------------------------------------------- the design


def fractions(factors: int) -> list[Signs]:
    """Fractions (cells, factors) of -1 and +1, each with the baseline among its cells, the smallest first.

    Args:
        factors: how many.
    """
    from pydoe import fracfact_by_res

    by_cells: dict[int, Signs] = {}
    for resolution in range(3, factors + 1):
        design = np.asarray(fracfact_by_res(factors, resolution), float)
        if len(design) < 2**factors:
            # Of equal size the better resolution comes later.
            by_cells[len(design)] = design * -design[0]
    return [by_cells[cells] for cells in sorted(by_cells)]


def _design(
    factors: Mapping[str, Factor],
    asked: Sequence[Term],
    cells: int | None,
    problems: list[str],
) -> Signs | None:
    """The signs (cells, factors) of a design that estimates what is asked; None where there is none, and why."""
    number = len(factors)
    names = list(factors)
    if cells is None:
        from pydoe import ff2n

        return np.asarray(ff2n(number), float)
    there = fractions(number)
    fine = [design for design in there if not _confused(design, names, asked)]
    fitting = [design for design in fine if cells in (0, len(design))]
    if fitting:
        return fitting[0]
    enough = f"{{fraction: {len(fine[0])}}}" if fine else "full"
    wanted = [design for design in there if len(design) == cells]
    if cells and not wanted:
        problems.append(
            f"design.fraction: no fraction of {number} factors with {cells} cells tells all factors apart; design: {enough} does"
        )
        return None
    pairs: list[tuple[Term, Term]] = []
    for design in wanted or there[-1:]:
        pairs += _confused(design, names, asked)
    size = f"{cells} cells" if cells else f"fewer than {2**number} cells"
    fewer = ", or ask for fewer `interactions`" if cells or there else ""
    problems.append(
        f"design: a fraction of {size} aliases what is asked: {_told(pairs)}; "
        f"design: {enough} tells them apart{fewer}"
    )
    return None


def _told(pairs: Sequence[tuple[Term, Term]]) -> str:
    """The first pairs of effects, and how many more there are."""
    told = ", ".join(f"{name_of(one)} with {name_of(other)}" for one, other in pairs[:3])
    return f"{told} and {len(pairs) - 3} more" if len(pairs) > 3 else told


def _confused(
    design: Signs, names: Sequence[str], asked: Sequence[Term]
) -> list[tuple[Term, Term]]:
    """Pairs of effects that are asked and that a design does not tell apart."""
    columns = {}
    for term in asked:
        columns[term] = design[:, [names.index(one) for one in term]].prod(axis=1)
    pairs = itertools.combinations(asked, 2)
    return [(one, other) for one, other in pairs if _aliased(columns[one], columns[other])]


def resolution_of(signs: Signs) -> int | None:
    """Factors of the shortest product that is the same in every cell; None for a full design.

    Args:
        signs: of the design (cells, factors).
    """
    cells, factors = signs.shape
    if cells == 2**factors:
        return None
    for length in range(1, factors + 1):
        for columns in itertools.combinations(range(factors), length):
            if abs(float(signs[:, columns].prod(axis=1).sum())) == cells:
                return length
    return None

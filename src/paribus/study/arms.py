"""The arms of an ablation's file: overrides, code of their own, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paribus.study import fields
from paribus.study.arm_code import ArmCode
from paribus.study.fields import shown


@dataclass(frozen=True)
class Arm:
    """What an arm changes.

    Attributes:
        overrides: dotted key -> value.
        as_one: the one thing that several changes amount to.
        asked: the code that the file names: a branch, tag, commit or patch file; None: the baseline's.
        code: what that is settled as.
    """

    overrides: dict[str, object]
    as_one: str | None = None
    asked: str | None = None
    code: ArmCode | None = None


def read_arms(value: object, taken: str, problems: list[str]) -> dict[str, Arm]:
    """The arms of a file; the code that they name is not looked for yet.

    Args:
        value: of the key `arms`.
        taken: the baseline's name, which no arm may have.
        problems: the list that receives the messages.
    """
    if not isinstance(value, dict) or not value:
        problems.append(
            f"arms: {shown(value)}; expected at least one, as NAME: {{dotted.key: value}}"
        )
        return {}
    arms = {}
    for name, change in value.items():
        wrong_name = fields.name_problem(name)
        if wrong_name:
            problems.append(f"arms: {wrong_name}")
        elif name == taken:
            problems.append(f"arms.{name}: this name is not allowed, not {taken}: it is taken")
        else:
            arm = _arm(f"arms.{name}", change, problems)
            if arm is not None:
                arms[name] = arm
    return arms


def _arm(where: str, change: object, problems: list[str]) -> Arm | None:
    """One arm, or None and its problems."""
    if not isinstance(change, dict) or not change:
        problems.append(
            f"{where}: {shown(change)}; expected {{dotted.key: value}}, {{set: {{…}}, as_one: WHAT}}, or {{code: BRANCH}}"
        )
        return None
    if "code" in change:
        return _arm_of_code(where, change, problems)
    as_one = None
    if "set" in change or "as_one" in change:
        as_one = change.get("as_one")
        if set(change) != {"set", "as_one"} or not _is_said(as_one) or not change["set"]:
            problems.append(
                f"{where}: expected both set: {{dotted.key: value}} and as_one: WHAT, and nothing else"
            )
            return None
        change = change["set"]
    before = len(problems)
    overrides = fields.overrides(change, where, problems)
    return Arm(overrides, as_one) if len(problems) == before else None


def _arm_of_code(where: str, change: dict[str, Any], problems: list[str]) -> Arm | None:
    """An arm with code of its own, or None and its problems."""
    before = len(problems)
    for key in change:
        if key not in ("code", "set", "as_one"):
            problems.append(
                f"{where}: {shown(key)}: beside code there may be set: {{dotted.key: value}} and as_one: WHAT"
            )
    asked, as_one = change["code"], change.get("as_one")
    if not _is_said(asked):
        problems.append(
            f"{where}.code: {shown(asked)}; expected a branch, tag, commit or patch file, as text"
        )
    if "as_one" in change and not _is_said(as_one):
        problems.append(f"{where}.as_one: {shown(as_one)}; expected what one thing the changes are")
    overrides = fields.overrides(change.get("set", {}), f"{where}.set", problems)
    return Arm(overrides, as_one, asked) if len(problems) == before else None


def _is_said(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())

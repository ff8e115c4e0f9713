"""Compares params.yaml with its committed version: names changes without an effect, refuses lost ones."""

from __future__ import annotations

from collections.abc import Iterable

from paribus.config.effects import inert, merge_notes, merge_problems
from paribus.config.reading import parse_yaml
from paribus.config.schema import Config, flatten
from paribus.errors import UserError
from paribus.git import committed_bytes


def committed_values(path: str = "params.yaml") -> dict[str, object] | None:
    """Dotted values of params.yaml in git's HEAD; None without such a file, or without git."""
    try:
        text = committed_bytes("HEAD", path)
        return None if text is None else flatten(parse_yaml(text.decode(), f"{path} in HEAD"))
    except (UnicodeDecodeError, UserError):
        return None


def change_notes(config: Config, sections: Iterable[str] | None = None) -> list[str]:
    """A line for each key that was changed since the last commit and has no effect, and for each mixture that changed.

    Args:
        config: params.yaml as it is.
        sections: dotted keys or sections to look at, those that a stage declares; None: all.

    Raises:
        UserError: where a mixture that was given whole was merged with the one there was.
    """
    before = committed_values()
    if before is None:
        return []
    wanted = None if sections is None else tuple(sections)
    old = {key: value for key, value in before.items() if _within(key, wanted)}
    new = {key: value for key, value in flatten(config).items() if _within(key, wanted)}
    if problems := merge_problems(old, new):
        raise UserError(problems)
    without = inert(config)
    changed = [key for key, value in new.items() if key in old and old[key] != value]
    notes = [
        f"{key}: changed, and without an effect: it is read only with {without[key]}"
        for key in changed
        if key in without
    ]
    return notes + merge_notes(old, new)


def _within(key: str, sections: tuple[str, ...] | None) -> bool:
    if sections is None:
        return True
    return any(key == section or key.startswith(f"{section}.") for section in sections)

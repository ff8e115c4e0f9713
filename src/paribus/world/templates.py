"""The reader of the embedded world's words and sentences, which lie beside its modules as YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paribus.config import read_yaml

Choices = tuple[str, ...]  # wordings of one thing, one of which is drawn


def read_templates(name: str) -> dict[str, Any]:
    """The values of NAME.yaml."""
    return read_yaml(Path(__file__).with_name(f"{name}.yaml"))


def choices(text: str) -> Choices:
    """The lines of a text, each a choice."""
    return tuple(text.splitlines())


def choices_by_name(texts: Mapping[str, str]) -> dict[str, Choices]:
    """The choices of several texts, by their names."""
    return {name: choices(text) for name, text in texts.items()}


def listed(values: Iterable[object]) -> str:
    """The values with commas between them."""
    return ", ".join(str(value) for value in values)

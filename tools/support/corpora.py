"""Corpora of a test's own files."""

from __future__ import annotations

import dataclasses
from typing import Any

from paribus import config


def with_local(tiny: config.Config, *paths: str, **more: Any) -> config.Corpus:
    return dataclasses.replace(tiny.corpus, source="local", paths=list(paths), **more)

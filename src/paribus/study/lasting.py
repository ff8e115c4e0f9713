"""Separates what a run determines in its metrics and curves from times and the machine's figures."""

from __future__ import annotations

import csv
import io
import json

FIGURES = ("metrics/", "headline/", "plots/")  # folders of metrics files and curves
TIMES = {"seconds"}  # columns of a curve that no two runs share
# Keys of metrics/<stage>.json and headline/<stage>.json that depend on the machine and the moment.
MACHINE_FIGURES = {
    "seconds",
    "pretrain_min",
    "tokens_per_second",
    "peak_memory_bytes",
    "effective_samples_per_second",
}


def lasting(path: str, content: bytes) -> object:
    """The part of a metrics file or a curve that two runs of the same code on the same machine share, to compare them.

    Arguments:
        path: of the file; its ending says what it is.
        content: of the file. Content that is neither JSON nor a curve counts in full.
    """
    try:
        if path.endswith(".json"):
            return _without(json.loads(content), MACHINE_FIGURES)
        if path.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            return [_without(row, TIMES) for row in rows]
    except ValueError:
        return content
    return content


def _without(value: object, names: set[str]) -> object:
    """A value with its mappings, at any depth, less the keys in `names`."""
    if isinstance(value, list):
        return [_without(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without(item, names) for key, item in value.items() if key not in names}

"""What of a metrics file or a curve belongs to the run, and what to the hour and the machine."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

FIGURES = ("metrics/", "plots/")  # folders of metrics files and curves
TIMES = {"seconds"}  # columns of a curve that no two runs share
# Keys of metrics/<stage>.json that are the machine's and the hour's.
MACHINE_FIGURES = {
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "effective_samples_per_second",
}


def lasting(path: str, content: bytes) -> Any:
    """What two runs of the same code on the same machine share of a metrics file or a curve, to be compared.

    Arguments:
        path: of the file; its ending says what it is.
        content: of the file. What is neither JSON nor a curve is taken as it is.
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


def _without(value: Any, names: set[str]) -> Any:
    """A value with its mappings, at any depth, less the keys in `names`."""
    if isinstance(value, list):
        return [_without(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without(item, names) for key, item in value.items() if key not in names}

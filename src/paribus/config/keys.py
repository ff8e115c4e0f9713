"""What declares a key of params.yaml: its meaning, bounds and the condition of its effect."""

from __future__ import annotations

import dataclasses
from typing import Any

from paribus.config.conditions import Condition
from paribus.config.limits import Limit


def key(
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | Limit | None = None,
    acts_when: Condition | None = None,
    formerly: Any = None,
) -> Any:
    """A configuration key.

    Args:
        doc: what it is, with its unit.
        ge: the bounds of its value, or of a mapping's values.
        gt: the bounds of its value, or of a mapping's values.
        le: the bounds of its value, or of a mapping's values.
        acts_when: when it has an effect; None: always. `effects.py` reads it.
        formerly: what a checkpoint means by it that was written before the key existed; None: all checkpoints have the
          key.
    """
    limit = le if isinstance(le, Limit) else Limit(le, "") if le is not None else None
    return dataclasses.field(
        metadata={
            "doc": doc,
            "ge": ge,
            "gt": gt,
            "le": limit.value if limit else None,
            "why": limit.why if limit else "",
            "acts_when": acts_when,
            "formerly": formerly,
        }
    )

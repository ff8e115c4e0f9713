"""Results of runs that nobody computed, for tests of what is said of them."""

from __future__ import annotations

from paribus.study.finished import Provenance
from paribus.study.results import Result


def result(arm: str, seed: int, value: float | None, speed: float = 100.0) -> Result:
    """A run of the study "tiny": one look a hundred tokens, five in all, at `speed` tokens a second."""
    curve: list[dict[str, float | None]] = []
    for look in range(1, 6):
        curve.append(
            {
                "step": float(look),
                "tokens": 100.0 * look,
                "seconds": 100 * look / speed,
                "val_bpb": (value or 0) + 1 / look,
            }
        )
    measured = {
        "val_bpb": value,
        "tokens_per_second": speed,
        "train_tokens": 500,
        "flops_per_token": 6.0,
        "parameters": 10,
        "seconds": 500 / speed,
        "steps": 5,
        "peak_memory_bytes": 1,
    }
    return Result(
        name=f"tiny.{arm}.s{seed}",
        arm=arm,
        seed=seed,
        experiment="e" * 40,
        baseline="b" * 40,
        file="f" * 40,
        key="k",
        code="c",
        value=value,
        metrics={"pretrain": measured},
        curve=curve,
        provenance=Provenance(),
        fingerprints={},
        outputs={},
    )

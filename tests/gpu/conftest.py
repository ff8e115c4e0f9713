"""What all tests of the host side of CUDA have in common: what they need, and a process that no earlier test has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
MARKS = (
    pytest.mark.skipif(
        "NULL_CUDA" not in os.environ,
        reason="needs torch's CUDA build (3 GB) and the null device: make gpu-dry-run",
    ),
    pytest.mark.timeout(1800),  # Triton and ptxas take minutes where cores are busy
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: pytest hands over all that it has found."""
    for item in items:
        if item.path.is_relative_to(HERE):
            for mark in MARKS:
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def filled_by_nobody() -> None:
    """As `set_up_process` has it: nothing that a test before this one has set fills new tensors."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

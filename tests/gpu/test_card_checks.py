"""The checks of `paribus doctor --gpu` go through on the null card. What they find there is nothing: kernels compute nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT

from paribus.card import checks
from paribus.card.bench import SIZES, Bench
from paribus.model import kernels

SMALL = dataclasses.replace(SIZES["cpu"], seq_len=256, head_dim=64)
# Another program's step; and what follows values, on an emulated card (test_emulated.py).
OTHERS = ("peer", "sampling")


@pytest.mark.parametrize(
    "check", [one for one in checks.CHECKS if one.name not in OTHERS], ids=lambda one: one.name
)
def test_a_check_goes_through_on_a_card(check: checks.Check) -> None:
    assert check.run(Bench("cuda", SMALL)).figures


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of its own, which keeps what it measures elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch._dynamo.reset()
    kernels.flex_of.cache_clear()
    yield

"""Every page in a real browser: no serious finding of axe-core, and nothing cut from a phone to a desk, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import chromium, faults
from support.tried import begun, ended
from support.verdict_pages import DESIGNS

from paribus.judge import judge
from paribus.pages import ledger
from paribus.pages.judgement import write_page
from paribus.tries.ledger import Entry

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.usefixtures("in_checkout")
TABLE = "arm,seed,loss\n" + "".join(
    f"{arm},{seed},{2 + gain + 0.001 * ((seed * 7) % 5)}\n"
    for arm, gain in (("base", 0.0), ("soap", -0.1), ("muon-with-a-long-name-of-its-own", 0.05))
    for seed in range(5)
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def of_tries() -> str:
    """A ledger with a kept try, a discarded one with a long name of a file in its reason, and one under way."""
    entries = [
        Entry(1, 0.0, 0.01, 0, begun("a"), ended("keep", 0.001), 1.0),
        Entry(2, 0.0, 0.01, 3, begun("b"), ended(), 1.0),
        Entry(3, 0.0, 0.01, 6, begun("c"), None, None),
    ]
    totals: dict[str, Any] = {
        "tries": 3,
        "keep": 1,
        "discard": 1,
        "undecided": 0,
        "under_way": 1,
        "runs": 12,
    }
    totals |= {"seconds": 60.0, "false_keeps": 0.1, "next_level": 0.01}
    diff = "-a\n+" + "b" * 300
    return ledger.html(entries, [], {"totals": totals}, {1: diff}, ledger.draw(entries))


def of_a_table(folder: Path) -> str:
    (folder / "table.csv").write_text(TABLE)
    judged = judge(
        str(folder / "table.csv"), arm=("arm",), metric="loss", baseline="base", pair_by=("seed",)
    )
    write_page(judged, folder / "judged.html")
    return (folder / "judged.html").read_text()


def page_of(name: str, folder: Path) -> str:
    if name == "ledger":
        return of_tries()
    return of_a_table(folder) if name == "judge" else DESIGNS[name]()


# These differ from the page of arms in a table alone.
ALIKE = ("horizons", "ladder", "tuned")
PAGES = [
    pytest.param(name, marks=pytest.mark.soak if name in ALIKE else ())
    for name in (*DESIGNS, "ledger", "judge")
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_and_nothing_is_cut(
    browser: Browser, name: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(name, tmp_path))
    assert faults(browser, page.as_uri()) == []

"""Pages in a real browser: what axe-core finds, and whether anything is cut at the widths of a phone, a tablet and a desk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (390, 768, 1400)  # pixels: a phone, a tablet, a desk
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
GRAVE = ("serious", "critical")  # axe-core's impacts that no page may have


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a network; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def faults(browser: Browser, address: str) -> list[str]:
    """What is wrong with a page, with all that is folded open, in light and dark.

    Args:
        browser: that opens it.
        address: of the page.

    Returns:
        Serious findings of axe-core, and the widths at which the page is wider than its window.
    """
    from axe_playwright_python.sync_playwright import Axe

    found = []
    with browser.new_context(bypass_csp=True) as context:
        tab = context.new_page()
        tab.goto(address)
        tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            over = tab.evaluate(wider)
            if over > 0:
                found.append(f"{over} pixels wider than a window of {width}")
        for scheme in SCHEMES:
            tab.emulate_media(color_scheme=scheme)
            for one in Axe().run(tab).response["violations"]:
                if one["impact"] in GRAVE:
                    places = [node["html"][:120] for node in one["nodes"][:3]]
                    found.append(f"{scheme}: {one['id']}: {one['help']}: {places}")
    return found

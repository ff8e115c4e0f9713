"""Pages in a real browser: what axe-core finds, and whether anything is cut at the widths of a phone, a tablet and a desk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WIDTHS = (390, 768, 1400)  # pixels: a phone, a tablet, a desk
Scheme = Literal["light", "dark"]
# What axe-core looks at in each: in the dark only the colours are others.
SCHEMES: dict[Scheme, dict[str, object]] = {
    "light": {},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}},
}
PATIENCE = 300_000  # milliseconds: of a page on a machine that does much else
GRAVE = ("serious", "critical")  # axe-core's impacts that no page may have


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Browser]:
    """A browser without a network; the test is skipped where there is none. more: arguments of the program."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-background-networking", *(more or ["--disable-gpu"])]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Heard:
    """What a page said to its browser."""

    complaints: list[str] = field(default_factory=list)
    """Errors on the console, and exceptions."""
    failed: list[str] = field(default_factory=list)
    """Addresses that could not be loaded, or not to their end."""
    requests: list[str] = field(default_factory=list)
    """Addresses it asked for, but for those that carry their data."""

    def hear(self, message: ConsoleMessage) -> None:
        """Keep an error."""
        if message.type == "error":
            self.complaints.append(message.text)

    def ask(self, address: str) -> None:
        """Keep an address."""
        if not address.startswith("data:"):
            self.requests.append(address)


def new_tab(browser: Browser, width: int = 1100, height: int = 900) -> tuple[Page, Heard]:
    """A tab that waits long, and what its pages will say. width and height: in pixels."""
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.set_default_timeout(PATIENCE)
    heard = Heard()
    tab.on("console", heard.hear)
    tab.on("pageerror", lambda error: heard.complaints.append(str(error)))
    tab.on("requestfailed", lambda request: heard.failed.append(request.url))
    tab.on("request", lambda request: heard.ask(request.url))
    return tab, heard


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
        tab.set_default_timeout(PATIENCE)
        tab.goto(address)
        tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            over = tab.evaluate(wider)
            if over > 0:
                found.append(f"{over} pixels wider than a window of {width}")
        for scheme, options in SCHEMES.items():
            tab.emulate_media(color_scheme=scheme)
            for one in Axe().run(tab, options=options).response["violations"]:
                if one["impact"] in GRAVE:
                    places = [node["html"][:120] for node in one["nodes"][:3]]
                    found.append(f"{scheme}: {one['id']}: {one['help']}: {places}")
    return found

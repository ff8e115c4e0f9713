"""Pages that people read: links lead somewhere, and the README fits a screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.checkout import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
WIDEST_CODE = 88  # columns that GitHub shows without a scroll bar
LONGEST_README = 150  # lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    own = [target for target in targets if "://" not in target]
    missing = [target for target in own if not (page.parent / target).exists()]
    assert not missing


def test_code_in_the_readme_is_not_cut() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.startswith("    ")]
    assert [line for line in code if len(line) > WIDEST_CODE] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README

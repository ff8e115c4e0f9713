"""The documentation as a site: the menu names every page, the generated reference is whole, and the site builds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import reference
import walk
import yaml
from support.checkout import ROOT

from paribus.study.reading import parse_experiment

GETTING_STARTED = ROOT / "docs/getting-started.md"


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.pages()


def menu(entries: list[Any]) -> Iterator[str]:
    """The pages of a menu, in order."""
    for entry in entries:
        [(_, target)] = entry.items()
        if isinstance(target, str):
            yield target
        else:
            yield from menu(target)


def test_the_menu_names_every_page(generated: dict[str, str]) -> None:
    named = list(menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert sorted(named) == sorted(written | set(generated))


def test_the_reference_names_every_key_and_command(generated: dict[str, str]) -> None:
    assert "| `future_tokens` |" in generated["reference/keys.md"]
    assert "### paribus ablate run" in generated["reference/commands.md"]
    assert "| `--smallest-effect" in generated["reference/commands.md"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("metrics/*.json")), ids=lambda file: file.stem)
def test_the_reference_says_what_every_metric_means(file: Path) -> None:
    known = [*reference.MEANINGS.get(file.stem, {}), *reference.MEANINGS["training"]]
    patterns = [pattern for keys in known for pattern in keys.split(", ")]
    unknown = []
    for key in json.loads(file.read_text()):
        if not any(fnmatch(key, pattern.removesuffix(".*")) for pattern in patterns):
            unknown.append(key)
    assert unknown == []


def test_the_site_builds_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install --no-deps -r requirements-docs.lock")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "reference/keys.html").exists()


# ---------------------------------------------------------------- getting started


def test_a_page_is_walked_block_by_block() -> None:
    page = "# A\n\n```sh\none\ntwo\n```\n\n```yaml\nno: command\n```\n\n## B\n\n```sh\nthree\n```\n"
    found = [(block.heading, block.commands) for block in walk.blocks(page)]
    assert found == [("A", "one\ntwo\n"), ("B", "three\n")]


def test_the_study_of_getting_started_is_one_that_runs() -> None:
    commands = "".join(block.commands for block in walk.blocks(GETTING_STARTED.read_text()))
    text = commands.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    experiment = parse_experiment("first", yaml.safe_load(text))
    assert experiment.arms


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)  # an install and a dozen trainings, on whatever machine
def test_getting_started_does_what_it_says(tmp_path: Path) -> None:
    assert walk.walk(GETTING_STARTED, tmp_path / "walk") == 0

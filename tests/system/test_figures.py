"""Figures in prose come from files: the committed text is what the files say."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import graph_figure
import pytest


def figures(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools/figures.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def copy(project_root: Path, tmp_path: Path) -> Path:
    """The texts and the files that hold their figures."""
    for name in ("tools", "metrics", "docs", "experiments/results", "benchmarks"):
        shutil.copytree(project_root / name, tmp_path / name)
    for page in [*project_root.glob("*.md"), project_root / "dvc.yaml"]:
        shutil.copy(page, tmp_path)
    return tmp_path


def test_every_figure_in_the_texts_is_what_its_file_says(project_root: Path) -> None:
    done = figures(project_root, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_text_that_differs_from_its_file_is_named(copy: Path) -> None:
    page = copy / "experiments/results/public-optimizer-variants-small.md"
    page.write_text(page.read_text().replace("+0.0287", "+0.9999"))
    done = figures(copy, "--check")
    assert done.returncode == 1
    assert "README.md: differs" in done.stdout
    assert figures(copy).returncode == 0
    assert "+0.9999" in (copy / "README.md").read_text()
    assert figures(copy, "--check").returncode == 0


def test_a_figure_that_does_not_exist_is_refused(copy: Path) -> None:
    with (copy / "README.md").open("a") as file:
        file.write("<!-- figure: temperature -->5<!-- /figure -->")
    done = figures(copy)
    assert done.returncode == 1
    assert "no figure 'temperature'; there are: " in done.stderr
    assert "curriculum" in done.stderr


def test_the_graph_leaves_out_only_arrows_that_follow_from_others() -> None:
    found = {"a": {"b", "c", "d"}, "b": {"d"}, "c": {"d"}, "d": set[str]()}
    assert graph_figure.needed(found) == {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}


def test_the_graph_draws_every_arrow_once() -> None:
    found = graph_figure.needed(graph_figure.edges())
    drawn = []
    for chain in graph_figure.chains(found):
        drawn += list(itertools.pairwise(chain))
    wanted = [(stage, other) for stage, after in found.items() for other in after]
    assert sorted(drawn) == sorted(wanted)

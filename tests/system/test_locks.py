"""What `make repro` installs is whole without the rest, and no two locks pin a package differently."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from support.checkout import ROOT

OF_TORCH = ("nvidia-", "cuda-", "triton")  # which a build for cards pins itself


def pins(name: str) -> dict[str, str]:
    """Package -> version of a lock."""
    found = re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / name).read_text())
    return {canonicalize_name(package): version for package, version in found}


def needed(wanted: Iterable[str]) -> set[str]:
    """The packages that requirements bring here, with all that those need."""
    found: set[str] = set()
    waiting: list[tuple[Requirement, str]] = []
    for text in wanted:
        requirement = Requirement(text)
        waiting += [(requirement, each) for each in ("", *requirement.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen or name.startswith(OF_TORCH):
            continue
        seen.add((name, extra))
        found.add(name)
        for text in metadata.requires(name) or []:
            below = Requirement(text)
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                waiting += [(below, each) for each in ("", *below.extras)]
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml's own table."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project: dict[str, Any] = written["project"]
    return project


def test_no_two_locks_contradict_each_other() -> None:
    pinned: dict[str, str] = {}
    for path in sorted(ROOT.glob("requirements*.lock")):
        for package, version in pins(path.name).items():
            assert pinned.setdefault(package, version) == version, f"{package} in {path.name}"


def test_dvc_reads_its_files_with_the_parser_in_c() -> None:
    """ruamel.yaml takes it where it is installed, and says nothing where it is not: dvc.lock then takes four times as long."""
    assert YAML(typ="safe").Parser is not YAML(typ="safe", pure=True).Parser


def test_what_the_stages_run_with_is_in_the_first_lock(project: dict[str, Any]) -> None:
    assert needed(project["dependencies"]) <= set(pins("requirements.lock"))


@pytest.mark.parametrize(
    ("extras", "locks"),
    [(("lm",), ("lm",)), (("dev",), ("lm", "dev"))],
    ids=["lm", "dev"],
)
def test_what_an_extra_brings_is_in_its_lock(
    extras: tuple[str, ...], locks: tuple[str, ...], project: dict[str, Any]
) -> None:
    wanted = [each for extra in extras for each in project["optional-dependencies"][extra]]
    pinned = set(pins("requirements.lock"))
    for lock in locks:
        pinned |= set(pins(f"requirements-{lock}.lock"))
    assert needed(wanted) <= pinned


def test_locks_beside_each_other_share_no_package() -> None:
    names = [set(pins(f"requirements{each}.lock")) for each in ("", "-lm", "-dev")]
    assert len(set().union(*names)) == sum(map(len, names))

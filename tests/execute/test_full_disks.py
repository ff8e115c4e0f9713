"""A disk that is full, wherever it is: the run ends as its machine's fault, names the disk, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.machines import impossible
from support.studied import LightProject

from paribus.execute.local import Pool
from paribus.execute.run import Outcome, RunSpec, folder_of_run
from paribus.git import git
from paribus.run_id import RunId

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

RUN = RunId("study", "plain", 7)
Disk = Callable[[Path], Path]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """What puts a folder on a small disk of its own."""
    reason = impossible()
    if reason:
        pytest.skip(reason)
    mounted = []

    def mount(folder: Path) -> Path:
        """A disk of 4 MB in place of a folder, with what the folder holds."""
        aside = folder.with_name(f"{folder.name}-before")
        folder.mkdir(exist_ok=True)
        folder.rename(aside)
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(folder: Path, room: int) -> Path:
    """Fill the disk of a folder up to so many bytes; the file that does it."""
    about = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(b"x" * (about.f_bavail * about.f_frsize - room))
    return filler


def outcome_of(project: LightProject, origin: str = "") -> Outcome:
    commit = git("rev-parse", "HEAD", at=project.root)
    spec = RunSpec(RUN, commit, {"seed": 7}, ["tokens", "pretrain"], "key", origin=origin)
    pool = Pool(project.root, project.root / ".paribus", 1)
    pool.submit(spec)
    try:
        while True:
            for event in pool.poll(60):
                if event.kind == "ended":
                    assert event.outcome
                    return event.outcome
                assert event.kind != "lost", event
    finally:
        pool.close()


def check_full(project: LightProject, outcome: Outcome, named: Path) -> None:
    assert outcome.state == "machine"
    told = " ".join(outcome.problems)
    assert str(named) in told
    assert "No space left on device" in told
    assert not (folder_of_run(project.root / ".paribus", RUN) / "clone").exists()


@pytest.mark.parametrize(
    "place, room",
    [(".", 40_000), (".", 300_000), (".paribus", 100_000), (".dvc/cache", 20_000), (".git", 0)],
)
def test_a_full_disk_is_named(
    tmp_path: Path, light_project: LightProject, disk: Disk, place: str, room: int
) -> None:
    """Whether there is no room for the clone, for DVC's notes, for the outputs or for the experiment."""
    project = light_project.copy(tmp_path / "project")
    (project.root / ".paribus").mkdir(exist_ok=True)
    folder = disk(project.root / place)
    filler = leave(folder, room)
    check_full(project, outcome_of(project), folder)
    filler.unlink()
    assert outcome_of(project).state == "done"


@pytest.mark.parametrize("what", ["remote", "repository"])
def test_a_full_disk_between_machines_is_named(
    tmp_path: Path, light_project: LightProject, disk: Disk, what: str
) -> None:
    """Of the DVC remote, or of the git repository that takes the results."""
    project = light_project.copy(tmp_path / "project")
    remote, origin = tmp_path / "nas", tmp_path / "shared.git"
    remote.mkdir()
    project.run("dvc", "remote", "add", "-d", "nas", str(remote))
    project.commit("a remote")
    git("clone", "--quiet", "--bare", str(project.root), str(origin))
    folder = disk(remote if what == "remote" else origin)
    filler = leave(folder, 30_000 if what == "remote" else 0)
    check_full(project, outcome_of(project, str(origin)), folder)
    filler.unlink()
    assert outcome_of(project, str(origin)).state == "done"


def test_what_one_machine_has_computed_is_computed_on_no_other(
    tmp_path: Path, light_project: LightProject
) -> None:
    """Metrics that git keeps go to the DVC remote as well: another machine's run-cache needs them."""
    project = light_project.copy(tmp_path / "project")
    project.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
    project.commit("a remote")
    origin = tmp_path / "shared.git"
    git("clone", "--quiet", "--bare", str(project.root), str(origin))
    other = LightProject.at(tmp_path / "other")
    git("clone", "--quiet", str(origin), str(other.root))
    assert outcome_of(project, str(origin)).state == "done"
    assert outcome_of(other, str(origin)).state == "done"
    assert len(project.trained()) == 1
    assert other.trained() == {}

"""Several machines, as network namespaces of this one: what is wrong is told before compute; one dies, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.machines import Machine, Network, impossible
from support.studied import LightProject

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

ENGINE = ("ablate", "run", "first", "--engine")


def missing(*packages: str) -> str | None:
    """Why machines cannot be tried here."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed (requirements-ray.lock, requirements-s3.lock)"
    return impossible()


@dataclass(frozen=True)
class Desk:
    """Two machines in one Ray cluster, the project on the first, and a folder that both reach as a DVC remote."""

    project: LightProject
    here: Machine
    other: Machine
    head: str

    def paribus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        source = str(Path(__file__).resolve().parents[2] / "src")
        command = [sys.executable, "-m", "paribus", *arguments]
        return self.here.run(*command, cwd=self.project.root, check=False, PYTHONPATH=source)

    def refused(self, *arguments: str) -> str:
        """What a command says that is refused with exit status 2; nothing was computed."""
        done = self.paribus(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert self.project.events("first") == []
        return done.stderr


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Desk]:
    reason = missing("ray")
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machines")
    with Network(folder, 78) as network:
        here, other = network.machine("desk1"), network.machine("desk2")
        project = LightProject(here.folder / "project", project_root).start()
        project.study("first", seeds=2)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small(folder))])
        head = here.start_ray()
        other.start_ray(head)
        yield Desk(project, here, other, head)
        subprocess.run(["umount", str(small(folder))])


def small(folder: Path) -> Path:
    path = folder / "small"
    path.mkdir(exist_ok=True)
    return path


def test_no_cluster(desk: Desk) -> None:
    said = desk.refused(*ENGINE, "ray:127.0.0.1:1")
    assert "no cluster of 127.0.0.1:1 can be used" in said
    assert "ray start --head" in said


def test_gpus_are_rays_to_deal_out(desk: Desk) -> None:
    assert "Ray deals out the GPUs" in desk.refused(*ENGINE, "ray", "--gpus", "0")


def test_what_other_machines_lack_is_told_one_after_the_other(desk: Desk) -> None:
    """Git, the commit, the right to push, the data: each in words, and once all is there the study runs."""
    project, engine = desk.project, f"ray:{desk.head}"
    assert "other machines need a git repository" in desk.refused(*ENGINE, engine)

    bare = desk.here.folder / "shared.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    project.git("remote", "add", "origin", f"git://{desk.here.address}/shared.git")
    said = desk.refused(*ENGINE, engine)
    assert "desk2" in said
    assert "shared.git" in said

    daemon = ["git", "daemon", "--export-all", f"--base-path={desk.here.folder}"]
    log = desk.here.folder / "git.log"
    desk.here.begin(*daemon, log=log)
    said = desk.refused(*ENGINE, engine)
    assert "the commit" in said
    assert "git push" in said

    subprocess.run(["git", "push", "-q", str(bare), "main"], cwd=project.root, check=True)
    said = desk.refused(*ENGINE, engine)
    assert "results could not be pushed" in said
    assert "desk2: the DVC remote" in said or "no remote" in said

    subprocess.run(["git", "-C", str(bare), "config", "daemon.receivepack", "true"], check=True)
    said = desk.refused(*ENGINE, engine)
    assert "desk1: the DVC remote" in said
    assert "desk2: the DVC remote" in said
    assert "could not be pushed" not in said

    nas = desk.here.folder.parents[1] / "nas"
    nas.mkdir()
    project.run("dvc", "remote", "add", "-d", "nas", str(nas))
    project.commit("a remote")
    subprocess.run(["git", "push", "-q", str(bare), "main"], cwd=project.root, check=True)
    done = desk.paribus(*ENGINE, engine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(project.values("first")) == 4
    began = [row["machine"] for row in project.events("first") if row["event"] == "started"]
    assert set(began) == {"desk1", "desk2"}


def test_a_full_disk_on_one_machine_is_told(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    desk.other.run("ray", "stop", "--force")
    disk = small(desk.here.folder.parents[1])
    (disk / "filler").write_bytes(b"x" * 1_000_000)
    desk.other.start_ray(desk.head, PARIBUS_CHECKOUT=str(disk / "clone"))
    desk.project.study("second", seeds=2)
    bare = desk.here.folder / "shared.git"
    subprocess.run(["git", "push", "-q", str(bare), "main"], cwd=desk.project.root, check=True)
    done = desk.paribus("ablate", "run", "second", "--engine", f"ray:{desk.head}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "desk2" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.project.events("second") == []


def test_a_machine_dies_and_the_study_ends_with_the_verdict_of_an_undisturbed_one(
    tmp_path: Path, project_root: Path
) -> None:
    """Twelve real runs, S3, MLflow on PostgreSQL, three machines."""
    reason = missing("ray", "dvc_s3", "moto")
    if reason:
        pytest.skip(reason)
    script, out = project_root / "benchmarks/machines.py", tmp_path / "machines.json"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["runs"] == 12
    assert found["states_left"] == []
    assert found["mlflow_runs"] == {"finished": 12, "steps_twice": 0}

"""Several machines, as network namespaces of this one: what is wrong is said before compute; one dies, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import postgres, tuned
from support.machines import Machine, Network, impossible
from support.project import Project
from support.studied import LightProject, wait_for

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

    @property
    def origin(self) -> str:
        """The git repository that both machines reach."""
        return f"git://{self.here.address}/shared.git"

    def study(self, name: str, **changes: Any) -> None:
        """Write experiments/NAME.yaml, commit it, and push it to where the other machine gets code from."""
        self.project.study(name, **changes)
        self.push()

    def push(self) -> None:
        bare = self.here.folder / "shared.git"
        push = ["git", "push", "-q", str(bare), "main"]
        subprocess.run(push, cwd=self.project.root, check=True)

    def machines(self) -> int:
        """How many the head of the cluster takes to be there."""
        shown = self.here.run("ray", "status", "--address", self.head).stdout
        return shown.partition("Pending")[0].count(" node_")

    def restart_other(self, **environment: Any) -> None:
        """Ray on the second machine anew, as soon as the head knows that the old one is gone."""
        self.other.run("ray", "stop", "--force")
        wait_for(lambda: self.machines() == 1, 120)
        self.other.start_ray(self.head, **environment)
        wait_for(lambda: self.machines() == 2, 120)

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
        head = here.start_ray()
        other.start_ray(head)
        yield Desk(project, here, other, head)


def disk_on(machine: Machine, name: str, size: str) -> Path:
    """A small disk that a machine alone has: mounted in its own namespace, and gone with it."""
    path = machine.folder / name
    path.mkdir()
    machine.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
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
    project.git("remote", "add", "origin", desk.origin)
    said = desk.refused(*ENGINE, engine)
    assert "desk2" in said
    assert "shared.git" in said

    daemon = ["git", "daemon", "--export-all", f"--base-path={desk.here.folder}"]
    log = desk.here.folder / "git.log"
    desk.here.begin(*daemon, log=log)
    said = desk.refused(*ENGINE, engine)
    assert "the commit" in said
    assert "git push" in said

    desk.push()
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
    desk.push()
    done = desk.paribus(*ENGINE, engine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(project.values("first")) == 4
    began = [row["machine"] for row in project.events("first") if row["event"] == "started"]
    assert set(began) == {"desk1", "desk2"}


def test_a_stopped_study_saves_everywhere_and_goes_on(desk: Desk) -> None:
    """`status` shows where runs are; `stop` has them save and end on every machine."""
    # Runs that no other study has made: DVC would find those again.
    desk.study("third", seeds=2, baseline={"set": {"optimizer.head_lr": 0.008}})
    roots = [desk.project.root, *desk.other.folder.glob("home/.cache/paribus/shared-*/")]
    assert len(roots) == 2
    slowly = [{"when": {"stage": "pretrain", "eps": 1e-10}, "do": {"steps": 9000, "seconds": 0.1}}]
    for root in roots:
        (root / ".paribus/behave.json").write_text(json.dumps(slowly))
    source = str(Path(__file__).resolve().parents[2] / "src")
    command = [sys.executable, "-m", "paribus", "ablate", "run", "third", "--engine", "ray"]
    log = desk.here.folder / "third.log"
    driver = desk.here.begin(*command, log=log, cwd=desk.project.root, PYTHONPATH=source)

    def in_pretrain_on_both() -> bool:
        assert driver.poll() is None, log.read_text()
        shown = desk.paribus("ablate", "status", "third").stdout
        return "pretrain on desk2" in shown and shown.count("pretrain") >= 2

    wait_for(in_pretrain_on_both, 600)
    done = desk.paribus("ablate", "stop", "third")
    assert done.returncode == 0, done.stderr
    assert driver.wait(120) == 75, log.read_text()
    ended = [path for root in roots for path in root.glob(".paribus/execute/third/*/outcome.json")]
    states = [json.loads(path.read_text())["state"] for path in ended]
    assert states == ["paused", "paused"]
    assert desk.project.ended("third", "done") == []
    assert all(not list(root.glob(".paribus/execute/third/*/clone")) for root in roots)
    for root in roots:
        (root / ".paribus/behave.json").unlink()
    done = desk.paribus("ablate", "run", "third", "--engine", "ray")
    assert done.returncode == 0, done.stderr
    assert len(desk.project.values("third")) == 4


def test_a_try_computes_on_both_machines(desk: Desk) -> None:
    """Its commits, which no branch has, are brought there."""
    project = desk.project
    terms = {"smallest_effect": 0.01, "seeds": {"from": 3, "to": 4}}
    (project.root / "experiments/try.yaml").write_text(yaml.safe_dump(terms))
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["optimizer"]["head_lr"] = 0.009  # runs that no study has made
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project.commit("terms")
    # Differences that are equal to the last digit have no spread, and no verdict.
    uneven = [{"when": {"stage": "pretrain", "kind": "adamw", "seed": 8}, "do": {"add": 0.02}}]
    for root in (project.root, *desk.other.folder.glob("home/.cache/paribus/shared-*/")):
        (root / ".paribus/behave.json").write_text(json.dumps(uneven))
    params["optimizer"]["kind"] = "adamw"
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    done = desk.paribus("try", "-m", "worse", "--json", "--engine", f"ray:{desk.head}")
    project.git("checkout", "-q", "--", "params.yaml")
    for path in desk.here.folder.parent.rglob(".paribus/behave.json"):
        path.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["runs_computed"] == 6
    runs = project.experiments("try")
    machines = {ran_on(project, one.commit) for one in runs}
    assert machines == {"desk1", "desk2"}


def ran_on(project: LightProject, commit: str) -> str:
    """The machine that computed a run."""
    message = project.git("log", "-1", "--format=%B", commit)
    return message.partition("Ran-On: ")[2].split()[0]


def test_runs_of_one_seed_are_on_one_class_of_hardware(desk: Desk) -> None:
    """The second machine computes with other kernels: no pair is torn, and both machines have work."""
    desk.restart_other(ATEN_CPU_CAPABILITY="default")
    desk.study("fourth", seeds=4)
    done = desk.paribus("ablate", "run", "fourth", "--engine", "ray")
    assert done.returncode == 0, done.stderr
    machines: dict[int, set[str]] = {}
    for one in desk.project.experiments("fourth"):
        machine = ran_on(desk.project, one.commit)
        machines.setdefault(one.run.seed, set()).add(machine)
    assert [len(of_seed) for of_seed in machines.values()] == [1, 1, 1, 1]
    assert set.union(*machines.values()) == {"desk1", "desk2"}


def test_a_full_disk_on_one_machine_is_told(desk: Desk) -> None:
    """Before compute, with exit status 2: there is no room for the machine's clone."""
    disk = disk_on(desk.other, "small", "1m")
    desk.other.run("dd", "if=/dev/zero", f"of={disk}/filler", "bs=1000", "count=1000")
    desk.restart_other(PARIBUS_CHECKOUT=str(disk / "clone"))
    desk.study("second", seeds=2)
    done = desk.paribus("ablate", "run", "second", "--engine", f"ray:{desk.head}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"desk2: {desk.origin} could not be cloned to {disk}/clone" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.project.events("second") == []


def test_a_disk_that_fills_up_costs_a_machine_and_no_run(desk: Desk) -> None:
    """Its run goes to another machine, and it gets no more."""
    disk = disk_on(desk.other, "filling", "12m")
    desk.restart_other(PARIBUS_CHECKOUT=str(disk / "clone"))
    desk.study("fifth", seeds=2, baseline={"set": {"optimizer.head_lr": 0.006}})
    desk.other.run("git", "clone", "-q", desk.origin, str(disk / "clone"))
    large = [{"when": {"stage": "pretrain"}, "do": {"size": 1_000_000}}]  # 16 MB of weights
    script = f"mkdir {disk}/clone/.paribus && echo '{json.dumps(large)}' > {disk}/clone/.paribus/behave.json"
    desk.other.run("sh", "-c", script)
    done = desk.paribus("ablate", "run", "fifth", "--engine", f"ray:{desk.head}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "desk2 gets no more runs" in done.stderr
    assert f"{disk}/clone" in done.stderr
    assert "No space left on device" in done.stderr
    assert len(desk.project.values("fifth")) == 4


def test_a_tuning_study_has_workers_on_all_machines(tmp_path: Path, project_root: Path) -> None:
    reason = missing("ray")
    there = postgres.found()
    if reason or isinstance(there, str):
        pytest.skip(reason or str(there))
    with Network(tmp_path, 79) as network:
        here, other = network.machine("desk1"), network.machine("desk2")
        project = Project(here.folder / "paribus", project_root).start()
        (tmp_path / "nas").mkdir()
        project.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
        (project.root / "execute.yaml").write_text(f"git: git://{here.address}/paribus\n")
        (project.root / "experiments/tune").mkdir(parents=True)
        tuned.write(project.root, "desks", trials=4)
        project.run("dvc", "repro", "tokens")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "study")
        daemon = ["git", "daemon", "--export-all", "--enable=receive-pack"]
        here.begin(*daemon, f"--base-path={here.folder}", log=tmp_path / "git.log")
        head = here.start_ray()
        other.start_ray(head)
        server = postgres.Server(*there, network.gateway)
        server.start()
        try:
            command = ["paribus", "tune", "run", "desks", "--engine", f"ray:{head}"]
            source = str(project.root / "src")
            done = here.run(
                *command,
                "--storage",
                server.url,
                cwd=project.root,
                check=False,
                PYTHONPATH=source,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            states = [trial.state.name for trial in trials_of(server.url)]
        finally:
            server.stop()
            shutil.rmtree(server.folder)
        ended = [state for state in states if state in ("COMPLETE", "PRUNED")]
        assert len(ended) == 4
        for machine in (here, other):
            assert list(machine.folder.rglob(".paribus/tune/desks/trial-*/result.json"))
    assert json.loads((project.root / "report/tune/desks/summary.json").read_text())["best"]


def trials_of(url: str) -> list[Any]:
    import optuna

    return list(optuna.load_study(study_name="desks", storage=url).trials)


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

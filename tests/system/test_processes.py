"""The real stage command on several processes: the same model, any number of them next time, and one that dies."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.project import Project
from support.waiting import PATIENCE, wait_for
from support.warm import warm

from paribus.config import merge, read_yaml
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.stages import launch

pytestmark = pytest.mark.long
soak = pytest.mark.soak

STEPS = 5
ONE_STEP = 1e-6  # minutes: a session that is over after its first step
# The first gradients of the scalars are rounding noise, of which AdamW with an eps below it takes the sign.
SETTINGS = {
    "pretrain.steps": STEPS,
    "pretrain.eval_every": 2,
    "eval.bpb_tokens": 256,
    "optimizer.eps": 1e-6,
}


class Trainer(Project):
    """A project with its tokens written, in which `paribus pretrain` runs on its own."""

    def __init__(self, root: Path, source: Path, data: Path, **changes: object) -> None:
        super().__init__(root, source, **SETTINGS | changes)
        shutil.copytree(data, root / "data")

    def start(self, **train: Any) -> subprocess.Popen[str]:  # type: ignore[override]
        self._configure(train)
        return subprocess.Popen(
            ["paribus", "pretrain"],
            cwd=self.root,
            env=self._stage_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, **train: Any) -> tuple[int, str]:
        """Exit status and what was said; a single process is forked with its libraries loaded."""
        if train.get("processes", 1) > 1:
            process = self.start(**train)
            said = process.communicate()[1]
            return process.returncode, said
        self._configure(train)
        done = warm().run(["-m", "paribus", "pretrain"], self.root, self._stage_environment())
        return done.returncode, done.stderr

    def _configure(self, train: dict[str, Any]) -> None:
        params = yaml.safe_load((self.root / "params.yaml").read_text())
        params["train"] |= train
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))
        self.feed_mlflow()

    def _stage_environment(self) -> dict[str, str]:
        return self.environment() | {
            "PYTHONPATH": str(self.root / "src"),
            "DVC_ROOT": str(self.root),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The log's steps and events so far."""
        logs = [
            path.read_text()
            for path in (self.root / ".paribus/runs").glob("pretrain-*/metrics.jsonl")
        ]
        return [
            json.loads(line)
            for line in "".join(logs).splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if "train/loss" in row]

    def wait_for_steps(self, count: int) -> None:
        wait_for(lambda: len(self.steps()) >= count)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, project_root: Path, tiny_data: Path) -> Trainer:
    """A run of one process."""
    trainer = Trainer(tmp_path_factory.mktemp("alone"), project_root, tiny_data)
    status, said = trainer.train()
    assert status == 0, said
    return trainer


def test_a_run_on_2_and_1_processes_ddp_and_fsdp_is_the_run_of_one(
    alone: Trainer, tmp_path: Path, project_root: Path, tiny_data: Path
) -> None:
    """Every session goes on with another number of processes; exit 75 passes through the launcher."""
    moving = Trainer(tmp_path, project_root, tiny_data)
    for processes, sharding in ((2, "ddp"), (1, "ddp"), (2, "fsdp")):
        status, said = moving.train(
            processes=processes, sharding=sharding, session_minutes=ONE_STEP
        )
        assert status == EXIT_PAUSED, said
        assert "Traceback" not in said, said
        assert said.count("saved at step") == 1  # one process speaks
    status, said = moving.train(processes=1, session_minutes=None)
    assert status == 0, said
    assert f"going on from step {STEPS - 2}" in said, said
    ours, theirs = moving.steps(), alone.steps()
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for name in ("train/loss", "train/grad_norm", "val/bpb"):
        assert [row[name] for row in ours if name in row] == pytest.approx(
            [row[name] for row in theirs if name in row], rel=1e-3
        )
    assert ours[-1]["train/tokens"] == theirs[-1]["train/tokens"]
    changes = [row["detail"] for row in moving.rows() if row.get("event") == "processes"]
    assert changes == [
        "1 processes, 2 before",
        "2 processes, 1 before",
        "1 processes, 2 before",
    ]


def test_a_signal_saves_and_a_killed_process_ends_the_stage_and_both_go_on(
    tmp_path: Path, project_root: Path, tiny_data: Path
) -> None:
    trainer = Trainer(tmp_path, project_root, tiny_data, **ENDLESS)
    stage = trainer.start(processes=2)
    trainer.wait_for_steps(2)
    stage.send_signal(signal.SIGTERM)
    assert stage.wait(PATIENCE) == EXIT_PAUSED
    saved = len(trainer.steps())

    stage = trainer.start(processes=2)
    trainer.wait_for_steps(saved + 2)
    ranks = psutil.Process(stage.pid).children()
    [second] = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
    os.kill(second.pid, signal.SIGKILL)
    said = stage.communicate(timeout=PATIENCE)[1]
    assert stage.returncode == 1, said
    assert "process 1 of 2 was killed (SIGKILL)" in said, said
    assert "Traceback" not in said, said
    assert not any(rank.is_running() for rank in ranks)

    status, said = trainer.train(processes=1, session_minutes=ONE_STEP)
    assert status == EXIT_PAUSED
    assert "going on from step" in said
    steps = [row["step"] for row in trainer.steps()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > saved


def processes_in(folder: Path) -> list[psutil.Process]:
    """Training processes that work in a project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
            if here and "pretrain" in process.cmdline():
                found.append(process)
    return found


def wait_for_processes(trainer: Trainer, count: int) -> None:
    wait_for(lambda: len(processes_in(trainer.root)) >= count)


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, project_root: Path, tiny_data: Path
) -> Trainer:
    """A project whose params and states tests change as they like."""
    return Trainer(tmp_path_factory.mktemp("workshop"), project_root, tiny_data)


def afresh(trainer: Trainer, **changes: object) -> None:
    """Params as at the start but for `changes`; no outputs, no states."""
    params = merge(read_yaml(trainer.root / "params.yaml"), SETTINGS | AS_AT_FIRST | changes)
    (trainer.root / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("checkpoints", "metrics", ".paribus/runs"):
        shutil.rmtree(trainer.root / name, ignore_errors=True)


AS_AT_FIRST = {
    "optimizer.weight_decay": 0.0,
    "train.processes": 1,
    "train.session_minutes": None,
}
ENDLESS = {"pretrain.steps": 100_000, "pretrain.eval_every": 0}


@pytest.mark.parametrize(
    "workers_lived",
    [
        1.0,
        pytest.param(0.0, marks=soak),
        pytest.param(0.3, marks=soak),
        pytest.param(2.0, marks=soak),
    ],
)
def test_workers_whose_launcher_dies_while_they_start_end_by_themselves(
    workshop: Trainer, workers_lived: float
) -> None:
    """workers_lived: seconds, when the launcher is killed: they import, or wait for each other."""
    afresh(workshop, **ENDLESS)
    launcher = workshop.start(processes=2)
    wait_for_processes(workshop, 3)
    time.sleep(workers_lived)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not processes_in(workshop.root))


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, 0.5),
        (signal.SIGTERM, 2.0),
        pytest.param(signal.SIGTERM, 0.5, marks=soak),
        pytest.param(signal.SIGINT, 1.0, marks=soak),
        pytest.param(signal.SIGTERM, 1.0, marks=soak),
        pytest.param(signal.SIGINT, 2.0, marks=soak),
    ],
)
def test_a_signal_before_training_begins_ends_in_words(
    workshop: Trainer, number: signal.Signals, after: float
) -> None:
    afresh(workshop, **ENDLESS)
    stage = workshop.start(processes=1)
    time.sleep(after)
    stage.send_signal(number)
    said = stage.communicate(timeout=PATIENCE)[1]
    assert "Traceback" not in said
    assert stage.returncode != 0
    assert stage.returncode in (EXIT_PAUSED, 1, -number), said


@pytest.mark.parametrize(
    "lived", [0.0, pytest.param(0.5, marks=soak), pytest.param(3.0, marks=soak)]
)
def test_signals_to_several_processes_that_have_just_begun_are_a_pause(
    workshop: Trainer, lived: float
) -> None:
    """lived: seconds, when the signals come: the workers import, have joined, or train."""
    afresh(workshop, **ENDLESS)
    stage = workshop.start(processes=2)
    wait_for_processes(workshop, 3)
    time.sleep(lived)
    for _ in range(3):
        stage.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    said = stage.communicate(timeout=PATIENCE)[1]
    assert stage.returncode == EXIT_PAUSED, said
    assert "Traceback" not in said, said


def test_a_signal_reaches_the_others_where_one_has_just_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = psutil.Process(ended.pid)
    ended.wait()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    listed = [gone, psutil.Process(sleeper.pid)]
    monkeypatch.setattr(psutil.Process, "children", lambda self: listed)
    launch.pass_on(signal.SIGTERM)
    assert sleeper.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("processes", [3, pytest.param(64, marks=soak)])
def test_more_processes_than_cores_are_refused_before_anything_starts(
    workshop: Trainer, processes: int
) -> None:
    afresh(workshop)
    cores = sorted(os.sched_getaffinity(0))[:2]
    stage = workshop.start(processes=processes)
    os.sched_setaffinity(stage.pid, cores)
    said = stage.communicate(timeout=PATIENCE)[1]
    assert stage.returncode == 2
    assert "Traceback" not in said
    assert f"train.processes: {processes}, but there are {len(cores)} CPU cores" in said
    assert not processes_in(workshop.root)


def limit_files() -> None:
    """As `ulimit -f 300`: a state does not fit, the small files do."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_disk_without_room_for_a_state_ends_the_stage_in_words_and_nothing_is_lost(
    alone: Trainer, workshop: Trainer
) -> None:
    trainer = workshop
    afresh(trainer)
    environment = trainer.environment() | {
        "PYTHONPATH": str(trainer.root / "src"),
        "DVC_ROOT": str(trainer.root),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # a sqlite file may grow past the limit
    }
    command = [sys.executable, "-m", "paribus", "pretrain"]
    done = subprocess.run(
        command,
        cwd=trainer.root,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
    )
    assert done.returncode == 74, done.stderr
    assert "saves in a row failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((trainer.root / ".paribus").rglob(".*.[0-9]*"))
    status, said = trainer.train()
    assert status == 0, said
    weights = "checkpoints/base/model.safetensors"
    assert (trainer.root / weights).read_bytes() == (alone.root / weights).read_bytes()


@pytest.mark.parametrize(
    "rate",
    [
        "math.nan",
        pytest.param("(math.nan if step == steps - 1 else 0.0)", marks=soak),
    ],
    ids=["in its loss", "in its figures"],
)
def test_a_run_that_diverges_is_refused_and_writes_no_figures(
    tmp_path: Path, project_root: Path, tiny_data: Path, rate: str
) -> None:
    """rate: of learning, no number from the first step on, or in the last so that only the figures show it."""
    trainer = Trainer(tmp_path, project_root, tiny_data)
    stage = trainer.root / "src/paribus/train/trainer.py"
    honest = "return common_factor(self.recipe.schedule(self.stage), place, steps)"
    assert honest in stage.read_text()
    stage.write_text(stage.read_text().replace(honest, f"return {rate} + {honest[7:]}"))
    for _ in range(2):  # the second start finds the states of the first
        status, said = trainer.train()
        assert status == 2
        assert "diverged" in said
        assert "Traceback" not in said
        assert "step" in said
        assert not (trainer.root / "metrics/pretrain.json").exists()
        assert not (trainer.root / "checkpoints/base").exists()


def test_a_start_that_does_not_go_on_says_what_differs_from_the_newest_state(
    workshop: Trainer,
) -> None:
    trainer = workshop
    afresh(trainer)
    status, said = trainer.train(session_minutes=ONE_STEP)
    assert status == EXIT_PAUSED
    assert "begins at step 1" not in said
    params = yaml.safe_load((trainer.root / "params.yaml").read_text())
    params["pretrain"]["eval_every"] = 4
    (trainer.root / "params.yaml").write_text(yaml.safe_dump(params))
    status, said = trainer.train(session_minutes=None)
    assert status == 0
    assert "begins at step 1" in said
    assert "pretrain.eval_every: 4, was 2" in said
    assert "going on from step" not in said

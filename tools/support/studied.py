"""Studies for the tests and benchmarks of `paribus ablate`: real DVC, git and workers around a trainer of a few lines.

The trainer of `LightProject` keeps what the harness relies on: a state keyed by its parameters in the main checkout, a
journal of its steps, exit status 75 when it is asked to stop. A run takes a second, so that many can be killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from paribus.config import merge, read_yaml
from paribus.execute.repository import Reference, experiments_of
from support.checkout import run_checked
from support.forked import WarmProcess
from support.tiny import TINY
from support.waiting import wait_for as wait_for
from support.warm import feed_mlflow, warm

STUDY: dict[str, Any] = {
    "question": "Is AdamW better?",
    "hypothesis": "It is not.",
    "baseline": {},
    "arms": {"adamw": {"optimizer.kind": "adamw"}},
    "seeds": 2,
    "metric": "val_bpb",
    "smallest_effect": 0.01,
    "equal": "none",
    "stages": ["pretrain"],
}

PIPELINE = """
stages:
  tokens:
    cmd: python work.py tokens
    params: [tokens]
    deps: [work.py]
    outs: [data/tokens]
  pretrain:
    cmd: python work.py pretrain
    params: [seed, optimizer, model.depth, pretrain]
    deps: [data/tokens, work.py]
    outs: [checkpoints/base]
    metrics:
      - metrics/pretrain.json: {cache: false}
    plots:
      - plots/pretrain.csv: {cache: false}
"""

WORK = '''
import hashlib, json, math, os, signal, sys, time
from pathlib import Path
import yaml

def behave(stage, params):
    """What a test asks this stage to do: the first rule whose values are all in params."""
    path = Path(os.environ["DVC_ROOT"]) / ".paribus/behave.json"
    rules = json.loads(path.read_text()) if path.exists() else []
    flat = {"stage": stage, "seed": params["seed"], "kind": params["optimizer"]["kind"],
            "eps": params["optimizer"]["eps"], "depth": params["model"]["depth"]}
    for rule in rules:
        if all(flat[key] == value for key, value in rule["when"].items()):
            return rule["do"]
    return {}

def say(kind, problem):
    Path(os.environ["PARIBUS_SAY"]).write_text(json.dumps({"kind": kind, "problems": [problem]}))

stage, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
do = behave(stage, params)
mark = hashlib.sha256(json.dumps([stage, params["seed"] if stage != "tokens" else 0,
    params["optimizer"], params["model"]["depth"], params["pretrain"]], sort_keys=True).encode()).hexdigest()[:16]
state = Path(os.environ["DVC_ROOT"]) / ".paribus/runs" / f"{stage}-{mark}"
state.mkdir(parents=True, exist_ok=True)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
parent = os.getppid()
journal = state / "steps.jsonl"
lines = journal.read_text().splitlines() if journal.exists() else []
done = len([line for line in lines if line.endswith("}")])
journal.write_text("".join(line + "\\n" for line in lines[:done]))
for step in range(done, do.get("steps", 8)):
    with journal.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    time.sleep(do.get("seconds", 0.05))
    if stopping or os.getppid() != parent:
        sys.exit(75)
if "exit" in do:
    say(do.get("kind", "UserError"), do["say"])
    sys.exit(do["exit"])
if stage == "tokens":
    os.makedirs("data/tokens", exist_ok=True)
    Path("data/tokens/shard").write_bytes(b"t" * 100_000)
else:
    bias = {"muon": 0.0, "adamw": 0.5}[params["optimizer"]["kind"]]
    bias += 0.001 * (params["seed"] % 3) + do.get("add", 0.0)
    for key, best in do.get("best", {}).items():  # of the optimizer: the nearer, the lower
        bias += 0.1 * abs(math.log(params["optimizer"][key] / best))
    value = do.get("value", 1.0 + 0.1 * params["seed"] + bias)
    steps, batch = params["pretrain"]["steps"] or 100, params["pretrain"]["batch_tokens"]
    value += do.get("by_log_steps", 0.0) * math.log(steps)
    os.makedirs("checkpoints/base", exist_ok=True)
    weights = do.get("weights", mark)
    Path("checkpoints/base/model.safetensors").write_text(weights * do.get("size", 1))
    Path("checkpoints/base/config.json").write_text(json.dumps({"depth": do.get("depth", params["model"]["depth"])}))
    Path("checkpoints/base/provenance.json").write_text(json.dumps({"fingerprint": mark}))
    os.makedirs("metrics", exist_ok=True)
    measured = {"val_bpb": value, "parameters": 10, "steps": steps, "train_tokens": steps * batch, "seconds": steps / 10}
    Path("metrics/pretrain.json").write_text(json.dumps(measured))
    rows = ["step,tokens,seconds,train_loss,val_bpb"]
    for look in range(1, 9):  # bits per byte fall as one over the look to the value at the end
        step = steps * look / 8
        rows.append(f"{step},{step * batch},{step / 10},,{value + 1 / look - 1 / 8}")
    os.makedirs("plots", exist_ok=True)
    Path("plots/pretrain.csv").write_text("\\n".join(rows) + "\\n")
'''


def depth(number: int) -> dict[str, Any]:
    """A baseline that no other study of a project shares."""
    return {"set": {"model.depth": number}}


def names(study: str, arms: tuple[str, ...] = ("baseline", "adamw"), seeds: int = 2) -> list[str]:
    """The runs of a study like STUDY, in alphabetical order."""
    return sorted(f"{study}.{arm}.s{7 + number}" for arm in arms for number in range(seeds))


class LightProject:
    """A project with the schema of paribus and a trainer that takes a second."""

    def __init__(self, root: Path, source: Path, **changes: Any) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        params = merge(read_yaml(source / "params.yaml"), TINY | changes)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        (root / "dvc.yaml").write_text(PIPELINE)
        (root / "work.py").write_text(WORK)
        (root / ".gitignore").write_text(
            "/.paribus/\n/mlflow.db*\n/mlartifacts/\n/data/\n/checkpoints/\n/tmp/\n"
        )
        (root / "notes.md").write_text("notes\n")
        (root / "experiments").mkdir()

    @classmethod
    def at(cls, root: Path) -> LightProject:
        """The one that is in a folder."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def copy(self, root: Path) -> LightProject:
        """The same project in another folder."""
        shutil.copytree(self.root, root, symlinks=True)
        return LightProject.at(root)

    def start(self) -> LightProject:
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "a@example.org")
        self.git("config", "user.name", "A")
        self.run("dvc", "init", "-q")
        self.commit("start")
        return self

    def study(self, name: str, **changes: Any) -> None:
        """Write and commit experiments/NAME.yaml."""
        text = yaml.safe_dump(STUDY | changes, sort_keys=False)
        (self.root / "experiments").mkdir(exist_ok=True)
        (self.root / f"experiments/{name}.yaml").write_text(text)
        self.commit(name)

    def behave(self, *rules: dict[str, Any]) -> None:
        """What the trainer does in runs whose values are in a rule: {when: {seed, kind, …}, do: {…}}."""
        (self.root / ".paribus").mkdir(exist_ok=True)
        (self.root / ".paribus/behave.json").write_text(json.dumps(list(rules)))

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def commit_more(self) -> None:
        """A second commit, so that a clone of depth 1 lacks the first."""
        (self.root / "more.md").write_text("more\n")
        self.commit("more")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        clean = {}
        for key, value in os.environ.items():
            if not key.startswith(("DVC_", "MLFLOW_", "PARIBUS_")):
                clean[key] = value
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return clean | {
            "PATH": path,
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent / "src"),
        }

    def run(
        self, *command: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return run_checked(command, self.root, self.environment() | environment, check)

    def ablate(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        if arguments[0] in ("run", "report"):
            feed_mlflow(self.root / ".paribus", self.environment())
        return self._python("-m", "paribus", "ablate", *arguments, check=check)

    def execute(
        self, study: str, *, workers: int = 1, retry: bool = False, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The runs of `paribus ablate run` without its report, which takes longer than they do."""
        return self._python(*executing(study, workers, retry), check=check)

    def _python(self, *arguments: str, check: bool) -> subprocess.CompletedProcess[str]:
        done = warm().run(list(arguments), self.root, self.environment())
        assert done.returncode == 0 or not check, (
            f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def begin(self, study: str, workers: int = 1, retry: bool = False) -> WarmProcess:
        """As `execute`, in the background; what it says goes to a file beside the project."""
        with self.root.with_name(f"{self.root.name}.log").open("ab") as log:
            return warm().begin(
                executing(study, workers, retry),
                self.root,
                self.environment(),
                log.fileno(),
                log.fileno(),
            )

    def log(self) -> str:
        return self.root.with_name(f"{self.root.name}.log").read_text()

    # ------------------------------------------------------------ what there is

    def experiments(self, study: str) -> list[Reference]:
        return experiments_of(study, self.root)

    def values(self, study: str) -> dict[str, float]:
        """Run -> its value, as its experiment has it."""
        found = {}
        for one in self.experiments(study):
            text = self.git("show", f"{one.commit}:./metrics/pretrain.json")
            found[one.name] = json.loads(text)["val_bpb"]
        return found

    def events(self, study: str) -> list[dict[str, Any]]:
        path = self.root / f".paribus/ablations/{study}/journal.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def ended(self, study: str, event: str) -> list[str]:
        return [row["run"] for row in self.events(study) if row["event"] == event]

    def trained(self) -> dict[str, list[int]]:
        """State of a training -> the steps it made."""
        found = {}
        for path in sorted((self.root / ".paribus/runs").glob("pretrain-*/steps.jsonl")):
            found[path.parent.name] = [
                json.loads(line)["step"] for line in path.read_text().splitlines()
            ]
        return found

    def clones(self) -> list[Path]:
        return list((self.root / ".paribus/execute").glob("*/*/clone"))

    def checkout(self) -> str:
        """A hash of the user's checkout: every file, HEAD, the index, what git calls changed, the stash."""
        digest = hashlib.sha256()
        for name in ("HEAD", "index"):
            digest.update((self.root / ".git" / name).read_bytes())
        digest.update(self.git("for-each-ref", "refs/heads", "refs/stash", "refs/tags").encode())
        for path in sorted(self.root.rglob("*")):
            inner = path.relative_to(self.root).parts
            kept_by_harness = inner[0] in (".git", ".paribus", ".dvc") or inner[:2] == (
                "experiments",
                "results",
            )
            if path.is_file() and not kept_by_harness and not inner[0].startswith("ml"):
                digest.update(f"{path} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
        return digest.hexdigest()

    # ------------------------------------------------------------ processes

    def workers(self) -> list[psutil.Process]:
        """Worker processes; each leads a session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                words = process.cmdline()
                ours = "paribus.execute.worker" in words and str(self.root) in words
                if ours and os.getsid(process.pid) == process.pid and _alive(process):
                    found.append(process)
        return found

    def session(self, worker: int) -> list[psutil.Process]:
        """The processes of a worker's session: itself, its guardian, its stages."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == worker and _alive(process):
                    found.append(process)
        return found

    def guardians(self) -> list[psutil.Process]:
        return [one for one in self._below_workers() if _is_worker(one)]

    def stages(self) -> list[psutil.Process]:
        return [one for one in self._below_workers() if not _is_worker(one)]

    def _below_workers(self) -> list[psutil.Process]:
        found = []
        for worker in self.workers():
            found += [one for one in self.session(worker.pid) if one.pid != worker.pid]
        return found

    def left_behind(self) -> list[str]:
        """Every process that works for the project but for what feeds MLflow, as its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                words = process.cmdline()
                where = [*words, process.cwd()]
                ours = any(str(self.root) in word for word in where)
                if ours and process.pid != os.getpid() and "paribus.tracking.sender" not in words:
                    found.append(f"{process.pid} {' '.join(words)}")
        return found


# What `paribus ablate run` does but for its report, behind the command line's own handling of errors; a run that another
# process computes is tried again sooner.
EXECUTING = """
import sys
from paribus.cli.commands import commands
from paribus.cli import ablation
from paribus.study import driver
from paribus.study.reading import read_experiment

@commands.command("execute")
def execute():
    name, workers, retry = sys.argv[2:]
    driver.BUSY_SECONDS = 0.5
    ablation.execute_parts(
        read_experiment(name), ablation.How(int(workers), retry=retry == "retry")
    )

commands(["execute"])
"""


def executing(study: str, workers: int = 1, retry: bool = False) -> list[str]:
    """The arguments of Python for the runs of a study."""
    return ["-c", EXECUTING, "execute", study, str(workers), "retry" if retry else "first"]


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is a worker, or one's guardian; also where it has just ended."""
    try:
        return "paribus.execute.worker" in process.cmdline()
    except psutil.Error:
        return True


def _alive(process: psutil.Process) -> bool:
    return bool(process.status() != psutil.STATUS_ZOMBIE)


def kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)

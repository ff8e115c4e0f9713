"""What training pays besides its steps: start-up, tracking, saving, loading; and nanochat's loader beside ours.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/overheads.py --peer /somewhere/nanochat --out overheads.json

All on the default's model and batch, in a project of its own with two megabytes of documents:

    start_up     seconds from `paribus pretrain` to the beginning of its first step
    tracking     what a logged step costs the loop, and the background thread that feeds MLflow, as shares of a step
    saving       what a save costs the loop: the copy, and by how much steps are slower while it is written, in steps
    loader       tokens/s at sequence 256, 16 rows: ours from token shards; nanochat's, which tokenises (here with our
                 tokenizer, in Rust, two threads) and packs from BOS on as it goes. Rounds alternate, medians are reported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from conftest import TINY  # noqa: E402
from project import Project  # noqa: E402

from paribus import runtime  # noqa: E402
from paribus.config import Config, flatten, load_config  # noqa: E402

LENGTH, ROWS = 256, 16
LOGGED = 500  # steps, to see what logging one costs
SAVES = (8, 16)  # after these steps
STEPS = 24
DEFAULTS = ("model.", "tokenizer.", "tokens.", "train.", "pretrain.")  # sections taken as they are, not tiny


def make_project(folder: Path) -> Project:
    """The default's model and batch on a small corpus, its tokens written."""
    default = flatten(load_config(ROOT / "params.yaml"))
    kept = {key: default[key] for key in TINY if key.startswith(DEFAULTS)}
    project = Project(folder, ROOT, **kept | {"corpus.world.megabytes": 2, "pretrain.steps": 3, "pretrain.eval_every": 0,
                                              "tracking.system_metrics": True})
    script = "from paribus import stages\nfor name in ('corpus', 'tokenizer', 'tokens'): getattr(stages, name)()"
    project.run(sys.executable, "-c", script, PYTHONPATH=str(folder / "src"), DVC_ROOT=str(folder))
    return project


def start_up(project: Project) -> dict[str, float]:
    """Seconds to the first step, as a user waits for it."""
    environment = project.environment() | {"PYTHONPATH": str(project.root / "src"), "DVC_ROOT": str(project.root)}
    began = time.time()
    subprocess.run(["paribus", "pretrain"], cwd=project.root, env=environment, check=True, capture_output=True)
    [path] = (project.root / ".paribus/runs").glob("pretrain-*/metrics.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    return {"seconds": first["time"] - first["train/seconds"] - began, "first_step_seconds": first["train/seconds"]}


def tracking(config: Config, folder: Path, step_seconds: float) -> dict[str, float]:
    """Seconds of logging one step, in the loop and behind it; what is paid once (importing mlflow) left out."""
    from paribus.journal import read_json
    from paribus.tracking import RunLog

    metrics = {f"train/{number}": 1.0 + number for number in range(10)}
    with RunLog.open("overheads", folder=folder / ".paribus/runs/overheads", config=config, params=flatten(config),
                     fingerprint="overheads") as log:
        log.log(1, metrics)
        while "RUNNING" not in (read_json(log.folder / "mlflow.json") or {}).values():  # until mlflow is loaded
            time.sleep(0.2)
        all_before, own_before = time.process_time(), time.thread_time()
        for step in range(2, LOGGED + 2):
            log.log(step, metrics)
        own = (time.thread_time() - own_before) / LOGGED
        log.finish()
        behind = (time.process_time() - all_before - (time.thread_time() - own_before)) / LOGGED
    return {"loop_seconds_per_step": own, "background_cpu_seconds_per_step": behind, "loop_share": own / step_seconds,
            "share": (own + behind) / step_seconds}


class Clock:
    """Times the steps of a loop, and saves after some of them."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.writing: list[bool] = []  # whether a state was being written while the step ran
        self.blocked: list[float] = []
        self.loop: Any = None

    def __call__(self, step: int, _: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())
        self.writing.append(self.loop.store.writing)
        if step in SAVES:
            self.loop.save()
            self.blocked.append(time.perf_counter() - self.ends[-1])

    def steps(self) -> list[float]:
        """Seconds of each step but the first, saving left out."""
        saved = dict(zip(SAVES, self.blocked, strict=True))
        return [end - begin - saved.get(number, 0.0)
                for number, (begin, end) in enumerate(zip(self.ends, self.ends[1:], strict=False), 1)]


def saving(project: Project, config: Config) -> dict[str, float]:
    """What a save costs, in steps."""
    import torch

    from paribus.data.loader import DocumentLoader
    from paribus.model.gpt import GPT
    from paribus.session import Interrupt
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Hooks, Loop, Plan
    from paribus.train.objectives import NextToken
    from paribus.train.optim import MuonAdamW

    hardware = runtime.detect(config.train)
    runtime.apply(hardware, config.seed)
    model = GPT(config.model, config.tokenizer.vocab_size, getattr(torch, hardware.dtype))
    model.initialise(config.seed)
    schedule, clock, store = config.pretrain, Clock(), StateStore(project.root / "state", 2)
    loader = DocumentLoader(project.root / "data/tokens", "train", model.config.seq_len, config.seed)
    objective = NextToken(loader, (schedule.batch_tokens or 4096) // model.config.seq_len, schedule.device_batch_size)
    quiet = Hooks.silent(lambda step: {})
    hooks = Hooks(quiet.log, quiet.event, quiet.sync, quiet.rewind, quiet.evaluate, clock)
    plan = Plan(STEPS, lambda step: 1.0, 1.0, 1.0, math.inf)
    clock.loop = Loop(model, model, MuonAdamW(model, config.optimizer), objective, plan, store, Interrupt(), hooks)
    clock.loop.run()
    steps = list(enumerate(clock.steps(), 1))
    disturbed = {number for number, _ in steps if clock.writing[number] or number in SAVES}
    step = statistics.median(seconds for number, seconds in steps if number not in disturbed)
    slower = sum(seconds - step for number, seconds in steps if number in disturbed)
    blocked = statistics.mean(clock.blocked)
    return {"step_seconds": step, "state_bytes": max(path.stat().st_size for path in (project.root / "state").iterdir()),
            "blocked_seconds": blocked, "blocked_steps": blocked / step, "slower_steps": slower / len(SAVES) / step,
            "stall_steps": (blocked + max(slower, 0.0) / len(SAVES)) / step}


# ---------------------------------------------------------------- loaders


class PeerTokenizer:
    """What nanochat's loader asks of a tokenizer, answered by ours."""

    def __init__(self, folder: Path) -> None:
        from paribus.data.tokenizer import Tokenizer

        self.own = Tokenizer.load(folder / "data/tokenizer/tokenizer.json")

    def get_bos_token_id(self) -> int:
        return self.own.bos

    def encode(self, texts: list[str], prepend: int, num_threads: int) -> list[list[int]]:
        return [[prepend, *ids] for ids in self.own.encode_batch(texts)]


def peer_batches(peer: Path, project: Project) -> Iterator[Any]:
    """nanochat's own loader over the same documents, which it wants as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from paribus.data.shards import documents

    folder = project.root / "peer/base_data_climbmix"
    folder.mkdir(parents=True)
    table = pa.table({"text": list(documents(project.root / "data/corpus/documents"))})
    for name in ("shard_00000.parquet", "shard_00001.parquet"):  # the last one is its validation split
        pq.write_table(table, folder / name, row_group_size=1000)
    os.environ["NANOCHAT_BASE_DIR"] = str(folder.parent)
    sys.path.insert(0, str(peer))
    module = importlib.import_module("nanochat.dataloader")
    return iter(module.tokenizing_distributed_data_loader_bos_bestfit(PeerTokenizer(project.root), ROWS, LENGTH, "train",
                                                                      device="cpu"))


def own_batches(project: Project) -> Iterator[Any]:
    from paribus.data.loader import DocumentLoader

    loader, step = DocumentLoader(project.root / "data/tokens", "train", LENGTH, 1), 0
    while True:
        yield loader.batch(step, range(ROWS), ROWS)
        step += 1


def tokens_per_second(batches: Iterator[Any], seconds: float) -> float:
    """Of drawing batches for so long, after a first one."""
    next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count * ROWS * LENGTH / (time.perf_counter() - began)


def loaders(project: Project, peer: Path | None, rounds: int, seconds: float) -> dict[str, Any]:
    sides: dict[str, Iterator[Any]] = {"paribus": own_batches(project)}
    if peer:
        sides["nanochat"] = peer_batches(peer, project)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, batches in sides.items():
            rates[name].append(tokens_per_second(batches, seconds))
    medians: dict[str, Any] = {f"{name}_tokens_per_second": statistics.median(values) for name, values in rates.items()}
    if peer:
        medians["ratio"] = medians["paribus_tokens_per_second"] / medians["nanochat_tokens_per_second"]
    return medians | {"rounds": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat, to run its loader too")
    parser.add_argument("--rounds", type=int, default=3, help="of the loaders")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a loader in a round")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paribus-overheads-") as name:
        os.environ |= {"DVC_ROOT": name, "MLFLOW_DISABLE_TELEMETRY": "true"}
        project = make_project(Path(name))
        config = load_config(project.root / "params.yaml")
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "loader": lambda: loaders(project, args.peer, args.rounds, args.seconds),
            "saving": lambda: saving(project, config),
            "tracking": lambda: tracking(config, project.root, result["saving"]["step_seconds"]),
            "start_up": lambda: start_up(project),
        }
        result: dict[str, Any] = {"machine": runtime.cpu_name(), "cores": runtime.available_cores(),
                                  "load_before": os.getloadavg()[0], "torch": version("torch"), "mlflow": version("mlflow")}
        for key, measure in measures.items():
            result[key] = measure()
            print(f"{key}: {json.dumps(result[key])}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

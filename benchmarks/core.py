"""CORE beside nanochat's core_eval: the same items, model, tokenizer and machine; predictions and time by task.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/core.py --bundle ../shared/data/eval_bundle --corpus ../shared/data/corpus \
        --peer /somewhere/nanochat --items 20 --out core.json

They run alternately, a task at a time, on the first items after the shuffle with few-shot examples from the whole
file. The peer's evaluation runs twice: on paribus' model, for item-by-item parity and like-for-like time (`peer`),
and on nanochat's own model of the same depth and width (`own`): what a user of nanochat waits for.
Weights are random: time does not depend on what a model knows, and near-ties are as likely as they get.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from paribus import config
from paribus.config import resolve_model
from paribus.data.core_bundle import Task, read_bundle
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.evaluate.core import Item, evaluate_task
from paribus.model.gpt import GPT

TIE = 1e-4  # nats: a flip is excused where the two best options lie closer


class PeerModel:
    """What core_eval asks of a model: logits (B, T, V) at every place, and its longest input."""

    def __init__(self, model: GPT) -> None:
        self.model, self.max_seq_len = model, model.config.seq_len

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.logits(self.model.hidden(tokens))


class OwnModel:
    """nanochat's own GPT of the same shape, fp32, random."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        os.environ["NANOCHAT_DTYPE"] = "float32"
        sys.path.insert(0, str(folder))
        peer = importlib.import_module("nanochat.gpt")
        heads = args.width // 64
        shape = peer.GPTConfig(
            sequence_len=args.seq_len,
            vocab_size=args.vocab_size,
            n_layer=args.depth,
            n_head=heads,
            n_kv_head=heads,
            n_embd=args.width,
        )
        with torch.device("meta"):
            self.model = peer.GPT(shape)
        self.model.to_empty(device=args.device)
        self.model.init_weights()
        self.max_seq_len = args.seq_len

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens)


class PeerTokenizer:
    """What core_eval asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def get_bos_token_id(self) -> int:
        return self.tokenizer.bos

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *ids] for ids in self.tokenizer.encode_batch(texts)]


def load_peer(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "peer_core_eval", folder / "nanochat" / "core_eval.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_model(args: argparse.Namespace) -> GPT:
    """Every matrix drawn, the head too (training starts it at zero, which would tie every option)."""
    base = config.load_config(Path(__file__).parents[1] / "params.yaml").model
    shape = dataclasses.replace(base, depth=args.depth, width=args.width, seq_len=args.seq_len)
    model = GPT(resolve_model(shape), args.vocab_size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                )
    return model.to(args.device)


def corpus_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def run_peer(
    peer: ModuleType, model: PeerModel | OwnModel, tokenizer: PeerTokenizer, task: Task, device: str
) -> list[bool]:
    meta = {
        "task_type": task.kind,
        "num_fewshot": task.shots,
        "continuation_delimiter": task.delimiter,
    }
    return [
        bool(peer.evaluate_example(index, model, tokenizer, task.rows, device, meta))
        for index in range(task.n)
    ]


def flips(ours: list[Item], theirs: list[bool]) -> tuple[int, int]:
    """(items that differ, those of them that a near-tie excuses)."""
    differ = [item for item, correct in zip(ours, theirs, strict=True) if item.correct != correct]
    excused = 0
    for item in differ:
        best = sorted(loss for loss in item.losses if loss is not None)[:2]
        excused += len(best) == 2 and best[1] - best[0] <= TIE
    return len(differ), excused


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        help="folder of .jsonl with `text`, to train a tokenizer",
    )
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of nanochat")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=20, help="of each task")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="the peer may take for a task; then fewer items"
    )
    parser.add_argument("--tasks", nargs="*", help="labels; default: all that have data")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    base = config.load_config(Path(__file__).parents[1] / "params.yaml").tokenizer
    tokenizer = train_tokenizer(
        corpus_texts(args.corpus), dataclasses.replace(base, vocab_size=args.vocab_size)
    )
    model, peer, own = random_model(args), load_peer(args.peer), OwnModel(args.peer, args)
    tasks = [
        task
        for task in read_bundle(args.bundle).tasks
        if not args.tasks or task.label in args.tasks
    ]
    shape = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
    report: dict[str, Any] = {"arguments": shape, "machine": machine(), "tasks": {}}
    for task in tasks:
        report["tasks"][task.label] = row = compare(
            dataclasses.replace(task, n=min(args.items, task.population)),
            model,
            own,
            tokenizer,
            peer,
            args,
        )
        print(
            f"{task.label:34} items {row['items']:4}  flips {row['flips']}  excused {row['excused']}  "
            + "  ".join(f"{name} {row[name]:.2f}" for name in ratios(row)),
            flush=True,
        )
    rows = report["tasks"].values()
    names = ("seconds", "cpu", "peer_seconds", "peer_cpu", "own_seconds", "own_cpu")
    whole = {
        name: sum(row[name] * row["population"] / row["items"] for row in rows) for name in names
    }
    report["whole"] = whole | ratios(whole)  # all items, at the rate of the first ones
    print(report["whole"])
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["flips"] > row["excused"] for row in rows))


def compare(
    task: Task,
    model: GPT,
    own: OwnModel,
    tokenizer: Tokenizer,
    peer: ModuleType,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """One task on all sides; a first item warms each up, and tells how many fit the time."""

    def run(theirs: PeerModel | OwnModel, task: Task) -> tuple[list[bool], float, float]:
        return timed(lambda: run_peer(peer, theirs, PeerTokenizer(tokenizer), task, args.device))

    one = dataclasses.replace(task, n=1)
    evaluate_task(model, tokenizer, one, args.batch_size)
    run(own, one)
    task = dataclasses.replace(
        task, n=max(min(task.n, round(args.seconds / run(PeerModel(model), one)[1])), 8)
    )
    items, seconds, cpu = timed(lambda: evaluate_task(model, tokenizer, task, args.batch_size))
    theirs, peer_seconds, peer_cpu = run(PeerModel(model), task)
    _, own_seconds, own_cpu = run(own, task)
    differ, excused = flips(items, theirs)
    row = {
        "items": task.n,
        "population": task.population,
        "flips": differ,
        "excused": excused,
        "seconds": seconds,
        "cpu": cpu,
        "peer_seconds": peer_seconds,
        "peer_cpu": peer_cpu,
        "own_seconds": own_seconds,
        "own_cpu": own_cpu,
    }
    return row | ratios(row)


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Times of the peer over paribus', by the clock and by the CPU."""
    return {
        f"{side}_{kind}_ratio": row[f"{side}_{kind}"] / row[kind]
        for side in ("peer", "own")
        for kind in ("seconds", "cpu")
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, seconds of CPU): on a shared machine the second says more."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    main()

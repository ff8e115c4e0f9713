"""The loader's speed: rows of tokens drawn from memory-mapped shards, and beside it nanochat's loader on the same documents.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/loader.py --peer /somewhere/nanochat --out loader.json

Sequence 256, 16 rows, two megabytes of documents. Ours reads token shards that were written once (what that takes is in
`writing_tokens_per_second`); nanochat's tokenises (here with our tokenizer, in Rust, with all cores) and packs from BOS on
as it goes. Rounds alternate, medians are reported. `cpu` divides by processor time, of all threads, in place of wall time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small import Project, make_project
from steps import machine

from paribus.config import load_config

LENGTH, ROWS = 256, 16


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
    for name in (
        "shard_00000.parquet",
        "shard_00001.parquet",
    ):  # the last one is its validation split
        pq.write_table(table, folder / name, row_group_size=1000)
    os.environ["NANOCHAT_BASE_DIR"] = str(folder.parent)
    sys.path.insert(0, str(peer))
    module = importlib.import_module("nanochat.dataloader")
    return iter(
        module.tokenizing_distributed_data_loader_bos_bestfit(
            PeerTokenizer(project.root), ROWS, LENGTH, "train", device="cpu"
        )
    )


def own_batches(project: Project) -> Iterator[Any]:
    from paribus.data.loader import DocumentLoader

    loader, step = DocumentLoader(project.root / "data/tokens", "train", LENGTH, 1), 0
    while True:
        yield loader.batch(step, range(ROWS), ROWS)
        step += 1


def speeds(batches: Iterator[Any], seconds: float) -> dict[str, float]:
    """Tokens per second (wall, and of processor time) of drawing batches for so long, after a first one."""
    next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        next(batches)
        count += 1
    tokens = count * ROWS * LENGTH
    return {
        "wall": tokens / (time.perf_counter() - wall),
        "cpu": tokens / (time.process_time() - cpu),
    }


def loaders(project: Project, peer: Path | None, rounds: int, seconds: float) -> dict[str, Any]:
    """Both sides' rounds, their medians and the ratio."""
    sides: dict[str, Iterator[Any]] = {"paribus": own_batches(project)}
    if peer:
        sides["nanochat"] = peer_batches(peer, project)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, batches in sides.items():
            found[name].append(speeds(batches, seconds))
    medians = {
        name: {clock: statistics.median(one[clock] for one in values) for clock in ("wall", "cpu")}
        for name, values in found.items()
    }
    ratio = (
        {clock: medians["paribus"][clock] / medians["nanochat"][clock] for clock in ("wall", "cpu")}
        if peer
        else None
    )
    return {"tokens_per_second": medians, "ratio": ratio, "rounds": found}


def writing(project: Project) -> float:
    """Tokens per second of writing the shards: tokenising included, once for all epochs and runs."""
    from paribus.data.shards import write_shards
    from paribus.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(project.root / "data/tokenizer/tokenizer.json")
    config = load_config(project.root / "params.yaml")
    began = time.perf_counter()
    manifest = write_shards(
        project.root / "data/corpus/documents", tokenizer, config.tokens, project.root / "again"
    )
    return (manifest["train"]["tokens"] + manifest["val"]["tokens"]) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a loader in a round")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paribus-loader-") as name:
        os.environ["DVC_ROOT"] = name
        project = make_project(Path(name))
        result = {
            "machine": machine(),
            "length": LENGTH,
            "rows": ROWS,
            "writing_tokens_per_second": writing(project),
            **loaders(project, args.peer, args.rounds, args.seconds),
        }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Writing token shards beside the tokenizer library alone, by wall clock.

    python benchmarks/shards.py data/corpus/documents data/tokenizer/tokenizer.json --rounds 5 --out benchmarks/shards.json

The library: one call of `encode_batch_fast` with every document at once, already in memory, its result thrown away.
paribus: `write_shards`, from the folder of documents to shards, index and manifest. Rounds alternate; ratio is the median of
theirs. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import tokenizers

from paribus import config
from paribus.data.shards import documents, write_shards
from paribus.data.tokenizer import Tokenizer


def library_seconds(path: Path, texts: list[str]) -> float:
    """Of encoding all texts."""
    inner = tokenizers.Tokenizer.from_file(str(path))
    began = time.perf_counter()
    inner.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - began


def paribus_seconds(path: Path, folder: Path) -> float:
    """Of writing the shards of a folder."""
    tokenizer = Tokenizer.load(path)
    out = Path(tempfile.mkdtemp())
    began = time.perf_counter()
    write_shards(
        folder, tokenizer, config.Tokens(val_fraction=0.05, shard_tokens=4_000_000), out / "tokens"
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, help="a folder of .jsonl")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = list(documents(options.documents))
    size = sum(len(text.encode()) for text in texts) / 1e6
    rounds = []
    for _ in range(options.rounds):
        library = library_seconds(options.tokenizer, texts)
        paribus = paribus_seconds(options.tokenizer, options.documents)
        rounds.append(
            {
                "library_mb_per_second": size / library,
                "paribus_mb_per_second": size / paribus,
                "ratio": library / paribus,
            }
        )
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    record = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        **medians,
        "megabytes": size,
        "documents": len(texts),
        "rounds": rounds,
    }
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

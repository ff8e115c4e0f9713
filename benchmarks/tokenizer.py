"""The tokenizer trained on gigabytes: how much memory, how long?

    python benchmarks/tokenizer.py ../shared/data/corpus --megabytes 2000 --out benchmarks/tokenizer.json

The folder's text is repeated until there is enough. In copy k a share 0.6 k^-0.4 of the words that the folder has at most
twice is renamed, so that different words grow as the 0.6th power of the text, as those of English do (Heaps 1978). The peak and
the times are of the whole process, which also makes the text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import tokenizers

from paribus import config
from paribus.data.shards import documents
from paribus.data.tokenizer import compression, train_tokenizer

WORD = re.compile("[A-Za-z]{3,}")


def growing(texts: list[str], megabytes: float) -> Iterator[str]:
    """The texts, then copies of them with new words, up to so many megabytes."""
    counts = Counter(word for text in texts for word in WORD.findall(text))
    rare = {word for word, count in counts.items() if count <= 2}
    left, copy = megabytes * 1e6, 0
    while left > 0:
        copy += 1
        rng, new = random.Random(copy), 0.6 * copy**-0.4

        def renamed(
            found: re.Match[str], rng: random.Random = rng, new: float = new, copy: int = copy
        ) -> str:
            word = found[0]
            if word not in rare:
                return word
            name = copy if rng.random() < new else rng.randrange(copy)
            mixed = name * 2654435761 % 2**32
            tail = (
                chr(97 + mixed % 26)
                + word[2:]
                + chr(97 + mixed // 26 % 26)
                + chr(97 + mixed // 676 % 26)
            )
            return word[:2] + tail if name else word

        for text in texts:
            yield text if copy == 1 else WORD.sub(renamed, text)
            left -= len(text)
            if left <= 0:
                return


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, help="a folder of .jsonl")
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = list(documents(options.documents))
    before, began, processor = peak_bytes(), time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer(
        growing(texts, options.megabytes),
        config.Tokenizer(options.vocab_size, 2, options.megabytes, kind="bpe", pre_split="gpt4"),
    )
    record = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "tokenizers": tokenizers.__version__,
        "megabytes": options.megabytes,
        "vocab_size": options.vocab_size,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "bytes_per_token": compression(tokenizer, texts[::20]),
    }
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

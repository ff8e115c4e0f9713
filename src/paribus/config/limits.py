"""Upper bounds of the keys, each with its reason.

A value above one of these is a slip of the keyboard, or no machine holds it, or the arithmetic breaks. Refused when the
file is read, it costs a second; accepted, a night.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """An upper bound and where it comes from."""

    value: float
    why: str


SEED = Limit(2**64 - 1, "torch takes seeds below 2^64")
BATCH = Limit(2**27, "eight times the largest published batches, and 3 GB in memory for each")
STEPS = Limit(10_000_000, "ten times the steps of the longest published trainings")
ROWS = Limit(65_536, "no machine holds more rows side by side")
QUESTIONS = Limit(65_536, "eight times the largest published batches")
LETTERS = 4_096  # characters of a text; the longest path that Linux takes
TOKENS = Limit(10**14, "several times all published text")
WIDTH = Limit(65_536, "four times the widest published models")
HEADS = Limit(8_192, "width / head_dim at their bounds")
CONTEXT = Limit(2**20, "the longest published context windows")
WORLD = Limit(1_000_000, "the templates repeat themselves long before")
WORLD_ITEMS = Limit(732, "world_sequence has so many different items: 12 steps from 61 starts")
WORLD_HELD_OUT = Limit(100_000, "a tenth of the distinct problems is kept for each held-out split")
WORLD_MEGABYTES = Limit(100_000.0, "100 GB of templates")
PROBLEMS = Limit(1_000_000, "no data set of word problems has as many")
RATE = Limit(100.0, "a weight of size 1 would be lost in one step")
SCALE = Limit(1_000.0, "a thousand times the rates that params.yaml gives")
EPSILON = 1e-37  # the smallest normal number of 32 bits is 1.2e-38; below, it rounds to 0, and 0 / 0 is not a number
COLDEST = 0.01  # logits are divided by it in 32 bits; answers are greedy long before
HOTTEST = Limit(100.0, "every token is as likely as any other")
SAMPLES = Limit(10_000, "ten times what published estimates of pass@k draw")
PROCESSES = Limit(64, "no machine has as many cards; several machines take torchrun")
CORES = Limit(1_024, "more cores than the largest machines have")

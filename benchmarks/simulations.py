"""What the simulations of verdicts share: their command line, and how they print and keep what they found."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Part = Callable[[np.random.Generator], dict[str, Any]]


def run_parts(script: str, description: str, parts: Mapping[str, Part]) -> None:
    """Run a simulation from the command line, all parts of it or one, and write what they found.

    Args:
        script: its file's name.
        description: for `--help`.
        parts: name -> function of a generator of random numbers, of which each part has its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", choices=parts, help="one part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.process_time()
    found: dict[str, Any] = {"command": f"python benchmarks/{script}"}
    for name, part in parts.items():
        if options.only in (None, name):
            found[name] = part(np.random.default_rng(options.seed))
    found["cpu_seconds"] = round(time.process_time() - began, 1)
    write(found, options.out)


def write(found: Mapping[str, Any], out: Path | None) -> None:
    """Print what was found as JSON, innermost lists and mappings on a line each.

    Args:
        found: by name.
        out: the file that keeps it too.
    """
    innermost = r"[{\[][^{}\[\]]*[}\]]"
    text = re.sub(innermost, lambda leaf: " ".join(leaf[0].split()), json.dumps(found, indent=1))
    if out:
        out.write_text(text + "\n")
    print(text)

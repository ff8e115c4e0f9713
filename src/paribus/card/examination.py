"""All checks of a card within a time, as one record and one page."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paribus.card.checks import CHECKS, Check
from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.journal import write_json
from paribus.machine.hardware import available_cores, cpu_name
from paribus.machine.provenance import git_state
from paribus.model.kernels import shared_memory
from paribus.pages.markdown import cell, fenced
from paribus.places import state_root

LAST_WORDS = 12  # lines of a check that broke down


@dataclass(frozen=True)
class Result:
    """How a check ended: passed, failed (a wrong result), broken (it did not end by itself) or not reached."""

    name: str
    title: str
    state: str
    seconds: float
    wrong: str = ""
    cure: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    last_words: str = ""


def examine(
    device: str, minutes: float, peer: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the checks one after the other.

    Args:
        device: cuda, or cpu to try the checks at the smallest sizes.
        minutes: for all of them; those that are not reached say so.
        peer: a checkout of nanochat.
        say: takes a line as each check begins.

    Returns:
        The record, ready for JSON.

    Raises:
        UserError: where no card can be used, or `peer` is no checkout of nanochat.
    """
    _check(device, peer)
    ends = time.monotonic() + 60 * minutes
    results = []
    for check in CHECKS:
        if check.name == "peer" and peer is None:
            continue
        left = ends - time.monotonic()
        if left < 1:
            results.append(Result(check.name, check.title, "not reached", 0.0))
            continue
        say(f"{check.name}: {check.title}")
        results.append(run_check(check, device, peer, min(left, check.seconds)))
    return {**_machine(device), "minutes": minutes, "checks": [asdict(one) for one in results]}


def _check(device: str, peer: Path | None) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--gpu: torch {torch.__version__} sees no CUDA device here (`paribus doctor` says why); "
            "--device cpu tries every check at the smallest sizes"
        )
    if peer is not None and not (peer / "nanochat/gpt.py").is_file():
        raise UserError(f"--peer: {peer} has no nanochat/gpt.py; name a checkout of nanochat")


def run_check(check: Check, device: str, peer: Path | None, seconds: float) -> Result:
    """A check in a process of its own, ended after so many seconds."""
    command = [sys.executable, "-m", "paribus.card.one", check.name, device]
    command += [str(peer)] if peer else []
    environment = os.environ | {"NANOCHAT_DTYPE": "bfloat16" if device == "cuda" else "float32"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        wrong = f"not through after {seconds:.0f} s"
        return Result(check.name, check.title, "broken", seconds, wrong, check.cure)
    taken = time.monotonic() - began
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-LAST_WORDS:])
        wrong = f"exit status {done.returncode}"
        return Result(check.name, check.title, "broken", taken, wrong, check.cure, last_words=words)
    found = json.loads(done.stdout.splitlines()[-1])
    state = "failed" if found["wrong"] else "passed"
    cure = check.cure if found["wrong"] else ""
    return Result(check.name, check.title, state, taken, found["wrong"], cure, found["figures"])


def _machine(device: str) -> dict[str, Any]:
    """What was examined."""
    import torch

    import paribus

    about: dict[str, Any] = {
        "card": cpu_name(),
        "device": device,
        "cpu": cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "paribus": paribus.__version__,
        "commit": git_state()["commit"],
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "shared_memory_bytes": shared_memory(torch.device("cuda")),
            "cuda": torch.version.cuda,
        }
    return about


# ---------------------------------------------------------------- the record and the page


def page(record: dict[str, Any]) -> str:
    """The record as Markdown that can stand in an issue."""
    head = f"## paribus on {cell(record['card'])}"
    facts = {key: value for key, value in record.items() if key not in ("card", "checks")}
    lines = [head, "", ", ".join(f"{key} {cell(value)}" for key, value in facts.items()), ""]
    lines += ["| check | result | figures |", "| --- | --- | --- |"]
    broken = []
    for check in record["checks"]:
        result = check["state"]
        if check["wrong"]:
            result = f"**{result}**: {cell(check['wrong'])}; change {cell(check['cure'])}"
        shown = ", ".join(f"{name} {_number(value)}" for name, value in check["figures"].items())
        lines.append(f"| {cell(check['title'])} | {result} | {cell(shown)} |")
        if check["last_words"]:
            broken += ["", f"`{check['name']}` ended with:", "", fenced(check["last_words"])]
    return "\n".join([*lines, *broken]) + "\n"


def _number(value: object) -> str:
    """A figure in few digits; hashes by their beginnings."""
    if isinstance(value, list):
        return " and ".join(str(one)[:8] for one in value)
    return f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def all_passed(record: dict[str, Any]) -> bool:
    """Whether no check failed or broke down; one that was not reached counts for nothing."""
    return all(check["state"] in ("passed", "not reached") for check in record["checks"])


def write(record: dict[str, Any]) -> tuple[Path, Path]:
    """Write the record and its page below .paribus/card, and return where they lie."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(record["card"]).lower()).strip("-")
    folder = state_root() / "card"
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / f"{slug}.json", folder / f"{slug}.md"
    write_json(data, record)
    write_atomic(text, page(record))
    return data, text

"""All checks of a card within a time, as one record and one page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from paribus.card.bench import SIZES, Figures
from paribus.card.checks import CHECKS, Check
from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.git import try_git
from paribus.journal import write_json
from paribus.machine.hardware import available_cores, cpu_name, unused_driver
from paribus.machine.provenance import git_state
from paribus.model.kernels import shared_memory
from paribus.pages.markdown import cell, fenced
from paribus.places import state_root
from paribus.text import memory_size

FACTS = (  # of the record, in the page's first line
    "compute_capability",
    "memory_bytes",
    "driver",
    "cuda",
    "torch",
    "python",
    "cpu",
    "cores",
    "paribus",
    "commit",
    "began",
    "seconds",
    "minutes",
)
VERSION = 2  # of the record's keys
USUAL_MINUTES = 10.0  # for which the checks' own limits are meant
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
    figures: Figures = field(default_factory=dict)
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
    began = time.monotonic()
    ends = began + 60 * minutes
    slower = max(minutes / USUAL_MINUTES, 1.0)
    results = []
    for check in CHECKS:
        if check.name == "peer" and peer is None:
            continue
        left = ends - time.monotonic()
        if left < 1:
            results.append(Result(check.name, check.title, "not reached", 0.0))
            continue
        say(f"{check.name}: {check.title}")
        results.append(run_check(check, device, peer, min(left, slower * check.seconds)))
    return {
        "version": VERSION,
        **_machine(device),
        "sizes": dataclasses.asdict(SIZES[device]),
        "peer": None if peer is None else peer_commit(peer),
        "minutes": minutes,
        "seconds": time.monotonic() - began,
        "passed": all(result.state in ("passed", "not reached") for result in results),
        "beside_peer": beside_peer({result.name: result.figures for result in results}),
        "checks": [dataclasses.asdict(result) for result in results],
    }


def beside_peer(figures: dict[str, Figures]) -> dict[str, float]:
    """Our tokens per second over nanochat's, by depth. figures: of each check, by its name."""
    ratios = {}
    for name in ("speed_small", "speed_large"):
        own = figures.get(name, {})
        theirs = figures.get("peer", {}).get(f"d{own.get('depth')}_tokens_per_second")
        if theirs and "tokens_per_second" in own:
            ratios[f"d{own['depth']}"] = own["tokens_per_second"] / theirs
    return ratios


def peer_commit(peer: Path) -> str:
    """The commit of a checkout; its folder's name where git knows none."""
    return try_git("rev-parse", "HEAD", at=peer) or peer.name


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
    """A check in a process of its own, ended with all that it started after so many seconds.

    Args:
        check: to run.
        device: of the check, as torch names it.
        peer: folder of nanochat, to compare with; None: without.
        seconds: after which it is ended.
    """
    command = [sys.executable, "-m", "paribus.card.one", check.name, device]
    command += [str(peer)] if peer else []
    environment = os.environ | {"NANOCHAT_DTYPE": "bfloat16" if device == "cuda" else "float32"}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=words, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
        taken = time.monotonic() - began
        return result_of(check, status, taken, lines_of(said), lines_of(words))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and whatever it has started: compilers outlive it else."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lines_of(file: IO[str]) -> list[str]:
    """What a process has written to a file."""
    file.seek(0)
    return file.read().strip().splitlines()


def part_of(line: str) -> dict[str, Any]:
    """What a line of a check's stdout says; {} for a line of somebody else's, nanochat's perhaps, or half a line."""
    try:
        part = json.loads(line, parse_constant=lambda name: None)  # NaN is no JSON
    except json.JSONDecodeError:
        return {}
    return part if isinstance(part, dict) else {}


def result_of(
    check: Check, status: int | None, seconds: float, said: list[str], words: list[str]
) -> Result:
    """How a check ended.

    Args:
        check: that ran.
        status: its exit status; None: it was ended.
        seconds: that it took.
        said: lines of stdout.
        words: lines of stderr.
    """
    wrong = ""
    figures: Figures = {}
    for line in said:
        part = part_of(line)
        figures |= part.get("figures", {})
        wrong = part.get("wrong", "")
    if status is None:
        wrong = f"not through after {seconds:.0f} s"
        cure = f"--minutes: larger, where the card is slow; else {check.cure}"
        return Result(check.name, check.title, "broken", seconds, wrong, cure, figures)
    if status:
        last = "\n".join(words[-LAST_WORDS:])
        wrong = f"exit status {status}"
        return Result(check.name, check.title, "broken", seconds, wrong, check.cure, figures, last)
    if wrong:
        return Result(check.name, check.title, "failed", seconds, wrong, check.cure, figures)
    return Result(check.name, check.title, "passed", seconds, figures=figures)


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
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "shared_memory_bytes": shared_memory(torch.device("cuda")),
            "cuda": torch.version.cuda,
            "driver": unused_driver(),
            "multiprocessors": properties.multi_processor_count,
        }
    return about


# ---------------------------------------------------------------- the record and the page


def page(record: dict[str, Any]) -> str:
    """The record as Markdown that can stand in an issue."""
    facts = [f"{_plain(name)} {_shown(name, record[name])}" for name in FACTS if record.get(name)]
    lines = [f"## paribus on {cell(record['card'])}", "", _verdict(record), ""]
    lines += [", ".join(facts), "", "| check | result | figures |", "| --- | --- | --- |"]
    broken = []
    for check in record["checks"]:
        result = check["state"]
        if check["wrong"]:
            result = f"**{result}**: {cell(check['wrong'])}; change {cell(check['cure'])}"
        figures = [f"{_plain(name)} {_shown(name, one)}" for name, one in check["figures"].items()]
        lines.append(f"| {cell(check['title'])} | {result} | {cell(', '.join(figures))} |")
        if check["last_words"]:
            broken += ["", f"`{check['name']}` ended with:", "", fenced(check["last_words"])]
    for depth, ratio in record.get("beside_peer", {}).items():
        lines += ["", f"{depth}: {ratio:.2f} times nanochat's tokens per second"]
    return "\n".join([*lines, *broken]) + "\n"


def _verdict(record: dict[str, Any]) -> str:
    """How many checks ended in each way; and, on a CPU, that no card was examined."""
    states = [check["state"] for check in record["checks"]]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    tried = (
        "The checks were tried on a CPU at their smallest sizes, which says nothing about a card. "
    )
    on_card = record.get("device", "cuda") == "cuda"
    return f"{'' if on_card else tried}Checks: {', '.join(counts)}."


UNITS = ("_bytes", "_seconds")  # at the end of a figure's name, which the page shows with its value


def _plain(name: str) -> str:
    """A name of the record, in words and without its unit."""
    for unit in UNITS:
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _shown(name: str, value: object) -> str:
    """A figure in few digits with its unit; hashes by their beginnings."""
    if value is None:
        return "not known"
    if isinstance(value, list):
        return " and ".join(str(one)[:8] for one in value)
    if not isinstance(value, int | float):
        return cell(value)
    if name.endswith("_bytes"):
        return memory_size(value)
    if name.endswith("seconds"):
        return f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:,.3g} s"
    if name.endswith(("error", "mfu")):
        return f"{value:.2%}"
    return f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def write(record: dict[str, Any]) -> tuple[Path, Path]:
    """Write the record and its page below .paribus/card, and return where they lie."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(record["card"]).lower()).strip("-")
    folder = state_root() / "card"
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / f"{slug}.json", folder / f"{slug}.md"
    write_json(data, record)
    write_atomic(text, page(record))
    return data, text

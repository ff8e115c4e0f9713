"""`paribus doctor`: is everything there that a run needs? One line a check: what is wrong, and how to mend it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from paribus import config, runtime
from paribus.errors import UserError
from paribus.graph import cache_folder, stage_definitions
from paribus.tracking.store import tracking_uri

LEAST_DISK = (
    2e9  # bytes: the default needs about 0.3 GB, and a full disk ends a run at its next save
)
LITTLE_DISK = 20e9
SHOWN = 4  # of a list of things that are wrong


@dataclass(frozen=True)
class Finding:
    """What a check found. broken: a run would fail or give other results than the lock promises; note: worth knowing."""

    state: Literal["ok", "note", "broken"]
    text: str


def examine() -> list[tuple[str, Finding]]:
    """Every check by name; a check that fails itself is broken, not fatal."""
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append((name, check()))
        except UserError as error:
            findings.append((name, Finding("broken", "; ".join(error.problems))))
        except (
            Exception
        ) as error:  # whatever a broken installation raises, the other checks still run
            findings.append(
                (name, Finding("broken", f"the check failed: {type(error).__name__}: {error}"))
            )
    return findings


def report(findings: list[tuple[str, Finding]]) -> str:
    """One line a finding."""
    return "\n".join(
        f"{finding.state:6} {name:10} {' '.join(finding.text.split())}"
        for name, finding in findings
    )


def _some(things: list[str]) -> str:
    return ", ".join(things[:SHOWN]) + (
        f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    )


# ---------------------------------------------------------------- the machine


def _versions() -> Finding:
    version = sys.version.split()[0]
    if not (3, 11) <= sys.version_info < (3, 14):
        return Finding(
            "broken",
            f"Python {version}; 3.11 to 3.13 are needed: make clean, make venv PYTHON=python3.12",
        )
    lock = Path("requirements.lock")
    if not lock.is_file():
        return Finding(
            "broken",
            "requirements.lock is not here: run this in the checkout, or `git checkout requirements.lock`",
        )
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for name, pinned in pins.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} {pinned} is missing")
            continue
        if (
            found.partition("+")[0] != pinned
        ):  # +cu128 and the like name a build of the same version
            wrong.append(f"{name} is {found}, not {pinned}")
    if wrong:
        return Finding("broken", f"{_some(wrong)}; mend: rm -rf .venv && make venv")
    return Finding("ok", f"Python {version} and {len(pins)} packages as in requirements.lock")


def _gpu() -> Finding:
    import torch

    wanted = config.load_config().train.device
    if torch.cuda.is_available():
        cards = [
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        ]
        return Finding("ok", f"{_some(cards)}, CUDA {torch.version.cuda}")
    if Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "broken",
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it: update the driver, or "
            "install the torch build for it (https://pytorch.org/get-started/locally)",
        )
    if wanted == "cuda":
        return Finding(
            "broken",
            "train.device is cuda and there is no GPU: set it to auto, or run where there is one",
        )
    return Finding(
        "ok", f"none; {runtime.available_cores()} CPU cores ({runtime.instruction_set()})"
    )


def _compiler() -> Finding:
    import torch

    from paribus.model.compiler import missing_tools

    compiles = config.load_config().train.compile
    cuda = torch.cuda.is_available()
    if not cuda and not compiles:
        return Finding("ok", "not needed: neither a GPU nor train.compile")
    problems = missing_tools("cuda" if cuda else "cpu")
    if problems:
        needed = "train.compile" if compiles else "attention on CUDA"
        return Finding("broken", f"{needed} compiles kernels here: {'; '.join(problems)}")
    return Finding("ok", "a compiler and Python.h are here")


def _disk() -> Finding:
    here = runtime.main_checkout()
    free = shutil.disk_usage(here).free
    text = f"{free / 1e9:,.1f} GB free at {here}"
    if free < LEAST_DISK:
        return Finding(
            "broken",
            f"{text}; make room: `paribus clean` removes training states of finished runs, "
            "`dvc gc --workspace --all-commits` drops data no commit names",
        )
    state: Literal["ok", "note"] = "note" if free < LITTLE_DISK else "ok"
    return Finding(
        state, text + ("; enough for the default, little for real data" if state == "note" else "")
    )


def _clock() -> Finding:
    """A clock that is behind makes new files look old: git, DVC and make take changes for none."""
    committed = runtime.git_time()
    ahead = committed - time.time() if committed else 0.0
    if ahead > 60:
        return Finding(
            "broken",
            f"{ahead / 60:,.0f} minutes behind the last commit: set it (sudo timedatectl set-ntp true)",
        )
    probe = runtime.state_root() / ".clock"
    probe.touch()
    skew = probe.stat().st_mtime - time.time()
    probe.unlink()
    if abs(skew) > 60:
        return Finding(
            "broken",
            f"the disk's clock differs by {skew:,.0f} s (a network disk?): synchronise both machines",
        )
    return Finding("ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _chromium() -> Finding:
    found = next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )
    if found is None:
        return Finding(
            "note",
            "not found: the tests that open the report are skipped (Debian: apt-get install chromium)",
        )
    return Finding("ok", found)


# ---------------------------------------------------------------- the project


def _git() -> Finding:
    state = runtime.git_state()
    if shutil.which("git") is None:
        return Finding(
            "broken",
            "git is not installed: DVC and provenance need it (Debian: apt-get install git)",
        )
    if state["commit"] is None:
        return Finding("broken", "no commit here: git init && git add -A && git commit -m start")
    asked = [
        subprocess.run(["git", "config", f"user.{key}"], capture_output=True).returncode == 0
        for key in ("name", "email")
    ]
    if not all(asked):
        return Finding(
            "broken",
            "git does not know you, and DVC experiments are commits: git config user.name NAME; "
            "git config user.email ADDRESS",
        )
    where = f"{state['branch'] or 'detached'} at {state['commit'][:10]}"
    if state["dirty"]:
        return Finding(
            "note",
            f"{where}, with uncommitted changes: runs note their hash; commit, so that others can have them",
        )
    return Finding("ok", where)


def _params() -> Finding:
    config.load_config()
    return Finding("ok", f"params.yaml is valid; {len(stage_definitions())} stages in dvc.yaml")


def _outputs() -> Finding:
    """Outputs that dvc.lock names and that are neither here nor in the cache."""
    if not Path("dvc.lock").exists():
        return Finding("note", "nothing has run yet: dvc repro")
    try:
        stages = config.read_yaml("dvc.lock")["stages"]
        entries = [
            (kind, entry["path"], str(entry.get("md5", "")))
            for stage in stages.values()
            for kind in ("deps", "outs")
            for entry in stage.get(kind, [])
        ]
    except (UserError, KeyError, AttributeError, TypeError):
        return Finding(
            "broken",
            "dvc.lock is torn, as by a kill while DVC wrote it: rm dvc.lock, then dvc repro, which takes "
            "finished stages from its run cache",
        )
    outs = {path: md5 for kind, path, md5 in entries if kind == "outs"}
    cache = cache_folder(Path.cwd())
    missing = [
        path
        for path, md5 in outs.items()
        if not Path(path).exists() and not (cache / md5[:2] / md5[2:]).exists()
    ]
    if missing:
        return Finding(
            "note",
            f"{len(missing)} of {len(outs)} outputs of dvc.lock are neither here nor in the cache "
            f"({_some(missing)}): dvc pull, or dvc repro",
        )
    return Finding("ok", f"the {len(outs)} outputs of dvc.lock are here or in the cache")


def _store() -> Finding:
    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        return _sqlite(Path(uri.removeprefix("sqlite:///")))
    if not uri.startswith("http"):
        return Finding("ok", f"{re.sub(r'//[^@/]*@', '//', uri)} (asked at the first run)")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:
            skew = abs(_date(answer.headers.get("Date")) - time.time())
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding(
            "broken",
            f"{uri} does not answer ({error}): start the server, or unset MLFLOW_TRACKING_URI; runs go on "
            "without it and are sent later",
        )
    if skew > 60:
        return Finding(
            "broken", f"{uri}: its clock and this one are {skew:,.0f} s apart: synchronise them"
        )
    return Finding("ok", f"{uri} answers")


def _date(text: str | None) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp() if text else time.time()


def _sqlite(path: Path) -> Finding:
    if not path.exists():
        writable = os.access(path.parent, os.W_OK)
        return (
            Finding("ok", f"{path}: made by the first run")
            if writable
            else Finding(
                "broken",
                f"{path.parent} cannot be written to: chown it, or set MLFLOW_TRACKING_URI",
            )
        )
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            sound = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        sound, runs = str(error), 0
    if sound != "ok":
        return Finding(
            "broken",
            f"{path}: {sound}; move it away: the next run makes a new one, and `.paribus/` keeps what each "
            "run logged",
        )
    if not os.access(path, os.W_OK):
        return Finding(
            "broken", f"{path} cannot be written to: chown it, or set MLFLOW_TRACKING_URI"
        )
    return Finding("ok", f"{path}: {runs:,} runs")


def _remote() -> Finding:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        core = repo.config["core"]
        names = list(repo.config["remote"])
        name = core.get("remote")
        if not names:
            return Finding(
                "note",
                "none: data and checkpoints are in this checkout alone; dvc remote add -d NAME FOLDER-OR-URL "
                "(docs/remotes.md)",
            )
        if not name:
            return Finding(
                "broken", f"no default among {_some(names)}: dvc remote default {names[0]}"
            )
        try:
            remote = repo.cloud.get_remote(name)
            if remote.fs.protocol == "local":
                return _folder(name, Path(remote.path))
            remote.fs.exists(remote.path)
        except (DvcException, OSError, ImportError) as error:
            return Finding(
                "broken", f"{name}: {str(error) or type(error).__name__}; see docs/remotes.md"
            )
        return Finding("ok", f"{name}: {remote.fs.unstrip_protocol(remote.path)} answers")


def _folder(name: str, folder: Path) -> Finding:
    near = folder if folder.exists() else folder.parent
    if not near.is_dir():
        return Finding(
            "broken",
            f"{name}: {folder} is not there: mount its disk, or dvc remote modify {name} url FOLDER",
        )
    if not os.access(near, os.W_OK):
        return Finding(
            "broken", f"{name}: {folder} cannot be written to: dvc push would fail; chown it"
        )
    return Finding(
        "ok", f"{name}: {folder}" + ("" if folder.exists() else " (made by the first push)")
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "versions": _versions,
    "gpu": _gpu,
    "compiler": _compiler,
    "disk": _disk,
    "clock": _clock,
    "git": _git,
    "params": _params,
    "outputs": _outputs,
    "store": _store,
    "remote": _remote,
    "chromium": _chromium,
}

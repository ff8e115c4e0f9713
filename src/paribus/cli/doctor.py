"""`paribus doctor` checks that everything a run needs is there: one line a check, with what is wrong and the fix."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from paribus import config
from paribus.cli.upkeep import damaged_files, finished_states, leftovers
from paribus.errors import UserError
from paribus.git import try_git
from paribus.graph import cache_folder, stage_definitions
from paribus.machine.hardware import (
    available_cores,
    driver_cure,
    instruction_set,
    own_card,
    unsupported_card,
    unused_driver,
)
from paribus.machine.provenance import git_state, git_time
from paribus.places import main_checkout, outside_problem, state_root
from paribus.text import file_size
from paribus.tracking.health import store_health

LEAST_DISK = (
    2e9  # bytes: the default needs about 0.3 GB, and a full disk ends a run at its next save
)
LITTLE_DISK = 20e9
LARGE_STATES = 1e9  # bytes of states that no run goes on from
CONFLICT = re.compile(
    r"(<{7}|>{7}|\|{7})( |$)"
)  # marks that git leaves; ======= is a title elsewhere
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


def examine_card(device: str, minutes: float, peer: str | None, as_json: bool) -> int:
    """`paribus doctor --gpu`: print the page or the record, and return the exit status: 1 where a check failed."""
    from paribus.card.examination import all_passed, page, write
    from paribus.card.examination import examine as examine_all

    def say(line: str) -> None:
        print(f"paribus: {line}", file=sys.stderr, flush=True)

    record = examine_all(device, minutes, Path(peer).resolve() if peer else None, say)
    data, text = write(record)
    print(json.dumps(record, indent=1) if as_json else page(record))
    say(f"written to {text} and {data}; paste the page into an issue")
    return 0 if all_passed(record) else 1


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
        ):  # a suffix such as +cu128 names a build of the same version
            wrong.append(f"{name} is {found}, not {pinned}")
    if wrong:
        return Finding("broken", f"{_some(wrong)}; to fix it: rm -rf .venv && make venv")
    return Finding("ok", f"Python {version} and {len(pins)} packages as in requirements.lock")


def _gpu() -> Finding:
    import torch

    wanted = config.load_config().train.device
    if torch.cuda.is_available():
        cards = [
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        ]
        problem = unsupported_card(own_card())
        if problem:
            return Finding("note" if wanted == "cpu" else "broken", problem)
        return Finding("ok", f"{_some(cards)}, CUDA {torch.version.cuda}")
    driver = unused_driver()
    if driver is not None:
        return Finding(
            "note" if wanted == "cpu" else "broken",
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} cannot use it: "
            f"{driver_cure(torch.version.cuda)}",
        )
    if wanted == "cuda":
        return Finding(
            "broken",
            "train.device is cuda and there is no GPU: set it to auto, or run where there is one",
        )
    return Finding("ok", f"none; {available_cores()} CPU cores ({instruction_set()})")


def _compiler() -> Finding:
    import torch

    from paribus.model.compiler import missing_tools

    train = config.load_config().train
    compiles = train.compile
    cuda = train.device in ("auto", "cuda") and torch.cuda.is_available()
    if not cuda and not compiles:
        return Finding("ok", "not needed: nothing is computed on a GPU, and train.compile is off")
    problems = missing_tools("cuda" if cuda else "cpu")
    if problems:
        needed = "train.compile" if compiles else "attention on CUDA"
        return Finding("broken", f"{needed} compiles kernels here: {'; '.join(problems)}")
    return Finding("ok", "a compiler and Python.h are here")


def _disk() -> Finding:
    here = main_checkout()
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
    committed = git_time()
    ahead = committed - time.time() if committed else 0.0
    if ahead > 60:
        return Finding(
            "broken",
            f"{ahead / 60:,.0f} minutes behind the last commit: set it (sudo timedatectl set-ntp true)",
        )
    probe = state_root() / ".clock"
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
    state = git_state()
    if shutil.which("git") is None:
        return Finding(
            "broken",
            "git is not installed: DVC and provenance need it (Debian: apt-get install git)",
        )
    if "problem" in state:
        return Finding(
            "broken", f"git refuses this checkout, so that runs note no commit: {state['problem']}"
        )
    if state["commit"] is None:
        return Finding("broken", "no commit here: git init && git add -A && git commit -m start")
    if try_git("config", "user.name") is None or try_git("config", "user.email") is None:
        return Finding(
            "broken",
            "git does not know you, and DVC experiments are commits: git config user.name NAME; "
            "git config user.email ADDRESS",
        )
    if try_git("rev-parse", "--is-shallow-repository") == "true":
        return Finding(
            "note",
            "a shallow clone: runs and studies of paribus work, but `dvc exp run --temp` and `dvc queue` lose their "
            "experiments, and older commits cannot be compared: git fetch --unshallow",
        )
    where = f"{state['branch'] or 'detached'} at {state['commit'][:10]}"
    if state["dirty"]:
        return Finding(
            "note",
            f"{where}, with uncommitted changes: runs note their hash; commit, so that others can have them",
        )
    return Finding("ok", where)


def _conflict_in(name: str) -> Finding | None:
    """A file that a merge left with both sides in it."""
    path = Path(name)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if CONFLICT.match(line)]
    if not lines:
        return None
    return Finding(
        "broken",
        f"{name} holds conflict marks of a merge (line {lines[0]}): take one side, git checkout --ours {name} or "
        f"--theirs, then git add {name} and dvc repro, which takes finished stages from its run cache",
    )


def _path() -> Finding:
    here = str(main_checkout())
    if here.isascii():
        return Finding("ok", here)
    return Finding(
        "note",
        f"{here} has letters outside ASCII: runs and studies of paribus work, but `dvc exp run --temp` and `dvc "
        "queue` fail there; mv the checkout to use them",
    )


def _params() -> Finding:
    conflict = _conflict_in("params.yaml") or _conflict_in("dvc.yaml")
    if conflict:
        return conflict
    config.load_config()
    return Finding("ok", f"params.yaml is valid; {len(stage_definitions())} stages in dvc.yaml")


TORN = (
    ": torn, as by a kill while DVC wrote it: rm dvc.lock, then dvc repro, which takes finished stages from its run "
    "cache"
)


def _lock_problem() -> str | None:
    """Why DVC itself would refuse dvc.lock, which it begins with its schema's number."""
    if not Path("dvc.lock").read_text(encoding="utf-8", errors="replace").startswith("schema:"):
        return None
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            Lockfile(repo, "dvc.lock").load()
    except DvcException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None


def _locked_outs() -> dict[str, str]:
    """Output -> DVC's name for it, by dvc.lock. Raises what a file of another form leads to."""
    outs: dict[str, str] = {}
    for stage in config.read_yaml("dvc.lock")["stages"].values():
        for entry in stage.get("outs", []):
            outs[entry["path"]] = str(entry.get("md5", ""))
    return outs


def _outputs() -> Finding:
    """Outputs that lie where DVC refuses them, or that dvc.lock names and that are neither here nor in the cache."""
    definitions = stage_definitions() if Path("dvc.yaml").exists() else {}
    elsewhere = outside_problem(out for stage in definitions.values() for out in stage.outs)
    if elsewhere:
        return Finding("broken", elsewhere)
    if not Path("dvc.lock").exists():
        return Finding("note", "nothing has run yet: dvc repro")
    conflict = _conflict_in("dvc.lock")
    if conflict:
        return conflict
    problem = _lock_problem()
    if problem:
        return Finding("broken", f"dvc.lock cannot be read by DVC ({problem}){TORN}")
    try:
        outs = _locked_outs()
    except (UserError, KeyError, AttributeError, TypeError):
        return Finding("broken", f"dvc.lock is not as DVC writes it{TORN}")
    cache = cache_folder(Path.cwd())
    missing = []
    for path, md5 in outs.items():
        if not Path(path).exists() and not (cache / md5[:2] / md5[2:]).exists():
            missing.append(path)
    if missing:
        return Finding(
            "note",
            f"{len(missing)} of {len(outs)} outputs of dvc.lock are neither here nor in the cache "
            f"({_some(missing)}): dvc pull, or dvc repro",
        )
    return Finding("ok", f"the {len(outs)} outputs of dvc.lock are here or in the cache")


def _store() -> Finding:
    try:
        experiment = config.load_config().tracking.experiment
    except UserError:  # which `params` explains
        experiment = "paribus"
    health = store_health(experiment)
    return Finding(health.state, health.text)


def _state() -> Finding:
    """Small files under .paribus that were damaged, and were put aside or will be when they are read."""
    root = state_root()
    damaged = damaged_files(root)
    if not damaged:
        return Finding("ok", f"{root}: every file can be read")
    named = [f"{path.relative_to(root)} ({problem})" for path, problem in damaged]
    return Finding(
        "note",
        f"{root}: {len(damaged)} damaged: {_some(named)}; runs go on without them; remove those named *.damaged "
        "when you need them no more, the others are put aside when they are read",
    )


def _leftovers() -> Finding:
    """What killed writes left, and states that no run goes on from."""
    root = state_root()
    left = leftovers(main_checkout(), root)
    states = finished_states(root)
    texts = []
    if left.paths:
        names = [_below(path) for path in left.paths]
        texts.append(
            f"{file_size(left.size)} of killed writes, which may be removed: {_some(names)}"
        )
    if states.size >= LARGE_STATES:
        names = sorted({_below(path.parent.parent) for path in states.paths})
        texts.append(
            f"{file_size(states.size)} of training states of finished runs ({_some(names)}): `paribus clean` removes "
            "those whose checkpoint DVC has"
        )
    return Finding("note", "; ".join(texts)) if texts else Finding("ok", "nothing to clear away")


def _below(path: Path) -> str:
    root = main_checkout()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _site_cache() -> Finding:
    """DVC unpickles files of its site cache, so anyone who can write there can run code as this user."""
    from dvc.dirs import site_cache_dir
    from dvc.repo import Repo

    with Repo() as repo:
        configured = repo.config["core"].get("site_cache_dir")
    folder = Path(site_cache_dir(configured)).resolve()
    others = [path for path in (folder, folder / "repo") if _others_may_write(path)]
    if others:
        return Finding(
            "note",
            f"DVC unpickles what lies in {folder}, where other users of this machine may write: "
            "mkdir -p .dvc-site-cache/repo && dvc config core.site_cache_dir .dvc-site-cache",
        )
    return Finding("ok", f"DVC's site cache is {folder}")


def _others_may_write(path: Path) -> bool:
    """Whether users other than this one and root may add to a folder, or to the nearest one that is there."""
    while not path.exists():
        path = path.parent
    about = path.stat()
    return bool(about.st_mode & 0o002) or about.st_uid not in (os.getuid(), 0)


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
    "path": _path,
    "git": _git,
    "params": _params,
    "outputs": _outputs,
    "store": _store,
    "state": _state,
    "leftovers": _leftovers,
    "dvc": _site_cache,
    "remote": _remote,
    "chromium": _chromium,
}

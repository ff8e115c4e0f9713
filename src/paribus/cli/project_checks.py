"""Checks of `paribus doctor`: the checkout, its outputs and where they are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from paribus import config
from paribus.cli.finding import Finding, some
from paribus.cli.upkeep import damaged_files, finished_states, leftovers
from paribus.errors import UserError
from paribus.git import try_git
from paribus.graph import cache_folder, stage_definitions
from paribus.machine.provenance import git_state
from paribus.places import main_checkout, outside_problem, state_root
from paribus.text import file_size
from paribus.tracking.health import store_health

DVC_LOCKS = Path(".dvc/tmp/rwlock")  # what DVC's processes read and write at present
LARGE_STATES = 1e9  # bytes of states that no run goes on from
# Marks that git leaves; ======= is a title elsewhere.
CONFLICT = re.compile(r"(<{7}|>{7}|\|{7})( |$)")


def git() -> Finding:
    """What provenance and DVC need of git."""
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


def checkout_path() -> Finding:
    """Whether DVC can work in a folder of this name."""
    here = str(main_checkout())
    if here.isascii():
        return Finding("ok", here)
    return Finding(
        "note",
        f"{here} has letters outside ASCII: runs and studies of paribus work, but `dvc exp run --temp` and `dvc "
        "queue` fail there; mv the checkout to use them",
    )


def params() -> Finding:
    """Whether params.yaml and dvc.yaml can be read."""
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


def outputs() -> Finding:
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
            f"({some(missing)}): dvc pull, or dvc repro",
        )
    return Finding("ok", f"the {len(outs)} outputs of dvc.lock are here or in the cache")


def store() -> Finding:
    """Where MLflow keeps runs."""
    try:
        experiment = config.load_config().tracking.experiment
    except UserError:  # which `params` explains
        experiment = "paribus"
    health = store_health(experiment)
    return Finding(health.state, health.text)


def state_files() -> Finding:
    """Small files under .paribus that were damaged, and were put aside or will be when they are read."""
    root = state_root()
    damaged = damaged_files(root)
    if not damaged:
        return Finding("ok", f"{root}: every file can be read")
    named = [f"{path.relative_to(root)} ({problem})" for path, problem in damaged]
    return Finding(
        "note",
        f"{root}: {len(damaged)} damaged: {some(named)}; runs go on without them; remove those named *.damaged "
        "when you need them no more, the others are put aside when they are read",
    )


def leftover_files() -> Finding:
    """What killed writes left, and states that no run goes on from."""
    root = state_root()
    left = leftovers(main_checkout(), root)
    states = finished_states(root)
    texts = []
    if left.paths:
        names = [_below(path) for path in left.paths]
        texts.append(
            f"{file_size(left.size)} of killed writes, which may be removed: {some(names)}"
        )
    if states.size >= LARGE_STATES:
        names = sorted({_below(path.parent.parent) for path in states.paths})
        texts.append(
            f"{file_size(states.size)} of training states of finished runs ({some(names)}): `paribus clean` removes "
            "those whose checkpoint DVC has"
        )
    return Finding("note", "; ".join(texts)) if texts else Finding("ok", "nothing to clear away")


def _below(path: Path) -> str:
    root = main_checkout()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def site_cache() -> Finding:
    """DVC unpickles files of its site cache, so anyone who can write there can run code as this user.

    A file of locks that a kill left torn stops DVC, and comes first.
    """
    from dvc.dirs import site_cache_dir
    from dvc.repo import Repo

    if _is_torn(DVC_LOCKS):
        return Finding(
            "broken", f"{DVC_LOCKS}: torn, as by a kill while DVC wrote it: rm {DVC_LOCKS}"
        )
    with Repo() as repo:
        configured = repo.config["core"].get("site_cache_dir")
    folder = Path(site_cache_dir(configured)).resolve()
    others = [path for path in (folder, folder / "repo") if _others_may_write(path)]
    if others:
        return Finding(
            "note",
            f"DVC unpickles what lies in {folder}, where other users of this machine may write: "
            "mkdir -p .dvc-site-cache/repo && dvc config --local core.site_cache_dir $PWD/.dvc-site-cache",
        )
    if configured and not Path(configured).is_absolute():
        return Finding(
            "note",
            "`dvc exp run --temp` loses a site cache by a relative path: "
            f"dvc config --local core.site_cache_dir {folder}",
        )
    return Finding("ok", f"DVC's site cache is {folder}")


def _is_torn(path: Path) -> bool:
    """Whether a JSON file is there and cannot be read as such."""
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _others_may_write(path: Path) -> bool:
    """Whether users other than this one and root may add to a folder, or to the nearest one that is there."""
    while not path.exists():
        path = path.parent
    about = path.stat()
    return bool(about.st_mode & 0o002) or about.st_uid not in (os.getuid(), 0)


def remote() -> Finding:
    """Whether DVC's remote answers."""
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
                "broken", f"no default among {some(names)}: dvc remote default {names[0]}"
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

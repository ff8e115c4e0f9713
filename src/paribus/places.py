"""Where things lie: the main checkout, its state folder, checkpoints."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from paribus.errors import UserError
from paribus.git import try_git


def main_checkout() -> Path:
    """The folder that keeps what outlives a stage.

    DVC runs queued and temporary experiments in a clone that it deletes, and names the main checkout in
    DVC_ROOT. Without DVC: the closest parent with `.dvc`, else with `dvc.yaml` or `.git`, else the working folder.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd().resolve()
    for markers in ((".dvc",), ("dvc.yaml", ".git")):
        for folder in (here, *here.parents):
            if any((folder / marker).exists() for marker in markers):
                return folder
    return here


def state_root() -> Path:
    """`.paribus` in the main checkout, created if need be: resumable state, runs, executions."""
    root = main_checkout() / ".paribus"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{root}: is a file, and paribus keeps its state in a folder of this name; move it away"
        ) from None
    return root


def dvc_experiment() -> str | None:
    """The DVC experiment that this process runs in; None in the workspace."""
    return os.environ.get("DVC_EXP_NAME")


def outside_problem(outs: Iterable[str]) -> str | None:
    """What is wrong with outputs that a link leads out of the repository, and the cure; None where there are none.

    DVC computes such a stage to its end, and then refuses its outputs.
    """
    top = try_git("rev-parse", "--show-toplevel")
    if top is None:
        return None
    links = set()
    for out in outs:
        folder = Path(out).parent
        there = folder.resolve()
        if not there.is_relative_to(Path(top).resolve()):
            links.add(f"{folder} (to {there})")
    if not links:
        return None
    return (
        f"a link leads out of the repository: {', '.join(sorted(links))}, and DVC refuses the outputs of a stage there; "
        "make it a folder and link what is in it, or keep DVC's cache on the other disk (`dvc cache dir --local FOLDER`, "
        "`dvc config --local cache.type symlink`)"
    )


def find_checkpoint(name: str | Path) -> Path:
    """A checkpoint by its folder, or by its name below `checkpoints`. Raises UserError with the names there are."""
    for folder in (Path(name), Path("checkpoints") / name):
        with contextlib.suppress(OSError):  # a name that no file can have
            if (folder / "config.json").is_file():
                return folder
    names = sorted(path.parent.name for path in Path("checkpoints").glob("*/config.json"))
    near = difflib.get_close_matches(str(name), names, n=1)
    there = f"there are: {', '.join(names)}" if names else "`dvc repro` makes them"
    raise UserError(
        f"no checkpoint {str(name)!r:.200}; "
        + (f"did you mean {near[0]}? {there}" if near else there)
    )

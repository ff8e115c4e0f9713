"""Where things lie: the main checkout, its state folder, checkpoints."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.errors import UserError

if TYPE_CHECKING:
    pass


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

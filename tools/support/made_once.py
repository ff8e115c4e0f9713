"""Folders that take a while to make: once for all processes of one pytest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from paribus.journal import locked


class MadeOnce:
    """Makes folders below one that the workers of pytest-xdist share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of that name, which `make` makes where nobody has yet; to be read or copied.

        A folder is made where it stays, as DVC and MLflow keep its path. What failed midway is made again.
        """
        folder, made = self._root / name, self._root / f"{name}.made"
        with locked(self._root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                made.touch()
        return folder

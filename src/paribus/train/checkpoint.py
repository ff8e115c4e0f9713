"""Training states: whole and checksummed, or not there.

A state is `step-N.safetensors` (tensors) and `step-N.json` (its size, sha256 and plain values). Both are written
aside, synced and renamed; the JSON comes last and is what makes the state exist. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from paribus.errors import UserError

MAX_FAILURES = (
    3  # saves in a row that may fail before training stops: a full disk rarely empties itself
)


@dataclass(frozen=True)
class State:
    """A training state: tensors and plain values after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class StateStore:
    """The last `keep` states in a folder. `save` copies now and writes in the background."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.failures = 0
        self._writer: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Save a state without stalling: tensors are copied before this returns, and written after.

        Raises UserError when several saves in a row have failed; the last whole state stays in place.
        """
        self.wait()
        if self.failures >= MAX_FAILURES:
            raise UserError(
                f"{self.folder}: {self.failures} saves in a row failed; free some space, then start again: "
                f"training goes on from step {max(self.steps(), default=0)}"
            )
        copies = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }
        self._writer = threading.Thread(
            target=self._write, args=(step, copies, values), name="state-writer"
        )
        self._writer.start()

    def wait(self) -> None:
        """Until the state being written is on disk."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    @property
    def writing(self) -> bool:
        """Whether a state is being written just now."""
        return self._writer is not None and self._writer.is_alive()

    def steps(self) -> list[int]:
        """Steps of the states that exist, newest first."""
        return sorted(
            (int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.json")),
            reverse=True,
        )

    def load(self) -> State | None:
        """The newest whole state; damaged ones are named and passed over."""
        for step in self.steps():
            state = self.read(step)
            if state is not None:
                return state
            print(
                f"paribus: training state {self._path(step, 'json')} is damaged; trying the one before",
                file=sys.stderr,
            )
        return None

    def read(self, step: int) -> State | None:
        """The state after `step` steps; None if there is none or it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            header = json.loads(self._path(step, "json").read_bytes())
            data = self._path(step, "safetensors").read_bytes()
            if len(data) != header["size"] or hashlib.sha256(data).hexdigest() != header["sha256"]:
                return None
            return State(step, load(data), header["values"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def clear(self) -> None:
        """Remove every state: the stage is done and its checkpoint is a DVC output."""
        self.wait()
        for pattern in ("step-*", ".step-*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _path(self, step: int, suffix: str) -> Path:
        return self.folder / f"step-{step:08d}.{suffix}"

    def _write(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        from safetensors.torch import save

        try:
            data = save(tensors)
            header = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "step": step,
                "values": values,
            }
            write_atomically(self._path(step, "safetensors"), data)
            write_atomically(self._path(step, "json"), json.dumps(header).encode())
            self._prune()
            self.failures = 0
        except OSError as error:
            self.failures += 1
            for path in self.folder.glob(".step-*"):
                path.unlink(missing_ok=True)
            print(
                f"paribus: could not save the training state of step {step}: {error.strerror}; "
                "the one before stays",
                file=sys.stderr,
            )

    def _prune(self) -> None:
        for step in self.steps()[self.keep :]:
            self._path(step, "json").unlink(missing_ok=True)
            self._path(step, "safetensors").unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, sync, rename, sync the folder: a reader sees the old file or the whole new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

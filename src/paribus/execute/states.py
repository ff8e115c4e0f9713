"""Training states in the DVC remote: a run whose machine died goes on elsewhere.

    REMOTE/paribus-states/STUDY.ARM.sSEED/STAGE-FINGERPRINT/    the newest state of .paribus/runs/STAGE-FINGERPRINT

The folder's name holds the fingerprint, which covers the class of hardware: on another class the run begins anew. What
makes a state exist, its JSON, is copied last, in both directions; it holds the checksums of the rest.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.files import replacing
from paribus.run_id import RunId

if TYPE_CHECKING:
    from dvc.fs import FileSystem
    from dvc.repo import Repo

PLACE = "paribus-states"
# Of a run's folder: by them its log goes on as the same MLflow run, and its next start knows what it was made of.
BESIDE = ("run.json", "mlflow.json", "made_of.json")
_STATE = re.compile(r"step-(\d+)\.json")


@dataclass(frozen=True)
class RemoteStates:
    """The training states of one run, here and in a remote.

    Attributes:
        fs: DVC's file system of the remote.
        place: the folder of the run's states there.
        runs: `.paribus/runs` of this machine.
        run: whose states they are.
    """

    fs: FileSystem
    place: str
    runs: Path
    run: RunId

    @staticmethod
    def of(repo: Repo, state_root: Path, run: RunId) -> RemoteStates:
        """Those of a run in the default remote of `repo`. Raises DVC's errors without one."""
        remote = repo.cloud.get_remote()
        place = remote.fs.join(remote.path, PLACE, run.experiment_name())
        return RemoteStates(remote.fs, place, state_root / "runs", run)

    # ------------------------------------------------------------ there -> here

    def bring(self) -> None:
        """Copy states that are newer than those here."""
        for folder, names in self._there().items():
            step = _newest(names)
            here = self.runs / folder
            if step is None or step <= (self._newest_here(here) or -1):
                continue
            (here / "state").mkdir(parents=True, exist_ok=True)
            for name in BESIDE:
                if name in names:
                    self._get(folder, name, here / name)
            for suffix in ("safetensors", "jsonl", "json"):
                name = f"step-{step:08d}.{suffix}"
                if name in names:
                    self._get(folder, name, here / "state" / name)

    def _there(self) -> dict[str, list[str]]:
        """Folder of a stage -> its files in the remote."""
        if not self.fs.exists(self.place):
            return {}
        found: dict[str, list[str]] = {}
        for path in self.fs.find(self.place):
            *_, folder, name = path.replace("\\", "/").split("/")
            found.setdefault(folder, []).append(name)
        return found

    def _get(self, folder: str, name: str, target: Path) -> None:
        with replacing(target) as aside:
            self.fs.get_file(self.fs.join(self.place, folder, name), str(aside))

    def _newest_here(self, folder: Path) -> int | None:
        return _newest([path.name for path in (folder / "state").glob("step-*.json")])

    # ------------------------------------------------------------ here -> there

    def push(self) -> None:
        """Copy the newest state of each of the run's stages that is not there yet, then remove those before it."""
        for folder in self._own_folders():
            step = self._newest_here(folder)
            there = self._there().get(folder.name, [])
            if step is None or step <= (_newest(there) or -1):
                continue
            with contextlib.suppress(FileNotFoundError):  # replaced by a newer one this instant
                self._put_state(folder, step)
                self._remove(folder.name, [name for name in there if name.startswith("step-")])

    def _own_folders(self) -> list[Path]:
        """Folders of the stages that this run has begun here and that are not done."""
        found = []
        for path in self.runs.glob("*/run.json"):
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
                if about["tags"].get("dvc.experiment") == self.run.experiment_name():
                    found.append(path.parent)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # damaged, or of another version: it is not this one
        return found

    def _put_state(self, folder: Path, step: int) -> None:
        for name in BESIDE:
            if (folder / name).is_file():
                self._put(folder / name, folder.name)
        for suffix in ("safetensors", "jsonl", "json"):
            path = folder / "state" / f"step-{step:08d}.{suffix}"
            if suffix != "jsonl" or path.exists():
                self._put(path, folder.name)

    def _put(self, path: Path, folder: str) -> None:
        place = self.fs.join(self.place, folder)
        self.fs.makedirs(place, exist_ok=True)
        self.fs.put_file(str(path), self.fs.join(place, path.name))

    def _remove(self, folder: str, names: list[str]) -> None:
        for name in sorted(names, key=lambda name: not name.endswith(".json")):  # the JSON first
            self.fs.remove(self.fs.join(self.place, folder, name))

    def forget(self) -> None:
        """Remove the run's states from the remote: its checkpoint is there."""
        for folder, names in self._there().items():
            self._remove(folder, names)


def _newest(names: list[str]) -> int | None:
    """The step of the newest state among files of these names."""
    steps = [int(match[1]) for match in map(_STATE.fullmatch, names) if match]
    return max(steps, default=None)


@contextlib.contextmanager
def copied(states: RemoteStates, minutes: float) -> Iterator[None]:
    """Within, the run's newest state goes to the remote every `minutes`; and once more at the end, however it ends."""
    over = threading.Event()

    def copy() -> None:
        while not over.wait(minutes * 60):
            _push(states)

    thread = threading.Thread(target=copy, name="states", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        over.set()
        thread.join()
        _push(states)
        raise
    over.set()
    thread.join()
    states.forget()


def _push(states: RemoteStates) -> None:
    """A remote that is away for a while costs a line in the run's log: the next copy may succeed."""
    try:
        states.push()
    except Exception as error:  # whatever the remote's library raises
        words = str(error) or type(error).__name__
        print(
            f"paribus: the training state was not copied to the DVC remote: {words}",
            file=sys.stderr,
        )

"""Files from the network: side by side, resumed at the byte where they stopped, tried again, used only when whole.

An incomplete file is PATH.part; it becomes PATH only once its size and checksum are right.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import random
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from paribus.data import Progress, sha256_file
from paribus.errors import UserError
from paribus.files import put_in_place
from paribus.text import file_size

CONNECTIONS = 8
ATTEMPTS = 8  # in a row that bring no byte: with the pauses between them some four minutes
WRONG_CONTENTS = 3
STALL_SECONDS = 30.0
PAUSE = 1.0  # seconds before the first new attempt, doubled for each one after it
LONGEST_PAUSE = 120.0
CHUNK = 1 << 18
# Resets, time-outs, refusals, DNS; urllib's own errors are OSErrors.
BROKEN = (
    OSError,
    http.client.HTTPException,
)
HINTS = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "accept its terms on its page, then `hf auth login`",
    404: "there is no such file at this address",
}


@dataclass(frozen=True)
class Remote:
    """A file to fetch. size, sha256, git_blob (git's own name of the content): None where unknown."""

    url: str
    path: Path
    name: str
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None

    def problem(self, path: Path) -> str | None:
        """The problem of the content of `path`, or None."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, not {self.size:,}"
        if self.sha256 and (found := sha256_file(path)) != self.sha256:
            return f"its sha256 is {found}, not {self.sha256}"
        if not self.sha256 and self.git_blob and (found := _git_blob(path)) != self.git_blob:
            return f"its git hash is {found}, not {self.git_blob}"
        return None


def _git_blob(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def present(files: Iterable[Remote], say: Callable[[str], None]) -> list[Remote]:
    """Those that are there and right; one that is not is named and removed, so that it is fetched again.

    Args:
        files: with the digests they should have.
        say: takes a line on each that is wrong.
    """

    def check(file: Remote) -> bool:
        if not file.path.is_file():
            return False
        if problem := file.problem(file.path):
            say(f"{file.path}: {problem}; fetching it again")
            file.path.unlink()
            return False
        return True

    files = list(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        return [file for file, good in zip(files, pool.map(check, files), strict=True) if good]


def missing_bytes(files: Iterable[Remote]) -> int:
    """The bytes that missing files still need, less their parts."""
    return sum(
        max((file.size or 0) - _size(_part(file)), 0) for file in files if not file.path.exists()
    )


def need_space(folder: Path, needed: int, why: str) -> None:
    """Raises UserError if the disk of `folder` has less than `needed` bytes free.

    why: what is to be written there, for the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {file_size(needed)} are needed ({why}), and {file_size(free)} are free; make room, "
            "take less (corpus.megabytes), or put the folder on another disk"
        )


def fetch_all(
    files: list[Remote],
    headers: Mapping[str, str],
    progress: Progress | None = None,
    connections: int = CONNECTIONS,
) -> None:
    """Every file to its path.

    Raises UserError that names every file that could not be fetched; their parts stay for the next start.

    Args:
        files: with addresses and paths.
        headers: of every request.
        progress: gets the bytes as they come.
        connections: at once.
    """
    done = _Count(sum(file.size or 0 for file in files), progress)
    stop = threading.Event()

    def one(file: Remote) -> str | None:
        try:
            _Fetch(file, headers, done.add, stop).run()
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(connections) as pool:
        try:
            problems = list(pool.map(one, files))
        except BaseException:  # Ctrl-C: the threads leave within a chunk
            stop.set()
            raise
    if wrong := [problem for problem in problems if problem]:
        raise UserError(wrong)


class _Count:
    """Megabytes so far, over all threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(
                    "download MB",
                    self._done // 1_000_000,
                    max(self._total, self._done) // 1_000_000,
                )


class _Fetch:
    """The download of one file."""

    def __init__(
        self,
        file: Remote,
        headers: Mapping[str, str],
        count: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self.file, self.headers, self.count, self.stop = file, dict(headers), count, stop

    def run(self) -> None:
        """Fetch until whole. Raises UserError."""
        with _own(_part(self.file)) as out:
            if self.file.path.exists():  # another process was quicker
                _part(self.file).unlink()
                self.count(self.file.size or 0)
                return
            self.count(out.tell())
            wrong = 0
            while problem := self._until_whole(out):
                self.count(-out.tell())
                out.truncate(0)
                wrong += 1
                if wrong == WRONG_CONTENTS:
                    raise UserError(
                        f"{self.file.name}: {problem}; fetched {wrong} times from {self.file.url}"
                    )
            out.flush()
            put_in_place(_part(self.file), self.file.path)

    def _until_whole(self, out: IO[bytes]) -> str | None:
        """Append until nothing is missing; returns the problem of the content, or None."""
        failures = 0
        while self.file.size is None or out.seek(0, os.SEEK_END) < self.file.size:
            before = out.seek(0, os.SEEK_END)
            wait: float | None = None
            try:
                if self._append(out) and self.file.size is None:
                    break
                problem = "the connection ended early"
            except urllib.error.HTTPError as error:
                problem, wait = self._refusal(error), _retry_after(error.headers)
            except BROKEN as error:
                problem = str(error) or type(error).__name__
            failures = failures + 1 if out.seek(0, os.SEEK_END) <= before else 1
            if failures > ATTEMPTS:
                raise UserError(
                    f"{self.file.name}: {problem} ({self.file.url}, {failures} attempts); {out.tell():,} bytes are "
                    "kept: start again to go on from there"
                )
            self._rest(wait, failures)
        out.flush()
        return self.file.problem(_part(self.file))

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if _passing(error.code):
            return f"the server answered {error.code} {error.reason}"
        hint = HINTS.get(error.code, "")
        raise UserError(
            f"{self.file.name}: the server answered {error.code} {error.reason}{'; ' + hint if hint else ''} "
            f"({self.file.url})"
        ) from None

    def _rest(self, wait: float | None, failures: int) -> None:
        """Wait as long as the server requests, else ever longer; at random, so that threads do not return at once."""
        longest = min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        if self.stop.wait(longest if wait is None else min(wait, LONGEST_PAUSE)):
            raise UserError(f"{self.file.name}: stopped")

    def _append(self, out: IO[bytes]) -> bool:
        """One request for what is missing; whether the server sent all it announced."""
        have = out.seek(0, os.SEEK_END)
        headers = (
            self.headers
            | {"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={have}-"} if have else {})
        )
        try:
            response = open_url(self.file.url, headers)
        except urllib.error.HTTPError as error:
            if error.code == 416 and self.file.size is None:  # nothing beyond what we have
                return True
            raise
        with response:
            if response.status != 206 and have:  # a server that cannot resume sends it all
                self.count(-have)
                out.truncate(0)
            announced = int(response.headers.get("Content-Length") or -1)
            received = 0
            while chunk := response.read1(CHUNK):
                out.write(chunk)
                received += len(chunk)
                self.count(len(chunk))
                if self.stop.is_set():
                    raise UserError(f"{self.file.name}: stopped")
            out.flush()
            return received >= announced


def _passing(code: int) -> bool:
    """Whether a refusal may be over in a while."""
    return code in (408, 429) or code >= 500


def read_range(url: str, headers: Mapping[str, str], start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a remote file. Raises OSError and HTTPException once trying again is of no use.

    url: of the file. headers: of the request.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with open_url(url, dict(headers) | {"Range": f"bytes={start}-{stop - 1}"}) as answer:
                if answer.status != 206:
                    raise OSError(f"{url}: the server cannot send a part of a file")
                return bytes(answer.read())
        except BROKEN as error:
            if attempt == ATTEMPTS or (
                isinstance(error, urllib.error.HTTPError) and not _passing(error.code)
            ):
                raise
            time.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
    raise OSError(url)


def open_url(url: str, headers: Mapping[str, str]) -> Any:
    """The answer to a GET, redirects followed. Raises HTTPError and what BROKEN lists.

    Args:
        url: http or https.
        headers: of the request.
    """
    return _OPENER.open(urllib.request.Request(url, headers=dict(headers)), timeout=STALL_SECONDS)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Leaves the token behind when it is led to another host, as storage behind a hub is."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


_OPENER = urllib.request.build_opener(_Redirects)


def _retry_after(headers: Message) -> float | None:
    """Seconds of a Retry-After; None without, or where it is a date."""
    try:
        return float(headers.get("Retry-After", ""))
    except ValueError:
        return None


def _part(file: Remote) -> Path:
    return file.path.with_name(file.path.name + ".part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _own(part: Path) -> Iterator[IO[bytes]]:
    """`part` open to append to, by one process at a time; the kernel releases it however the holder dies."""
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = part.open("ab", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
            break
        file.close()  # the holder before us has finished and renamed it
    with file:
        file.seek(0, os.SEEK_END)
        yield file

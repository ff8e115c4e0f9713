"""Errors meant for people: what is wrong, what is allowed, what to do; and whose fault it is, as an exit status.

| exit status | class | whose fault | is the same run worth another try? |
| --- | --- | --- | --- |
| 2 | `UserError` | the values', files' or commands' | no, not before something is changed |
| 74 | `MachineError` | the machine's: disk full, read-only, out of memory | yes, once the machine has room |

A paused run exits with 75 (`paribus.machine.interrupt.EXIT_PAUSED`), which is not an error.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

SHOWN = 80  # characters of a value or a name in a message
EXIT_REFUSED = 2
EXIT_MACHINE = 74  # EX_IOERR of sysexits.h


class UserError(Exception):
    """Problems that a person can fix, all of them at once.

    The command line prints each on a line of its own and exits with `exit_status`, without a traceback. Characters that a
    terminal would obey, or could not print, are escaped.
    """

    exit_status = EXIT_REFUSED

    def __init__(self, problems: str | Iterable[str]) -> None:
        found = [problems] if isinstance(problems, str) else list(problems)
        self.problems = [escaped(problem, keep="\n\t", limit=None) for problem in found]
        super().__init__("\n".join(self.problems))


class MachineError(UserError):
    """The machine failed, not the values: the same run succeeds once the disk or the memory has room again."""

    exit_status = EXIT_MACHINE


class Diverged(UserError):
    """Training ended in values that are not finite: an outcome of the configuration, not a fault of the machine."""


class StateInUse(UserError):
    """Another process computes the same at this moment; once it has ended, this is done or can go on."""


# What the kernel refuses for reasons of the machine. A file that is absent or of the wrong kind is not among them.
_MACHINE_ERRNOS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.EROFS: "make the disk writable",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the disk again",
    errno.ENOLCK: "use a disk with file locks",
    errno.EOPNOTSUPP: "use a disk that can do it",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close some programs",
}
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # of safetensors and tokenizers
_ARROW_ERRNO = re.compile(r"\[errno (\d+)\]", re.IGNORECASE)
_SQLITE_FULL = "database or disk is full"  # also as SQLAlchemy words it
_CPU_ALLOCATION = re.compile(r"you tried to allocate (\d+) bytes")  # of torch's CPU allocator


def machine_fault(error: BaseException) -> MachineError | None:
    """What the machine refused, in words, if that is what `error` says; None for any other error.

    error: an exception of Python, of torch, or of a library that writes the kernel's error number into its message.
    """
    if isinstance(error, MachineError):
        return error
    number = _error_number(error)
    if number is not None:
        where = _file_of(error)
        advice = f"{_MACHINE_ERRNOS[number]}, then start again; nothing that was saved is lost"
        return MachineError(f"{where}{os.strerror(number)}: {advice}")
    if isinstance(error, MemoryError):
        return MachineError("out of memory: free some memory, then start again")
    return None


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within, whatever the machine refuses becomes a MachineError that names `path`, as many errors name no file."""
    try:
        yield
    except Exception as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        said = fault.problems[0]
        known = said.startswith(os.fspath(path))
        raise MachineError(said if known else f"{os.fspath(path)}: {said}") from error


def memory_fault(error: BaseException) -> UserError | None:
    """Out of memory in torch, and whose fault it is; None for any other error.

    A request that this machine or card could not meet even when idle is the values' fault (UserError); one that fails
    because other processes hold the memory is the machine's (MachineError).
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return _card_fault(torch)
    request = _CPU_ALLOCATION.search(str(error))
    return None if request is None else _host_fault(int(request[1]))


def explained(error: Exception) -> UserError | None:
    """`error` in words for people, if the machine or its memory is the cause; None for an error of the program's own."""
    return machine_fault(error) or memory_fault(error)


SMALLER = "lower device_batch_size or rollout_rows, or set train.activation_checkpointing: true"
_OTHERS_SHARE = 0.05  # of a card: contexts and libraries of this process take less


def _card_fault(torch: object) -> UserError:
    cuda = torch.cuda  # type: ignore[attr-defined]
    free, total = cuda.mem_get_info()
    ours = cuda.memory_reserved()
    others = total - free - ours
    if others > _OTHERS_SHARE * total:
        return MachineError(
            f"out of memory on {cuda.get_device_name()}: other processes hold about "
            f"{others / 2**30:.1f} of its {total / 2**30:.1f} GiB; wait for them, then start again"
        )
    return UserError(
        f"out of memory on {cuda.get_device_name()}: the run does not fit its {total / 2**30:.1f} GiB; {SMALLER}"
    )


def _host_fault(request: int) -> UserError:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = f"{request / 2**30:.1f} GiB"
    if request > total:
        return UserError(
            f"out of memory: one tensor of {size} on a machine with {total / 2**30:.1f} GiB; "
            f"make the model smaller, or {SMALLER}"
        )
    return MachineError(
        f"out of memory: {size} more were refused; free some memory, then start again, or {SMALLER}"
    )


def _error_number(error: BaseException) -> int | None:
    """The errno of a refusal by the machine; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    for pattern in (_RUST_ERRNO, _ARROW_ERRNO):
        found = pattern.search(text)
        if number is None and found:
            number = int(found[1])
    if number is None and _SQLITE_FULL in text:
        number = errno.ENOSPC
    return number if number in _MACHINE_ERRNOS else None


def _file_of(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""


# ---------------------------------------------------------------- values and names in messages


def escaped(text: str, keep: str = "", limit: int | None = SHOWN) -> str:
    r"""A text without control characters and lone surrogates, which are written \x1b, \ud800; cut after `limit`.

    Args:
        text: to print.
        keep: control characters that stay as they are.
        limit: characters of `text` from which on it is cut; None: never.
    """
    whole = text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
    if whole.isprintable():
        return whole
    return "".join(
        letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1]
        for letter in whole
    )


def shown(value: object, limit: int = SHOWN, depth: int = 4) -> str:
    """A value as in a message: its repr, of about `limit` characters at most, however large or deep the value is.

    Args:
        value: of any kind.
        limit: characters, about.
        depth: levels of nested values that are written out.
    """
    if isinstance(value, int) and abs(value) >= 10**limit:
        return f"a number of about {int(value.bit_length() * 0.30103):,} digits"
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[: limit - 1] + "…")
    if isinstance(value, (dict, list, tuple)):
        return _shown_items(value, limit, depth)
    text = repr(value)
    return escaped(text, limit=limit)


def _shown_items(value: Any, limit: int, depth: int) -> str:
    """The first items of a mapping or list, and … where there are more or deeper ones."""
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    parts: list[str] = []
    room = limit
    for item in value:
        if room <= 0 or depth == 0:
            parts.append("…")
            break
        text = shown(item, max(room, 8), depth - 1)
        if isinstance(value, dict):
            text += f": {shown(value[item], max(room, 8), depth - 1)}"
        parts.append(text)
        room -= len(text)
    return opening + ", ".join(parts) + closing


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean X?` with the known name nearest to `name`; empty where none is near, or it is the name itself.

    Args:
        name: that is not known.
        known: the names that are.
        cutoff: similarity, from 0 to 1, below which no name is near (difflib's ratio).
    """
    others = [one for one in known if one != name]
    near = difflib.get_close_matches(name[:200], others, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else ""

"""An error of the disk names the path and what to do; other errors pass as they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from paribus.data.disk import writing
from paribus.errors import UserError


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y.bin"), "make room"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/x/y.bin"), "a quota may be the limit"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x/y.bin"), "mounted for writing"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/y.bin"), "belongs to you"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/x/y.bin"), "check the disk"),
    ],
)
def test_an_error_of_the_disk_names_its_path(error: OSError, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=advice) as told, writing(tmp_path):
        raise error
    assert str(told.value).startswith("/x/y.bin: cannot be written: ")


def test_an_error_without_a_path_names_what_was_being_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MB are free") as told, writing(tmp_path / "t.json"):
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library does
    assert str(tmp_path / "t.json") in str(told.value)


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(2, "no"), UserError("mine")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), writing(tmp_path):
        raise error

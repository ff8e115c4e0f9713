"""The environment of `make gpu-dry-run`: what it asks for first, and that it goes on where it was cut off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.checkout import ROOT

SCRIPT = ROOT / "tests" / "gpu" / "environment.py"
CALL = (
    "import runpy, sys; from pathlib import Path; "
    "runpy.run_path(sys.argv[1])['main'](Path(sys.argv[2]), Path(sys.argv[3]))"
)


def make(folder: Path, requirements: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A call as the Makefile's, with requirements of the test's own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | variables
    command = [sys.executable, "-c", CALL, str(SCRIPT), str(folder), str(requirements)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def wheel(folder: Path, name: str, file: str) -> None:
    """A package of one file. A file that leads outside is refused by pip when it is installed, not before."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", f"{file},,\n")
        archive.writestr(file, "")


def test_the_null_device_runs_the_torch_that_the_project_pins() -> None:
    pinned = re.compile(r"^torch=+(\S+)", re.MULTILINE)
    requirements = (ROOT / "tests" / "gpu" / "requirements.txt").read_text()
    assert pinned.findall(requirements) == pinned.findall((ROOT / "requirements.lock").read_text())
    assert "torch===" in requirements  # == takes a build for the CPU as well (+cpu)


@pytest.mark.skipif(sys.platform != "linux", reason="the null device needs Linux")
def test_without_a_compiler_nothing_is_downloaded(tmp_path: Path) -> None:
    ended = make(tmp_path / "env", SCRIPT.with_name("requirements.txt"), PATH="", CC="")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "no C compiler" in ended.stderr
    assert "nm is not here" in ended.stderr
    assert not (tmp_path / "env").exists()


@pytest.mark.soak  # installs twice
@pytest.mark.skipif(sys.platform != "linux", reason="the null device needs Linux")
def test_a_call_after_a_failed_one_installs_what_is_missing_and_the_next_nothing(
    tmp_path: Path,
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("first_package==1.0\nsecond_package==1.0\n")
    wheel(tmp_path, "first_package", "first_package.py")
    wheel(tmp_path, "second_package", "../../../outside.py")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}

    cut = make(tmp_path / "env", requirements, **index)
    assert cut.returncode == 1
    assert "second_package 1.0 could not be installed" in cut.stderr
    assert "call make gpu-dry-run again" in cut.stderr

    wheel(tmp_path, "second_package", "second_package.py")
    whole = make(tmp_path / "env", requirements, **index)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == "env: second_package 1.0, 1 of 1\n"
    program = "import first_package, second_package, pytest"  # the last one is read from here
    subprocess.run([tmp_path / "env" / "bin" / "python", "-c", program], check=True)

    again = make(tmp_path / "env", requirements, PIP_INDEX_URL="http://127.0.0.1:9")
    assert (again.returncode, again.stdout) == (0, "")

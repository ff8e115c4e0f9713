"""Make the environment of `make gpu-dry-run`: python environment.py FOLDER, by the Python of .venv.

It holds torch's CUDA build (3 GB to download) and reads every other package from .venv. Packages are installed one by
one, so that a call after an interrupted one goes on with those that are missing; once all are there it does nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from paribus.model.compiler import missing_tools

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
STAMP = ".installed"
DISK = 8e9  # bytes: the environment takes 4.7 GB, and a package is unpacked beside its download
PYTHONS = ((3, 11), (3, 14))
AGAIN = "call make gpu-dry-run again: it goes on with what is missing"


def main(folder: Path) -> None:
    """Bring `folder` to what requirements.txt asks for, or exit with what is missing."""
    problems = lacking(folder)
    if problems:
        sys.exit("\n".join(f"gpu-dry-run: {problem}" for problem in problems))
    if is_current(folder):
        return
    python = folder / "bin" / "python"
    if python_of(folder) != sys.version:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    packages = unmet(python)
    for number, package in enumerate(packages, 1):
        print(f"{folder.name}: {label(package)}, {number} of {len(packages)}", flush=True)
        install(python, package)
    read_from(python, Path(sysconfig.get_path("purelib")))
    (folder / STAMP).write_text(wanted(), encoding="utf-8")


def lacking(folder: Path) -> list[str]:
    """What this machine needs first, a sentence each; [] if nothing. Asked before anything is downloaded."""
    problems = []
    if platform.system() != "Linux":
        problems.append(
            f"torch's CUDA build and the null device need Linux, not {platform.system()}"
        )
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        version = platform.python_version()
        problems.append(
            f"Python 3.11 to 3.13 is needed, not {version}: make clean, then make PYTHON=python3.12"
        )
    problems += missing_tools("cuda")  # Triton's own needs: a C compiler and Python.h
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            problems.append(
                f"{tool} is not here, which builds the null device: apt-get install gcc binutils"
            )
    free = shutil.disk_usage(folder.parent).free
    if not is_current(folder) and free < DISK:
        problems.append(
            f"{free / 1e9:.1f} GB are free at {folder.parent}; the environment takes up to {DISK / 1e9:.0f}"
        )
    return problems


def wanted() -> str:
    """What a finished environment was made of: the requirements, this Python, and the folder it reads from."""
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    return f"{requirements}\n{sys.version}\n{sysconfig.get_path('purelib')}\n"


def is_current(folder: Path) -> bool:
    """Whether an environment was finished for the present requirements and Python."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted()


def python_of(folder: Path) -> str | None:
    """sys.version of the environment's Python; None where none runs."""
    python = folder / "bin" / "python"
    try:
        asked = subprocess.run(
            [python, "-c", "import pip, sys; print(sys.version)"], capture_output=True, text=True
        )
    except OSError:
        return None
    return asked.stdout.rstrip("\n") if asked.returncode == 0 else None


def unmet(python: Path) -> list[dict[str, Any]]:
    """The packages that are not installed yet, as pip resolves them."""
    report = python.parent.parent / "report.json"
    (python.parent.parent / STAMP).unlink(missing_ok=True)
    command = ["install", "--quiet", "--dry-run", "--report", str(report)]
    pip(python, [*command, "--requirement", str(REQUIREMENTS)], "resolving the packages failed")
    found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return found


def label(package: dict[str, Any]) -> str:
    return f"{package['metadata']['name']} {package['metadata']['version']}"


def install(python: Path, package: dict[str, Any]) -> None:
    """Install the file that was resolved, and no dependency of it."""
    source = package["download_info"]
    digest = source["archive_info"]["hash"]  # sha256=...
    url = f"{source['url']}#{digest}"
    pip(
        python, ["install", "--quiet", "--no-deps", url], f"{label(package)} could not be installed"
    )


def pip(python: Path, arguments: list[str], failure: str) -> None:
    done = subprocess.run([python, "-m", "pip", "--retries", "5", *arguments])
    if done.returncode:
        sys.exit(f"gpu-dry-run: {failure}; {AGAIN}")


def read_from(python: Path, packages: Path) -> None:
    """Let an environment find what it does not have itself in another one's folder of packages."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    # its name sorts last, so that the environment's own packages come first
    Path(asked.stdout.strip(), "zz-paribus.pth").write_text(f"{packages}\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # for pip: paribus is imported by now
    main(Path(sys.argv[1]).resolve())

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
LINK = "zz-paribus.pth"  # read last, so that the environment's own packages come first
DISK = 8e9  # bytes: the environment takes 4.7 GB, and a package is unpacked beside its download
PYTHONS = ((3, 11), (3, 14))
AGAIN = "call make gpu-dry-run again: it goes on with what is missing"


def main(folder: Path, requirements: Path = REQUIREMENTS) -> None:
    """Bring `folder` to what `requirements` asks for, or exit with what is missing."""
    wanted = made_of(requirements)
    stamp = folder / STAMP
    finished = stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted
    problems = lacking(folder.parent, finished)
    if problems:
        sys.exit("\n".join(f"gpu-dry-run: {problem}" for problem in problems))
    if finished:
        return
    stamp.unlink(missing_ok=True)
    python = folder / "bin" / "python"
    if python_of(folder) != sys.version:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    installed = purelib_of(python)
    (installed / LINK).unlink(missing_ok=True)  # pip is to see the environment's own packages alone
    drop_halves(installed)
    packages = unmet(python, requirements, folder / "report.json")
    for number, package in enumerate(packages, 1):
        print(f"{folder.name}: {label(package)}, {number} of {len(packages)}", flush=True)
        install(python, package)
    read_from(installed, Path(sysconfig.get_path("purelib")))
    stamp.write_text(wanted, encoding="utf-8")


def lacking(parent: Path, finished: bool) -> list[str]:
    """What this machine needs first, a sentence each; [] if nothing. Asked before anything is downloaded.

    parent: where the environment goes; finished: whether it is there already.
    """
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
    free = shutil.disk_usage(parent).free
    if not finished and free < DISK:
        problems.append(
            f"{free / 1e9:.1f} GB are free at {parent}; the environment takes up to {DISK / 1e9:.0f}"
        )
    return problems


def made_of(requirements: Path) -> str:
    """What an environment follows from: the requirements, this Python, and the folder it reads the rest from."""
    text = requirements.read_text(encoding="utf-8")
    return f"{text}\n{sys.version}\n{sysconfig.get_path('purelib')}\n"


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


def unmet(python: Path, requirements: Path, report: Path) -> list[dict[str, Any]]:
    """The packages that are not installed yet, as pip resolves them and writes them to `report`."""
    resolve = ["install", "--quiet", "--dry-run", "--report", str(report)]
    pip(python, [*resolve, "--requirement", str(requirements)], "the packages cannot be resolved")
    found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return found


def label(package: dict[str, Any]) -> str:
    return f"{package['metadata']['name']} {package['metadata']['version']}"


def install(python: Path, package: dict[str, Any]) -> None:
    """Install the very file that was resolved, and no dependency of it."""
    source = package["download_info"]
    digest = source["archive_info"].get("hash")  # sha256=...
    url = f"{source['url']}#{digest}" if digest else source["url"]
    command = ["install", "--quiet", "--no-deps", url]
    pip(python, command, f"{label(package)} could not be installed")


def pip(python: Path, arguments: list[str], failure: str) -> None:
    done = subprocess.run([python, "-m", "pip", "--retries", "5", *arguments])
    if done.returncode:
        sys.exit(f"gpu-dry-run: {failure}; {AGAIN}")


def purelib_of(python: Path) -> Path:
    """The folder of packages of an environment."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    return Path(asked.stdout.strip())


def drop_halves(packages: Path) -> None:
    """Forget packages whose installation was cut off: pip writes INSTALLER after the last of a package's own files."""
    for about in packages.glob("*.dist-info"):
        if not (about / "INSTALLER").is_file():
            shutil.rmtree(about)


def read_from(packages: Path, others: Path) -> None:
    """Let an environment find what it does not have itself in another one's folder of packages."""
    (packages / LINK).write_text(f"{others}\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # for pip: paribus is imported by now
    main(Path(sys.argv[1]).resolve())

"""What compiling needs of the machine: a compiler, and the header of this Python.

Triton builds the launchers of its kernels in C, and Inductor the kernels of a CPU in C++; both build against Python.h.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from paribus.errors import UserError

# Each list as the library itself searches it; the variable, where set, takes the place of the search.
C_COMPILERS = ("CC", ("gcc", "clang"))  # triton/runtime/build.py
CXX_COMPILERS = ("CXX", ("clang++",) if sys.platform == "darwin" else ("g++",))  # inductor's config
PACKAGES = (
    "Debian and Ubuntu: apt-get install {compiler} python{version}-dev; "
    "Fedora: dnf install {compiler} python{version}-devel"
)


def missing_tools(device: str) -> list[str]:
    """What compiling for a device ("cuda", "cpu" or "mps") lacks here, one sentence each with its cure; [] if nothing."""
    problems = []
    compiler = "gcc" if device == "cuda" else "g++"
    variable, names = C_COMPILERS if device == "cuda" else CXX_COMPILERS
    named = os.environ.get(variable)
    searched = (named,) if named else names
    if not any(shutil.which(name) for name in searched):
        language = "C" if device == "cuda" else "C++"
        source = f"{variable}={named} is not a command" if named else f"no {' or '.join(names)}"
        problems.append(f"no {language} compiler ({source})")
    header = _python_header()
    if not header.is_file():
        problems.append(f"no header of this Python ({header} is not there)")
    if not problems:
        return []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [*problems, "install them: " + PACKAGES.format(compiler=compiler, version=version)]


def require_tools(device: str, reason: str) -> None:
    """Raises UserError where `missing_tools` names any.

    Args:
        device: type of the device that is compiled for: cpu or cuda.
        reason: the setting that compiles, to begin the message with.
    """
    problems = missing_tools(device)
    if problems:
        raise UserError(f"{reason} compiles its kernels on this machine: {'; '.join(problems)}")


def _python_header() -> Path:
    """Where Triton and Inductor look for Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme names a folder below /usr/local that has no headers; both libraries pass it over
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"

"""Build the null CUDA device for this Python's torch: python build.py FOLDER.

Needs gcc, nm, and torch's CUDA build, whose own dependency ships the headers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILE = ["gcc", "-shared", "-fPIC", "-O1", "-w"]
LAST = "null_rest.so"  # of the libraries
STUBBED = re.compile(r"^(__cuda|cuda[A-Z]|cublas)\w+$")


def main(folder: Path) -> None:
    """Write null_runtime.so, null_rest.so and libcuda.so.1 into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_current(folder):
        return
    include = f"-I{headers()}"
    runtime = folder / "null_runtime.so"
    subprocess.run(
        [*COMPILE, include, HERE / "null_runtime.c", "-o", runtime, "-ldl", "-lpthread"], check=True
    )
    driver = folder / "libcuda.so.1"
    subprocess.run([*COMPILE, include, HERE / "null_driver.c", "-o", driver], check=True)
    link = folder / "libcuda.so"  # what Triton links against
    link.unlink(missing_ok=True)
    link.symlink_to(driver.name)
    missing = sorted(wanted() - symbols(runtime, "--defined-only"))
    source = folder / "null_rest.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing))
    last = folder / LAST
    aside = last.with_suffix(".new")
    subprocess.run([*COMPILE, source, "-o", aside], check=True)
    aside.replace(last)


def is_current(folder: Path) -> bool:
    """Whether the last of the libraries was made after the newest of what they are made from, torch included."""
    last = folder / LAST
    sources = [*HERE.glob("*.c"), Path(__file__), package("torch") / "version.py"]
    return last.is_file() and all(
        source.stat().st_mtime < last.stat().st_mtime for source in sources
    )


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{name} is not installed: make gpu-dry-run installs torch's CUDA build")
    return Path(spec.submodule_search_locations[0])


def headers() -> Path:
    """CUDA's headers, as the package of its runtime ships them."""
    for header in sorted(package("nvidia").glob("*/include/cuda_runtime_api.h")):
        return header.parent
    sys.exit("no cuda_runtime_api.h: this torch is not the CUDA build")


def wanted() -> set[str]:
    """The functions of CUDA's runtime and of cuBLAS that torch's libraries call."""
    found: set[str] = set()
    for library in (package("torch") / "lib").glob("*.so"):
        found |= symbols(library, "--undefined-only")
    return {name for name in found if STUBBED.match(name)}


def symbols(library: Path, which: str) -> set[str]:
    listed = subprocess.run(
        ["nm", "--dynamic", which, library], check=True, capture_output=True, text=True
    )
    return {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Do what a page says, word by word, in a fresh clone of this checkout's last commit.

    python tools/walk.py docs/getting-started.md FOLDER

Every block of the page that is fenced as `sh` runs in one shell, in order; a command that fails ends the walk. The seconds
that each block took are printed at the end, and are in FOLDER/times.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|^```sh\n(?P<block>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Commands of a page, and the heading they stand under."""

    heading: str
    commands: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page that a reader is asked to run."""
    found = []
    heading = ""
    for match in HEADING_OR_BLOCK.finditer(text):
        if match["heading"]:
            heading = match["heading"]
        else:
            found.append(Block(heading, match["block"]))
    return found


def script(page: list[Block]) -> str:
    """One shell script of all blocks, which shows what it runs and appends the seconds so far to ../times."""
    lines = ["set -eo pipefail"]
    for block in page:
        lines += [f"echo; echo '--- {block.heading}'", "set -v", block.commands]
        lines += ["{ set +v; } 2>/dev/null", "echo $SECONDS >> ../times"]
    return "\n".join(lines) + "\n"


def walk(page: Path, folder: Path) -> int:
    """Run a page's blocks in a clone below a folder; the exit status of the shell."""
    todo = blocks(page.read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    clone = folder / "paribus"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (folder / "walk.sh").write_text(script(todo))
    done = subprocess.run(
        ["bash", "../walk.sh"], cwd=clone, env=_environment(), stdin=subprocess.DEVNULL
    )
    rows = _times(todo, folder / "times")
    (folder / "times.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(f"{row['seconds']:>6} s  {row['heading']}")
    return done.returncode


def _environment() -> dict[str, str]:
    """A newcomer's: no package of this checkout, and a name to commit under."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for who in ("AUTHOR", "COMMITTER"):
        kept |= {f"GIT_{who}_NAME": "A reader", f"GIT_{who}_EMAIL": "reader@example.org"}
    return kept


def _times(todo: list[Block], file: Path) -> list[dict[str, str | int]]:
    """The seconds that each finished block took."""
    ends = [int(line) for line in file.read_text().split()] if file.exists() else []
    rows: list[dict[str, str | int]] = []
    before = 0
    for block, end in zip(todo, ends, strict=False):
        rows.append({"heading": block.heading, "seconds": end - before})
        before = end
    return rows


def main() -> int:
    """Walk the page that the command line names."""
    parser = argparse.ArgumentParser(description="Do what a page says in a fresh clone.")
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path, help="must not exist; the clone stays there")
    arguments = parser.parse_args()
    return walk(arguments.page, arguments.folder)


if __name__ == "__main__":
    sys.exit(main())

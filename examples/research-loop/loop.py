"""A loop of research without a researcher: each idea of a list is tried, and what is kept is committed.

    python examples/research-loop/loop.py examples/research-loop/ideas.yaml --minutes 60

An idea is a message and edits of text; a program that writes its own edits takes the place of the list. The loop may be
killed at any moment and started again: it goes on with the idea that was under way. It takes back whatever is not
committed, so give it a clone of its own. It writes a line of JSON for each idea, with the exit status of `paribus try` and
how long it took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paribus.config import read_yaml

KEEP, DISCARD, CANNOT_RUN, UNDECIDED = 0, 1, 2, 3


def git(*arguments: str) -> None:
    """Run git. Raises CalledProcessError with its message on stderr."""
    subprocess.run(["git", *arguments], check=True, stdout=subprocess.DEVNULL)


def edit(edits: list[dict[str, str]]) -> bool:
    """Replace text in files; False, and nothing is changed, where an old text does not stand there once."""
    for one in edits:
        if Path(one["file"]).read_text(encoding="utf-8").count(one["old"]) != 1:
            return False
    for one in edits:
        path = Path(one["file"])
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(one["old"], one["new"]), encoding="utf-8")
    return True


def attempt(idea: dict[str, Any]) -> dict[str, Any]:
    """Try one idea, and commit it or take it back; what there is to say of it."""
    began = time.monotonic()
    if not edit(idea["edits"]):
        why = "what was kept since changed the lines that it edits"
        return {"message": idea["message"], "status": None, "why": why}
    command = [sys.executable, "-m", "paribus", "try", "-m", idea["message"], "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    said: dict[str, Any] = {"message": idea["message"], "status": done.returncode}
    if done.returncode in (KEEP, DISCARD, UNDECIDED):
        entry = json.loads(done.stdout)
        said |= {"number": entry["number"], "verdict": entry["verdict"], "why": entry["why"]}
    else:
        said["why"] = done.stderr.strip().splitlines()[-1]
    if done.returncode == KEEP:
        git("commit", "--all", "--quiet", "--message", idea["message"])
    else:
        git("checkout", "--quiet", "--", ".")
    return said | {"minutes": round((time.monotonic() - began) / 60, 1)}


def judged() -> dict[str, dict[str, Any]]:
    """Message -> its newest try, of those that were taken back: on what was kept since, they are not tried once more."""
    command = [sys.executable, "-m", "paribus", "ledger", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    newest = {one["message"]: one for one in json.loads(done.stdout)["tries"]}
    taken_back = ("discard", "undecided")
    return {name: one for name, one in newest.items() if one["verdict"] in taken_back}


def main() -> None:
    """Try the ideas of a file in their order, as long as there is time to begin one."""
    arguments = argparse.ArgumentParser(description=main.__doc__)
    arguments.add_argument("ideas", help="a YAML file of messages and edits")
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="to begin ideas in")
    given = arguments.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    git(
        "checkout", "--quiet", "--", "."
    )  # the edits of an idea that was under way in a killed loop
    known = judged()
    for idea in read_yaml(given.ideas)["ideas"]:
        if idea["message"] in known:
            continue
        if time.monotonic() >= ends:
            return
        print(json.dumps(attempt(idea), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()

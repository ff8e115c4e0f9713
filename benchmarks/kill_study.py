"""Kills a study at random instants and looks at what is left: `python benchmarks/kill_study.py --kills 50 --out kill_study.json`.

Each kill is a SIGKILL to the driver, a worker, its guardian, the stages, all of them, or all but the guardians. A killed
driver is called again; when the study has ended, it begins anew with other seeds, until every kill is spent. After each
study:

    values        every run has the value of an undisturbed study
    twice         training steps that were made twice
    clones        clones left behind
    processes     processes left behind, but for what feeds MLflow
    checkout      whether the user's files, HEAD, index, branches and stash are as they were
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

from support.studied import LightProject, kill, wait_for  # noqa: E402

TARGETS = ("driver", "worker", "guardian", "stages", "all", "all but guardians")
ARMS = {"adamw": {"optimizer.kind": "adamw"}}
SEEDS = 3
RUNS = SEEDS * (1 + len(ARMS))
LONGEST_WAIT = 8.0  # seconds before a kill


def chosen(project: LightProject, driver: int, target: str) -> list[psutil.Process]:
    """The processes to kill."""
    drivers = [psutil.Process(driver)]
    if target == "driver":
        return drivers
    if target == "worker":
        return project.workers()[:1]
    if target == "guardian":
        return project.guardians()
    if target == "stages":
        return project.stages()
    everything = [*drivers, *project.workers(), *project.stages()]
    return everything if target == "all but guardians" else [*everything, *project.guardians()]


def one_study(project: LightProject, name: str, kills: int, chance: random.Random) -> Counter[str]:
    """Run a study to its end with up to so many kills; those that were spent."""
    spent: Counter[str] = Counter()
    driver = project.begin(name, workers=2)
    while True:
        wait = chance.uniform(0.0, LONGEST_WAIT) if sum(spent.values()) < kills else 600.0
        deadline = time.monotonic() + wait
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if driver.poll() is None:
            target = chance.choice(TARGETS)
            kill(chosen(project, driver.pid, target))
            spent[target] += 1
            time.sleep(chance.uniform(0.0, 1.0))
        if driver.poll() is not None:
            assert driver.returncode <= 0, project.log()[-3000:]
            if driver.returncode == 0 and len(project.values(name)) == RUNS:
                return spent
            # A run whose stages were killed three times is given up until it is asked for.
            driver = project.begin(name, workers=2, retry=driver.returncode == 0)


def findings(project: LightProject, name: str, checkout: str) -> dict[str, Any]:
    """What is wrong after a study; empty where nothing is."""
    wrong: dict[str, Any] = {}
    values = project.values(name)
    expected = {}
    for arm, bias in (("baseline", 0.0), ("adamw", 0.5)):
        for seed in range(7, 7 + SEEDS):
            value = 1.0 + 0.1 * seed + bias + 0.001 * (seed % 3)
            expected[f"{name}.{arm}.s{seed}"] = round(value, 9)
    values = {run: round(value, 9) for run, value in values.items()}
    if values != expected:
        wrong["values"] = {"expected": expected, "found": values}
    steps = project.trained()
    twice = {mark: made for mark, made in steps.items() if made != list(range(8))}
    if twice:
        wrong["twice"] = twice
    clones = [str(path) for path in project.clones()]
    if clones:
        wrong["clones"] = clones
    deadline = time.monotonic() + 20.0
    while project.left_behind() and time.monotonic() < deadline:
        time.sleep(0.2)
    if left := project.left_behind():
        wrong["processes"] = left
    if project.checkout() != checkout:
        wrong["checkout"] = "changed"
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    spent: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    studies = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paribus-kills-") as folder:
        project = LightProject(Path(folder) / "project", HERE.parent).start()
        while sum(spent.values()) < args.kills:
            studies += 1
            name = f"study{studies}"
            # Another depth: nothing of an earlier study is done already.
            baseline = {"set": {"model.depth": 1 + studies}}
            project.study(name, seeds=SEEDS, arms=ARMS, baseline=baseline)
            (project.root / "notes.md").write_text(f"not committed, {studies}\n")
            before = project.checkout()
            most = min(args.kills - sum(spent.values()), 12)
            spent += one_study(project, name, most, chance)
            found = findings(project, name, before)
            if found:
                wrong.append({"study": name, **found})
            print(f"{name}: {sum(spent.values())} kills; {found or 'nothing wrong'}", flush=True)
        wait_for(lambda: not project.left_behind(), 60)
    result = {
        "kills": dict(spent),
        "studies": studies,
        "seconds": round(time.monotonic() - began),
        "wrong": wrong,
    }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

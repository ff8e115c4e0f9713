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

import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from killing import ROOT, TARGETS, arguments, chosen, report, traces
from support.studied import LightProject, kill, wait_for

ARMS = {"adamw": {"optimizer.kind": "adamw"}}
SEEDS = 3
RUNS = SEEDS * (1 + len(ARMS))
LONGEST_WAIT = 8.0  # seconds before a kill


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
    return wrong | traces(project, checkout)


def main() -> None:
    args = arguments(__doc__, kills=50)
    chance = random.Random(args.seed)
    spent: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    studies = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paribus-kills-") as folder:
        project = LightProject(Path(folder) / "project", ROOT).start()
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
    counts = {"studies": studies, "seconds": round(time.monotonic() - began)}
    report(spent, counts, wrong, args.out)


if __name__ == "__main__":
    main()

"""Kills tries at random instants and looks at what is left: `python benchmarks/kill_try.py --kills 20 --out kill_try.json`.

Each kill is a SIGKILL to `paribus try` itself, its worker, the worker's guardian, the stages, all of them, or all but the
guardians. What was killed is called again until it has a verdict; then the next change is tried, until every kill is spent.
After each try:

    verdict       keep, with the values of an undisturbed try at every seed
    ledger        one line that it began, and one that it ended
    refs          its commit is kept, its runs are there once each
    twice         training steps that were made twice
    clones        clones left behind
    processes     processes left behind, but for what feeds MLflow
    checkout      whether the user's files, HEAD, index, branches and stash are as they were
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from killing import ROOT, TARGETS, arguments, chosen, report, traces
from support.forked import WarmProcess
from support.studied import LightProject, kill, wait_for
from support.warm import warm

from paribus.config import parse_yaml

TERMS = {"stack": False, "smallest_effect": 0.01, "seeds": {"from": 3, "to": 4}, "false_keeps": 0.4}
SEEDS = range(7, 7 + 3 * 4)  # tries take turns at three sets of four
LONGEST_WAIT = 6.0  # seconds before a kill
MOST_KILLS = 5  # of a try
# A run that a signal has ended twice under one `paribus try` counts as killed for its memory: a discard.
OF_RUNS = ("worker", "guardian", "stages")


def begin(project: LightProject, said: Path) -> WarmProcess:
    """`paribus try` of what is not committed; what it prints goes to a file."""
    with said.open("wb") as output, said.with_suffix(".log").open("ab") as log:
        command = ["-m", "paribus", "try", "-m", "an idea", "--workers", "2", "--json"]
        return warm().begin(
            command, project.root, project.environment(), output.fileno(), log.fileno()
        )


def one_try(project: LightProject, said: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Try what is not committed, with up to so many kills; those that were spent."""
    spent: Counter[str] = Counter()
    driver = begin(project, said)
    of_runs = 0  # since the driver began
    while True:
        wait = chance.uniform(0.0, LONGEST_WAIT) if sum(spent.values()) < kills else 600.0
        deadline = time.monotonic() + wait
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if driver.poll() is None:
            target = chance.choice(TARGETS)
            if target in OF_RUNS:
                target = target if of_runs == 0 else "driver"
                of_runs += 1
            kill(chosen(project, driver.pid, target))
            spent[target] += 1
            time.sleep(chance.uniform(0.0, 1.0))
        if driver.poll() is not None:
            if driver.returncode >= 0:
                return spent
            driver, of_runs = begin(project, said), 0


def expected(seeds: list[int], number: int) -> tuple[list[float], list[float]]:
    """The values of the change and of the baseline, as the trainer of `LightProject` makes them."""
    baseline = [round(1.0 + 0.1 * seed + 0.001 * (seed % 3), 9) for seed in seeds]
    better = [gain(number, seed) for seed in seeds]
    change = [round(value - by, 9) for value, by in zip(baseline, better, strict=True)]
    return change, baseline


def gain(number: int, seed: int) -> float:
    """What the change of a try is worth at a seed."""
    return 0.5 + 0.01 * number + 0.0001 * (seed % 4)


def behave(project: LightProject, number: int) -> None:
    """Make the change of a try better than the baseline, by an epsilon that is its alone."""
    rules = []
    for seed in SEEDS:
        when = {"stage": "pretrain", "kind": "adamw", "eps": epsilon(number), "seed": seed}
        rules.append({"when": when, "do": {"add": -0.5 - gain(number, seed)}})
    project.behave(*rules)


def epsilon(number: int) -> float:
    """Of AdamW in a try."""
    return number * 1e-9


def change(project: LightProject, number: int) -> None:
    """Edit params.yaml without a commit."""
    path = project.root / "params.yaml"
    params = parse_yaml(project.git("show", "HEAD:params.yaml"), "params.yaml")
    params["optimizer"] |= {"kind": "adamw", "eps": epsilon(number)}
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def findings(project: LightProject, said: Path, number: int, checkout: str) -> dict[str, Any]:
    """What is wrong after a try; empty where nothing is."""
    wrong: dict[str, Any] = {}
    entry = json.loads(said.read_text() or "{}")
    seeds = entry.get("seeds", [])
    change_values, baseline_values = expected(seeds, number)
    right = {"verdict": "keep", "number": number}
    right |= {"change_values": change_values, "baseline_values": baseline_values}
    found = {key: entry.get(key) for key in right}
    for key in ("change_values", "baseline_values"):
        found[key] = [round(value, 9) for value in found[key] or []]
    if found != right:
        wrong["verdict"] = {"expected": right, "found": found}
    if ledger := wrong_lines(project, number):
        wrong["ledger"] = ledger
    names = [one.name for one in project.experiments("try")]
    if len(names) != len(set(names)):
        wrong["refs"] = names
    if project.git("rev-parse", f"refs/paribus/ideas/try-{number}") != entry.get("change"):
        wrong["refs"] = f"try-{number} is not {entry.get('change')}"
    return wrong | traces(project, checkout)


def wrong_lines(project: LightProject, tries: int) -> list[str]:
    """Lines of the ledger, unless they are one for the beginning and one for the end of each try."""
    lines = (project.root / ".git/paribus/ledger.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    events = sorted((row["number"], row["event"]) for row in rows)
    right = [(number, event) for number in range(1, tries + 1) for event in ("begun", "ended")]
    return [] if events == right else lines


def main() -> None:
    """Kill tries, and print what was found."""
    args = arguments(__doc__, kills=20)
    chance = random.Random(args.seed)
    spent: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    tries = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paribus-kills-") as folder:
        project = LightProject(Path(folder) / "project", ROOT).start()
        (project.root / "experiments/try.yaml").write_text(yaml.safe_dump(TERMS))
        project.commit("terms")
        said = Path(folder) / "said.json"
        while sum(spent.values()) < args.kills:
            tries += 1
            behave(project, tries)
            change(project, tries)
            (project.root / "notes.md").write_text(f"not committed, {tries}\n")
            project.git("status")  # refreshes the index, as a person's look does
            before = project.checkout()
            most = min(args.kills - sum(spent.values()), MOST_KILLS)
            spent += one_try(project, said, most, chance)
            found = findings(project, said, tries, before)
            if found:
                wrong.append({"try": tries, **found})
            print(
                f"try {tries}: {sum(spent.values())} kills; {found or 'nothing wrong'}", flush=True
            )
        wait_for(lambda: not project.left_behind(), 60)
        if wrong:
            print(said.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
    counts = {"tries": tries, "seconds": round(time.monotonic() - began)}
    report(spent, counts, wrong, args.out)


if __name__ == "__main__":
    main()

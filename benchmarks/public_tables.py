"""Make the small tables of experiments/results/public from the logs that three public projects publish.

    python benchmarks/public_tables.py FOLDER --out experiments/results/public

FOLDER holds optimizer_benchmark.csv (recipe, run, planned_steps, step, val_loss), size_limited_records.csv (record, seed,
val_bpb) and interventions.csv (arm, test_loss). Of the first, one row a run is kept:

- runs of the recipe's commonest planned length; a log whose every point is also a point of another log of its recipe is that
  log in another form, and is left out;
- `steps`, the first step that all of these runs validated and at which they keep the benchmark's rule,
  (3.28 - mean) x sqrt(n) >= .004, and `val_loss` there; a recipe that never keeps it has its last step;
- `final_steps`, `final_val_loss`: of the run's end.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean

TARGET, BOUND = 3.28, 0.004
Curve = dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("size_limited_records.csv", "interventions.csv"):
        shutil.copyfile(options.folder / name, options.out / name)
    write_records(
        options.folder / "optimizer_benchmark.csv", options.out / "optimizer_benchmark.csv"
    )


def write_records(source: Path, out: Path) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["recipe", "date", "run", "steps", "val_loss", "final_steps", "final_val_loss"]
        )
        for recipe, runs in sorted(read(source).items()):
            chosen = distinct(commonest(runs))
            step = record_step(list(chosen.values()))
            for run, curve in chosen.items():
                last = max(curve)
                at = last if step is None else step
                date = recipe[:8] if recipe[:8].isdigit() and recipe[8] == "_" else ""
                writer.writerow([recipe, date, run, at, curve[at], last, curve[last]])


def read(path: Path) -> dict[str, dict[tuple[str, int], Curve]]:
    """recipe -> (run, planned steps) -> its curve."""
    recipes: dict[str, dict[tuple[str, int], Curve]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs = recipes.setdefault(row["recipe"], {})
            curve = runs.setdefault((row["run"], int(row["planned_steps"])), {})
            curve[int(row["step"])] = float(row["val_loss"])
    return recipes


def commonest(runs: dict[tuple[str, int], Curve]) -> dict[str, Curve]:
    """The runs of the planned length that most of them have."""
    planned = Counter(length for _, length in runs).most_common(1)[0][0]
    return {run: curve for (run, length), curve in runs.items() if length == planned}


def distinct(runs: dict[str, Curve]) -> dict[str, Curve]:
    """The runs whose points are not all points of another: of two equal ones the first."""
    kept: dict[str, Curve] = {}
    for run in sorted(runs, key=lambda name: (-len(runs[name]), int(name))):
        points = runs[run].items()
        if not any(points <= other.items() for other in kept.values()):
            kept[run] = runs[run]
    return dict(sorted(kept.items(), key=lambda item: int(item[0])))


def record_step(curves: list[Curve]) -> int | None:
    """The first step at which the runs keep the rule together."""
    shared = set(curves[0]).intersection(*curves)
    for step in sorted(shared):
        mean = fmean(curve[step] for curve in curves)
        if (TARGET - mean) * math.sqrt(len(curves)) >= BOUND:
            return step
    return None


if __name__ == "__main__":
    main()

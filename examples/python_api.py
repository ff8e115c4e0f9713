"""The Python API: read a finished run, then judge a table of results.

Run it in the checkout: python examples/python_api.py
"""

from pathlib import Path

import paribus

TABLE = Path("experiments/results/public/optimizer_benchmark.csv")


def show_run(name: str) -> None:
    """Print what is kept of a finished run."""
    run = paribus.load(name)
    loss = run.curves["pretrain"]["train_loss"]
    print(f"{run.name}: seed {run.params['seed']}, commit {run.commit}")
    print(f"  {run.numbers['pretrain.val_bpb']:.4f} bits per byte")
    print(f"  training loss {loss[0]:.2f} at the first step, {loss[-1]:.2f} at the last")
    for stage, machine in run.machines.items():
        print(f"  {stage}: {run.fingerprints[stage]} on {machine['device_name']}")


def show_judgement(table: Path) -> None:
    """Print a verdict on each public recipe of 3,250 steps against the tuned baseline of that length."""
    judgement = paribus.judge(
        table,
        arm="recipe",
        metric="val_loss",
        baseline="20260610_tuned_baseline_3250",
        where="steps=3250",
        smallest_effect=0.002,
    )
    for one in judgement.comparisons:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        print(f"{one.arm}: {one.verdict}, {one.difference:+.4f} ({interval}, {one.runs} runs)")


if __name__ == "__main__":
    show_run("HEAD")
    show_judgement(TABLE)

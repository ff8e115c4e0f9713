"""What differs between runs, and their metrics with the intervals that seeds and items give."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests
from support.kept_runs import parquet, run

from paribus.audit.compare import comparison
from paribus.audit.compare_page import page, summary
from paribus.evaluate.intervals import mcnemar_exact
from paribus.study.finished import FinishedRun

GSM8K, CORE = "gsm8k.rl.accuracy", "core.core"


def seeds(name: str, values: list[float], **params: Any) -> list[FinishedRun]:
    return [
        run(f"{name}-{seed}", params={"seed": seed} | params, metrics={"pretrain.val_bpb": value})
        for seed, value in enumerate(values)
    ]


def shown(found: Any) -> str:
    written = io.StringIO()
    Console(width=200, file=written).print(*page(found), sep="\n")
    return written.getvalue()


def test_equal_runs_differ_in_nothing() -> None:
    found = comparison([run("a")], [run("b")])
    assert summary(found) == "Nothing differs that decides a result."


def test_what_else_differs_is_said() -> None:
    """One thing was meant to change; code, a library, threads, data and a dirty tree changed with it."""
    a = run("a", params={"model.mlp": "relu2", "seed": 7}, data={"data/tokens": "1.dir"})
    b = run(
        "b",
        params={"model.mlp": "swiglu", "seed": 7},
        data={"data/tokens": "2.dir"},
        versions={"torch": "2.12.0"},
        hardware={"threads": 4},
        git={"diff": "d" * 64},
    )
    found = comparison([a], [b])
    assert found.params == {"model.mlp": ("relu2", "swiglu")}
    assert found.data == {"data/tokens": ("1.dir", "2.dir")}
    assert found.environment == {"hardware.threads": (2, 4), "versions.torch": ("2.13.0", "2.12.0")}
    text = summary(found)
    for part in (
        "1 params (model.mlp)",
        "data (data/tokens)",
        "versions.torch",
        "uncommitted changes in B",
        "cannot be put down",
    ):
        assert part in text
    assert "relu2" in shown(found)
    assert "2.12.0" in shown(found)


def test_what_follows_from_a_change_is_no_cause() -> None:
    """A checkpoint of other params differs, as it must; DVC's own uncommitted params of an experiment are not a dirty tree."""

    def experiment(name: str, rate: float) -> FinishedRun:
        stage = {
            "params": {"params.yaml": {"optimizer": rate}},
            "deps": [],
            "outs": [{"path": "checkpoints/base", "md5": name}],
        }
        one = run(
            name,
            params={"optimizer.matrix_lr": rate},
            data={"checkpoints/base": name},
            git={"diff": name * 32},
        )
        return replace(one, kind="experiment", lock={"stages": {"pretrain": stage}})

    found = comparison([experiment("a", 0.01)], [experiment("b", 0.02)])
    assert summary(found) == "Differs: 1 params (optimizer.matrix_lr)."
    assert list(found.outputs) == ["checkpoints/base"]
    same = replace(experiment("b", 0.01), params={"optimizer.matrix_lr": 0.01})
    assert "data (checkpoints/base)" in summary(
        comparison([experiment("a", 0.01)], [same])
    )  # nothing explains it


def test_code_is_told_by_the_file() -> None:
    b = run("b", code={"src/paribus/train/loop.py": "b" * 64, "src/paribus/train/new.py": "c" * 64})
    assert comparison([run("a")], [b]).code == {
        "src/paribus/train/loop.py": ("a" * 64, "b" * 64),
        "src/paribus/train/new.py": (None, "c" * 64),
    }


def test_matched_seeds_give_a_paired_interval() -> None:
    a, b = [1.30, 1.34, 1.29, 1.33], [1.28, 1.31, 1.28, 1.30]
    found = comparison(
        seeds("a", a, **{"optimizer.kind": "adamw"}), seeds("b", b, **{"optimizer.kind": "muon"})
    )
    one = found.metrics["pretrain.val_bpb"]
    expected = stats.ttest_1samp(numpy.subtract(b, a), 0)
    assert found.params == {"optimizer.kind": ("adamw", "muon")}, (
        "the seeds are the same on both sides"
    )
    assert (one.low, one.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert one.p == pytest.approx(expected.pvalue)
    assert "4 matched seeds" in one.how


def test_p_over_all_metrics_of_a_comparison_is_holms() -> None:
    rng = numpy.random.default_rng(2)
    values = rng.normal(size=(2, 4, 6))
    sides = []
    for name, side in zip("ab", values, strict=True):
        sides.append(
            [
                run(
                    f"{name}{seed}",
                    params={"seed": seed},
                    metrics={f"pretrain.metric{number}": x for number, x in enumerate(row)},
                )
                for seed, row in enumerate(side)
            ]
        )
    metrics = list(comparison(*sides).metrics.values())
    expected = multipletests([metric.p for metric in metrics], method="holm")[1]
    assert [metric.p_adjusted for metric in metrics] == pytest.approx(list(expected))


def test_one_seed_has_no_interval_and_says_so() -> None:
    one = comparison(seeds("a", [1.3]), seeds("b", [1.2])).metrics["pretrain.val_bpb"]
    assert one.low is None
    assert one.p is None
    assert "one seed" in one.how


def test_numbers_are_whole_in_a_narrow_terminal() -> None:
    """Metrics that are compared in another way have a table of their own, and long names are folded."""
    found = comparison(seeds("a", [1.12345678, 1.2]), seeds("b", [-1234567.8, 1.4]))
    metric = found.metrics["pretrain.val_bpb"]
    other = replace(metric, low=None, high=None, p=None, p_adjusted=None, how="no interval")
    found.metrics["pretrain.optimizer_flops_per_step"] = metric
    found.metrics["pretrain.another"] = other
    output = Console(file=io.StringIO(), width=80)
    for part in page(found):
        output.print(part)
    assert isinstance(output.file, io.StringIO)
    text = output.file.getvalue()
    assert "…" not in text
    assert text.count(f"{metric.difference:+.4g}") == 3
    assert text.count("95 % interval") == 1


def test_items_are_paired_by_mcnemar(tmp_path: Path) -> None:
    rng = numpy.random.default_rng(0)
    first, second = (list(map(bool, rng.random(200) < share)) for share in (0.3, 0.45))
    path = "evals/gsm8k/rl/items.parquet"
    a, b = (
        run(
            name,
            metrics={GSM8K: sum(correct) / 200},
            kept={path: parquet(tmp_path / name, correct)},
        )
        for name, correct in (("a", first), ("b", second))
    )
    one = comparison([a], [b]).metrics[GSM8K]
    only = [
        sum(x and not y for x, y in zip(*pair, strict=True))
        for pair in ((first, second), (second, first))
    ]
    assert one.p == mcnemar_exact(*only)
    assert one.how.startswith("McNemar, 200 items")
    difference = numpy.subtract(second, first, dtype=float)
    half = 1.96 * difference.std(ddof=1) / math.sqrt(200)
    expected = (difference.mean() - half, difference.mean() + half)
    assert (one.low, one.high) == pytest.approx(expected, abs=0.01)


def test_core_items_differ_as_core_does(tmp_path: Path) -> None:
    """Outcomes above guessing, tasks weighing the same: the mean difference is that of CORE itself."""
    tasks, baselines = ["easy"] * 40 + ["hard"] * 10, {"easy": 0.5, "hard": 0.0}
    rng = numpy.random.default_rng(1)

    def of(name: str, share: float) -> tuple[FinishedRun, float]:
        correct = list(map(bool, rng.random(50) < share))
        scores = [
            (numpy.mean([c for c, t in zip(correct, tasks, strict=True) if t == task]) - guess)
            / (1 - guess)
            for task, guess in baselines.items()
        ]
        metrics = {CORE: float(numpy.mean(scores))} | {
            f"core.tasks.{task}.baseline": guess for task, guess in baselines.items()
        }
        kept = {"evals/core/items.parquet": parquet(tmp_path / name, correct, tasks)}
        return run(name, metrics=metrics, kept=kept), metrics[CORE]

    (a, first), (b, second) = of("a", 0.4), of("b", 0.7)
    one = comparison([a], [b]).metrics[CORE]
    assert one.difference == pytest.approx(second - first)
    assert one.low is not None
    assert one.high is not None
    assert one.low < one.difference < one.high
    assert "50 items in 2 tasks" in one.how


def test_other_items_are_not_paired(tmp_path: Path) -> None:
    """The same numbers of other questions: the corpus is another."""
    kept = {"evals/gsm8k/rl/items.parquet": parquet(tmp_path / "items", [True, False, True])}
    a, b = (
        run(name, metrics={GSM8K: 2 / 3}, kept=kept, data={"data/corpus": f"{name}.dir"})
        for name in "ab"
    )
    assert comparison([a], [b]).metrics[GSM8K].low is None

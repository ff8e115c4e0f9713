"""What evaluations can tell: planted noise, signal, resampling and checkpoints come out as planted."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from support.kept_runs import Kept, parquet, run

from paribus.audit.instrument import FOUND, best_subset, instrument, scatter, variances
from paribus.audit.instrument_page import page, values_of
from paribus.errors import UserError
from paribus.study.finished import FinishedRun

GSM8K = "evals/gsm8k/rl/items.parquet"
CORE = "evals/core/items.parquet"


def drawn(path: Path, chances: np.ndarray, answers: int, rng: np.random.Generator) -> Path:
    """Items with a chance each to be right, and sampled answers."""
    columns = {
        "correct": list(rng.random(len(chances)) < chances),
        "n_samples": [answers] * len(chances),
        "n_correct": [int(count) for count in rng.binomial(answers, chances)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def curve(run_: FinishedRun, values: list[float]) -> FinishedRun:
    """The run with a curve of bits per byte."""
    assert isinstance(run_.files, Kept)
    lines = ["step,val_bpb", *(f"{step},{value}" for step, value in enumerate(values))]
    run_.files.texts["plots/pretrain.csv"] = "\n".join(lines).encode()
    return run_


def of_core(
    folder: Path, shares: dict[str, list[list[float]]], items: int = 200
) -> list[FinishedRun]:
    """Runs with CORE's items; task -> share of right answers of each recipe and seed."""
    runs = []
    first = next(iter(shares.values()))
    for recipe, seeds in enumerate(first):
        for seed in range(len(seeds)):
            correct, tasks = [], []
            for task, own in shares.items():
                right = round(own[recipe][seed] * items)
                correct += [True] * right + [False] * (items - right)
                tasks += [task] * items
            path = parquet(folder / f"{recipe}-{seed}.parquet", correct, tasks)
            params = {"seed": seed, "optimizer.kind": recipe}
            runs.append(run(f"{recipe}-s{seed}", params=params, kept={CORE: path}))
    return runs


def test_detectable_effects_are_those_of_the_standard_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chances = rng.random(400)
    kept = [{GSM8K: drawn(tmp_path / name, chances, 8, rng)} for name in "ab"]
    runs = [run(name, params={"x": name}, kept=own) for name, own in zip("ab", kept, strict=True)]
    scale = instrument(runs).scales[0]
    share = scale.score
    assert scale.stderr == pytest.approx(math.sqrt(share * (1 - share) / 400), rel=0.02)
    assert scale.detectable == pytest.approx(FOUND * math.sqrt(2) * scale.stderr)
    assert scale.detectable_paired is not None
    assert scale.detectable_paired < scale.detectable  # both know the same easy items


def test_a_detectable_effect_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    stderr = 0.02
    seen = rng.normal(FOUND * stderr, stderr, 20_000)
    assert np.mean(np.abs(seen) / stderr > 1.96) == pytest.approx(0.8, abs=0.01)


def test_the_variance_of_drawing_answers_is_told_from_that_between_items() -> None:
    rng = np.random.default_rng(3)
    chances = rng.beta(2, 3, 20_000)
    answers = np.full(20_000, 4.0)
    between, drawing = variances(rng.binomial(4, chances).astype(float), answers)
    assert between == pytest.approx(chances.var(), rel=0.05)
    assert drawing == pytest.approx((chances * (1 - chances)).mean(), rel=0.05)


def test_sampled_answers_give_their_resampling(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    path = drawn(tmp_path / "a", np.full(300, 0.4), 4, rng)
    found = instrument([run("a", kept={GSM8K: path})]).resampling[0]
    assert (
        found.without_drawing < found.stderr / 3
    )  # all items are alike: nearly all of it is of drawing
    assert found.answers == 4


def test_tasks_that_tell_recipes_apart_make_the_subset(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shares: dict[str, list[list[float]]] = {"tells": [], "noisy": [], "silent": []}
    for recipe in range(3):
        shares["tells"].append([0.3 + 0.15 * recipe + rng.normal(0, 0.01) for _ in range(4)])
        shares["noisy"].append([0.5 + 0.02 * recipe + rng.normal(0, 0.1) for _ in range(4)])
        shares["silent"].append([0.5 + rng.normal(0, 0.05) for _ in range(4)])
    found = instrument(of_core(tmp_path, shares))
    assert found.recipes == 3
    assert found.subset is not None
    assert found.subset.tasks == ("tells",)
    assert found.subset.held_out
    assert found.subset.ratio > 2 * found.subset.whole
    ratios = {scale.name: scale.signal_to_noise for scale in found.scales}
    assert ratios["core: tells"] == max(ratio for ratio in ratios.values() if ratio)


def test_a_subset_chosen_on_the_runs_it_is_measured_on_says_so() -> None:
    scores = {"a": np.array([0.1, 0.2, 0.5, 0.6]), "b": np.array([0.3, 0.1, 0.2, 0.3])}
    found = best_subset(scores, [0, 0, 1, 1])
    assert found is not None
    assert not found.held_out
    assert best_subset(scores, [0, 0, 0, 0]) is None
    assert best_subset(scores, [0, 1, 2, 3]) is None


def test_the_scatter_of_last_looks_is_about_a_line() -> None:
    rng = np.random.default_rng(6)
    fall = np.linspace(2.0, 1.0, 5)
    assert scatter(np.array([fall, fall + 1])) == pytest.approx(0, abs=1e-12)
    noisy = fall + rng.normal(0, 0.03, (400, 5))
    assert scatter(noisy) == pytest.approx(0.03, rel=0.1)


def test_the_mean_of_last_looks_varies_less_from_seed_to_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    runs = of_core(tmp_path, {"a": [[0.5] * 6]})
    for one in runs:
        curve(one, list(1.0 + rng.normal(0, 0.05, 12)))
    found = instrument(runs).looks[0]
    assert (found.name, found.looks) == ("val_bpb", 5)
    assert found.last is not None
    assert found.mean is not None
    assert found.mean < found.last


def test_the_page_says_what_is_missing_and_programs_get_the_same(tmp_path: Path) -> None:
    found = instrument(of_core(tmp_path, {"a": [[0.5]], "b": [[0.0]]}))
    written = io.StringIO()
    Console(width=120, file=written).print(*page(found), sep="\n")
    assert "name several" in written.getvalue()
    assert "noise of seeds" in written.getvalue()
    scales: Any = values_of(found)["scales"]
    assert scales[0]["signal_to_noise"] is None
    assert min(scale["detectable"] for scale in scales) > 0  # also at a floor


def test_bad_input_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no items of an evaluation"):
        instrument([run("bare")])
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="damaged"):
        instrument([run("a", kept={CORE: damaged})])
    (tmp_path / "other").mkdir()
    others = of_core(tmp_path, {"a": [[0.5]]})
    others += of_core(tmp_path / "other", {"a": [[0.5]]}, items=100)
    with pytest.raises(UserError, match="different items"):
        instrument(others)

"""An MLflow experiment is a table: runs grouped by a param or a tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paribus.errors import UserError
from paribus.judge import judge


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("muon or not")
    for optimizer, base in (("adamw", 3.3), ("muon", 3.0)):
        for seed, noise in enumerate((0.0, 0.012, -0.01)):
            run = client.create_run(experiment, tags={"team": "a", "seed": str(seed)}).info.run_id
            client.log_param(run, "optimizer.kind", optimizer)
            client.log_metric(run, "val_loss", 9.0, step=0)
            client.log_metric(run, "val_loss", base + noise + seed / 1000 * base, step=1)
            client.set_terminated(run)
    client.create_experiment("empty")
    return uri


def test_runs_are_grouped_by_a_param_and_matched_by_a_tag(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    asked: dict[str, Any] = {"metric": "val_loss", "baseline": "adamw"}
    short = judge("mlflow:muon or not", arm="optimizer.kind", pair_by="seed", **asked)
    long = judge("mlflow:muon or not", arm="params.optimizer.kind", pair_by="tags.seed", **asked)
    assert short.comparisons == long.comparisons
    assert (short.comparisons[0].arm, short.comparisons[0].verdict) == ("muon", "better")
    assert short.comparisons[0].difference == pytest.approx(-0.3, abs=0.001)


@pytest.mark.parametrize(
    ("name", "words"),
    [("muon or nor", "did you mean muon or not?"), ("empty", "has no runs")],
)
def test_an_experiment_that_is_not_there_or_empty_is_explained(
    store: str, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(UserError) as caught:
        judge(f"mlflow:{name}", arm="optimizer", metric="loss", baseline="adamw")
    assert words in str(caught.value)


def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match="no store at"):
        judge("mlflow:any", arm="optimizer", metric="loss", baseline="adamw")
    assert not (tmp_path / "none.db").exists()

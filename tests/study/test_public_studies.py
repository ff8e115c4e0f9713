"""The studies in a folder of experiments/: what they are called, and that each is fit to run."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkout import ROOT

from paribus.config import resolve_model
from paribus.errors import UserError
from paribus.model.accounting import parameters
from paribus.study.experiment import study_files
from paribus.study.reading import read_experiment

PUBLIC = sorted(path.stem for path in (ROOT / "experiments/public").glob("*.yaml"))


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.usefixtures("in_checkout")
def test_a_study_in_a_folder_is_read_by_its_path_and_by_its_name(name: str) -> None:
    experiment = read_experiment(f"public/{name}")
    assert experiment.name == f"public-{name}"
    assert experiment.file == Path("experiments/public") / f"{name}.yaml"
    assert read_experiment(experiment.name).arms.keys() == experiment.arms.keys()
    unknown = [text for text in experiment.warnings if "has another tokenizer" not in text]
    assert unknown == []


@pytest.mark.usefixtures("in_checkout")
@pytest.mark.parametrize(
    ("arm", "total"), [("weight-tying", 124_412_160), ("qkv-bias", 163_037_184)]
)
def test_interventions_into_the_model_have_the_published_size(arm: str, total: int) -> None:
    config = read_experiment("public/interventions").config(arm)
    found = parameters(resolve_model(config.model), config.tokenizer.vocab_size)
    assert found["total"] == total


@pytest.mark.usefixtures("in_checkout")
def test_a_name_that_is_not_there_is_answered_with_the_nearest_path() -> None:
    with pytest.raises(UserError, match="did you mean public/interventions"):
        read_experiment("public/intervention")


def test_two_files_with_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments/mine").mkdir(parents=True)
    (tmp_path / "experiments/mine-first.yaml").touch()
    (tmp_path / "experiments/mine/first.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"experiments/mine/first\.yaml: .*rename one"):
        study_files()

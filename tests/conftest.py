"""Fixtures of all tests: where the project is, where real data is, a configuration that is tiny in every respect."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.core_bundle import make_bundle, phrase
from support.made_once import MadeOnce
from support.project import make_data
from support.stages import make_stages
from support.studied import LightProject
from support.tiny import TINY

from paribus.config import Config, load_config
from paribus.data.tokenizer import Tokenizer, train_tokenizer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # files run side by side; before torch is loaded

pytest_plugins = ("support.processor_times",)

# Files of half a minute or more go first, the longest before the others (measured on two cores): one that is begun
# last would be waited for with the other core idle.
LONGEST_FIRST = (
    "test_tune",
    "test_kills",
    "test_studies",
    "test_verify",
    "test_processes",
    "test_study_records",
    "test_tracking",
    "test_pipeline",
    "test_chat",
    "test_execute",
    "test_effects",
    "test_remotes",
    "test_plan",
    "test_report",
    "test_stop",
    "test_tune_workers",
    "test_extremes",
    "test_kernels",
    "test_cli",
    "test_harness",
    "test_designs_run",
    "test_bad_values",
    "test_switches",
    "test_doctor",
    "test_try",
    "test_examination",
    "test_accessible",
    "test_closure",
    "test_code_checks",
    "test_ablation_files",
    "test_statistics",
    "test_code_arms",
    "test_cleaning",
    "test_factors",
    "test_run_cache",
    "test_distributed",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", help="repeat kills and signals more often, at more moments"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest files first; within a file the order stays. Repetition is left out but with --soak."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not config.getoption("--soak"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for many repetitions."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data(project_root: Path) -> Path:
    """Real text, GSM8K and a CORE bundle; the test is skipped where they are not."""
    path = Path(os.environ.get("PARIBUS_SHARED_DATA", project_root.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; PARIBUS_SHARED_DATA may name another place")
    return path


@pytest.fixture
def in_checkout(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is the project's own."""
    monkeypatch.chdir(project_root)


@pytest.fixture
def stages_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path) -> Path:
    """A project of one dvc.yaml, with what its stages depend on; the working folder."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    return make_stages(tmp_path, project_root)


@pytest.fixture(scope="session")
def tiny_config(project_root: Path) -> Config:
    return load_config(project_root / "params.yaml", overrides=TINY)


@pytest.fixture(scope="session", name="bundle")
def bundle_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("core") / "bundle")


@pytest.fixture(scope="session", name="word_tokenizer")
def word_tokenizer_fixture(tiny_config: Config) -> Tokenizer:
    texts = [phrase(i, 60) + "\nthe colour is: red\nAnswer: blue\n\n" for i in range(50)]
    return train_tokenizer(texts, dataclasses.replace(tiny_config.tokenizer, vocab_size=300))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder that all workers of pytest-xdist read or copy: once, by the first that needs it."""
    folder = tmp_path_factory.getbasetemp()
    return MadeOnce(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def light_project(made_once: MadeOnce, project_root: Path) -> LightProject:
    """To be copied: a project whose trainer takes a second, with its own git and DVC."""

    def make(folder: Path) -> None:
        LightProject(folder, project_root).start()

    return LightProject.at(made_once("light", make))


@pytest.fixture(scope="session")
def with_tokens(made_once: MadeOnce, light_project: LightProject) -> LightProject:
    """To be copied: a light project whose `tokens` are made."""

    def make(folder: Path) -> None:
        project = light_project.copy(folder)
        project.run("dvc", "repro", "-q", "tokens")
        project.commit("tokens")

    return LightProject.at(made_once("tokens", make))


@pytest.fixture(scope="session")
def after_a_study(made_once: MadeOnce, with_tokens: LightProject) -> LightProject:
    """To be copied: a light project in which the study `ended` has run to its end."""

    def make(folder: Path) -> None:
        project = with_tokens.copy(folder)
        project.behave()
        project.study("ended")
        project.execute("ended")

    return LightProject.at(made_once("ended", make))


@pytest.fixture(scope="session")
def tiny_data(made_once: MadeOnce, project_root: Path) -> Path:
    """To be copied: data/ of a project with tiny params, as its first three stages make it."""
    return made_once("tiny", lambda folder: make_data(folder, project_root)) / "data"

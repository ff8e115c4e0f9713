"""MLflow's page as `paribus ui` opens it, walked in a browser: a store of small real runs, and the real server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browser import chromium, new_tab
from support.checkout import run_checked
from support.waiting import wait_for
from support.warm import feed_mlflow

from paribus import config, tracking
from paribus.places import state_root
from paribus.tracking.address import tracking_uri

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.soak


def train(experiment: str, stage: str, loss: float, changed: dict[str, object]) -> None:
    """A run of a stage with a curve, under a DVC experiment's name."""
    os.environ["DVC_EXP_NAME"] = experiment
    settings = config.load_config("params.yaml", {"tracking.system_metrics": False} | changed)
    folder = state_root() / "runs" / f"{stage}-{experiment}".replace("@", "-")
    with tracking.RunLog.open(
        stage, folder=folder, config=settings, params={}, fingerprint=experiment
    ) as log:
        for step in range(1, 20):
            log.log(step, {"train/loss": loss + 1 / step})
        log.summary({"val_bpb": loss, "weights_sha256": f"{experiment}{loss}"})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[str]:
    """The page of a project with a study of two arms and a pipeline of two stages."""
    root = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("DVC_EXP_NAME", "")
        patch.chdir(root)
        patch.setattr(tracking, "FLUSH_SECONDS", 0.1)
        for name in ("params.yaml", "dvc.yaml"):
            (root / name).write_text((project_root / name).read_text())
        (root / ".gitignore").write_text(".paribus\nmlflow.db*\nmlartifacts\n")
        user = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        for command in (["init", "-q"], ["add", "."], [*user, "commit", "-qm", "first"]):
            run_checked(("git", *command), root, dict(os.environ), True)
        feed_mlflow(state_root(), dict(os.environ))
        for seed in (7, 8):
            train(f"optimisers.muon.s{seed}", "pretrain", 0.5, {"seed": seed})
            other: dict[str, object] = {"seed": seed, "optimizer.kind": "adamw"}
            train(f"optimisers.adamw.s{seed}", "pretrain", 0.7, other)
        train("deep", "pretrain", 0.4, {"model.depth": 6})
        train("deep", "gsm8k_stage@rl", 0.4, {"model.depth": 6})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "paribus", "ui", "--port", str(port)]
        with (root / "said").open("w") as said:
            server = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            wait_for(lambda: "Ctrl-C ends it" in (root / "said").read_text())
            assert (root / "said").read_text().count("\n") == 2  # no word of the server's own
            yield (root / "said").read_text().split()[3]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with chromium() as browser:
        tab, _ = new_tab(browser, 1600, 1000)
        yield tab


def test_the_address_opens_on_the_runs_with_the_figures_that_matter(
    page: Page, address: str
) -> None:
    page.goto(address)
    page.get_by_text("study optimisers").first.wait_for()
    page.get_by_text("model.depth=6 s7 (deep)").first.wait_for()
    page.get_by_text("val_bpb").first.wait_for()
    assert page.get_by_text("pretrain.weights").count() == 0


def test_curves_are_grouped_by_arm(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_text("study optimisers").first.wait_for()
    page.get_by_role("button", name="Group by").or_(page.get_by_text("Group by")).first.click()
    page.get_by_role("menuitemcheckbox", name=re.compile("^arm$")).first.click()
    page.get_by_text("adamw").first.wait_for()
    page.get_by_text("muon").first.wait_for()


def test_two_runs_are_compared_by_what_differs(page: Page, address: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri())
    named = "tags.stage = 'pretrain' and tags.arm LIKE '%' and tags.seed = '7'"
    runs = client.search_runs(["1"], named)
    chosen = ",".join(f'"{run.info.run_id}"' for run in runs)
    page.goto(f'{address.partition("#")[0]}#/compare-runs?runs=[{chosen}]&experiments=["1"]')
    for name in ("pretrain adamw s7", "pretrain muon s7", "train/loss"):
        page.get_by_text(name).first.wait_for()


def test_a_checkpoint_has_a_page_with_its_card(page: Page, address: str) -> None:
    page.goto(address.partition("#")[0] + "#/models/paribus-base/versions/1")
    page.get_by_text("The weights are in DVC's cache").first.wait_for()

"""The checkpoint of a training stage as a logged and registered model of MLflow, with a card.

MLflow keeps the card and the provenance; the weights stay in DVC's cache, which the card says how to fetch from.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.curriculum import CHECKPOINT_OF
from paribus.tracking.records import RunRecord
from paribus.tracking.shown import number, shown_figures

if TYPE_CHECKING:
    from paribus.tracking.store import Store

ALIAS = "newest"  # MLflow reserves `latest`
WEIGHTS = "weights_sha256"


def keep_model(store: Store, run_id: str, run: RunRecord, artifacts: Path) -> None:
    """Log and register the checkpoint that a run made; for a run that made none, or the same one before, nothing.

    Args:
        store: with the run.
        run_id: MLflow's.
        run: as it ended.
        artifacts: the folder of its artifacts.
    """
    from mlflow.exceptions import MlflowException

    digest = run.summary.get(WEIGHTS)
    if run.stage not in CHECKPOINT_OF or not isinstance(digest, str):
        return
    # A server of another version may have no registry; the run is there all the same.
    with contextlib.suppress(MlflowException):
        name = f"paribus-{CHECKPOINT_OF[run.stage]}"
        if not _is_registered(store, name, digest):
            _register(store, run_id, run, artifacts)


def _is_registered(store: Store, name: str, digest: str) -> bool:
    question = f"name = '{name}' and tags.`{WEIGHTS}` = '{digest}'"
    return bool(store.client.search_model_versions(question, max_results=1))


def _register(store: Store, run_id: str, run: RunRecord, artifacts: Path) -> None:
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    checkpoint = CHECKPOINT_OF[run.stage]
    name = f"paribus-{checkpoint}"
    card = card_of(run)
    digest = str(run.summary[WEIGHTS])
    logged = store.client.create_logged_model(
        store.experiment,
        name=checkpoint,
        source_run_id=run_id,
        tags={WEIGHTS: digest, "stage": run.stage},
        model_type="checkpoint",
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "README.md").write_text(card)
        provenance = artifacts / "provenance.json"
        if provenance.is_file():
            (Path(folder) / "provenance.json").write_bytes(provenance.read_bytes())
        store.client.log_model_artifacts(logged.model_id, folder)
    store.client.finalize_logged_model(logged.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    with contextlib.suppress(MlflowException):  # there is one of this name
        words = f"checkpoints/{checkpoint}, which the stage {run.stage} makes"
        store.client.create_registered_model(name, description=words)
    version = store.client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run_id,
        tags={WEIGHTS: digest, "run": run.name},
        description=card,
        model_id=logged.model_id,
    )
    store.client.set_registered_model_alias(name, ALIAS, str(version.version))


def card_of(run: RunRecord) -> str:
    """What the checkpoint is, what it was made of, how good it is, and how to fetch it; Markdown.

    Args:
        run: of the stage that made it.
    """
    checkpoint = CHECKPOINT_OF[run.stage]
    commit = run.tags.get("git.commit", "")
    numbers = {key: number(value) for key, value in run.summary.items()}
    figures = shown_figures({key: one for key, one in numbers.items() if one is not None}, [])
    shape = {key: value for key, value in run.params.items() if key.startswith("model.")}
    lines = [
        f"# {checkpoint}: {run.name}",
        "",
        f"A small language model, trained from scratch by `paribus {run.stage}`; seed "
        f"{run.tags.get('seed', 'unknown')}, {run.tags.get('dtype', 'unknown')} on "
        f"{run.tags.get('hardware', 'unknown hardware')}.",
        "",
        *_table("figure", {key: f"{value:.6g}" for key, value in figures.items()}),
        "",
        *_table("data", {name: digest for name, (_, digest) in run.datasets.items()}),
        "",
        "The weights are in DVC's cache:",
        "",
        f"    git checkout {commit or 'COMMIT'} && dvc checkout checkpoints/{checkpoint}",
        f"    paribus chat {checkpoint}",
        f"    paribus export {checkpoint} --to hf",
        "",
        f"sha256 of `model.safetensors`: `{run.summary[WEIGHTS]}`",
        "",
        *_table("shape", shape),
    ]
    return "\n".join(lines)


def _table(heading: str, rows: dict[str, str]) -> list[str]:
    return [f"| {heading} | |", "| --- | --- |", *(f"| {key} | {rows[key]} |" for key in rows)]

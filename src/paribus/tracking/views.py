"""The page of MLflow that `paribus ui` opens: the runs of the experiment, with the columns that say something.

MLflow 3 opens an experiment on a page for traces of applications, which is empty for training runs. A link that names
the runs and a view shared by its key opens them at once; the view is one tag of the experiment.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import TYPE_CHECKING

from paribus.curriculum import HEADLINE

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "paribus"
TAG = f"mlflow.sharedViewState.{KEY}"
_TAGS = ("changed", "arm", "seed")


def columns() -> list[str]:
    """The columns of the view, as MLflow's page names them."""
    names = [figure.name for figure in HEADLINE]
    metrics = [f"metrics.`{name}`" for name in (*names, "minutes")]
    return [*metrics, *(f"tags.`{tag}`" for tag in _TAGS)]


def save_view(client: MlflowClient, experiment_id: str) -> None:
    """Keep the view with the experiment, if it is not there as it is now.

    Args:
        client: of the store.
        experiment_id: MLflow's.
    """
    state = {"selectedColumns": columns()}
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    before = client.get_experiment(experiment_id).tags.get(TAG)
    if before and json.loads(before).get("state") == f"deflate;{packed}":
        return
    now = int(time.time() * 1000)
    view = {
        "name": "paribus",
        "createdAt": now,
        "updatedAt": now,
        "state": f"deflate;{packed}",
    }
    client.set_experiment_tag(experiment_id, TAG, json.dumps(view))


def link(page: str, experiment_id: str) -> str:
    """The address of the experiment's runs in this view.

    Args:
        page: of MLflow, as http://127.0.0.1:5000.
        experiment_id: MLflow's.
    """
    route = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{page.rstrip('/')}/{route}&viewStateShareKey={KEY}"

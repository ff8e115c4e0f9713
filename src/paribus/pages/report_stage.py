"""The stage `report`: the page of what the curriculum did."""

from __future__ import annotations

from pathlib import Path

from paribus import tracking
from paribus.curriculum import PLOTS, REPORT
from paribus.data.disk import writing
from paribus.evaluate.kept import stop_if
from paribus.pages.report import build_report
from paribus.pages.report_figures import save_figures
from paribus.stages.context import session
from paribus.stages.evaluation import stoppable


def report() -> None:
    """Everything above -> report/report.html, and the same as an MLflow run."""
    with (
        session("report") as run,
        writing(REPORT),
        run.open_log({}) as log,
        stoppable("report", run.interrupt),
    ):
        page = build_report(Path.cwd(), REPORT / "report.html")
        log.artifact(page)
        stop_if(run.interrupt.requested)
        for figure in save_figures(Path.cwd(), run.folder / "figures"):
            log.artifact(figure, "figures")
            stop_if(run.interrupt.requested)
        for path in sorted(PLOTS.glob("*.csv")):
            log.artifact(path, "plots")
    tracking.close_execution(run.config)

"""The model card of an export: what the model is, what it saw, what was measured of it, and how it can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.audit.certificate import file_name
from paribus.config import flatten
from paribus.curriculum import CHECKPOINT_OF, PRINTED
from paribus.export.stock import Stock
from paribus.model.accounting import parameters
from paribus.model.gpt import GPT
from paribus.pages.drawing import templates
from paribus.study.finished import FinishedRun, Provenance, json_object
from paribus.study.record import PUBLISHED
from paribus.text import number, percent


@dataclass(frozen=True)
class Figure:
    """A row of the card's table of results."""

    name: str
    value: str
    interval: str  # "" where none is known


def has_conversations(run: FinishedRun) -> bool:
    """Whether a checkpoint has seen conversations: all but that of pretraining."""
    return run.scope != "pretrain"


def model_card(run: FinishedRun, model: GPT, stock: Stock | None) -> str:
    """README.md of an export.

    Args:
        run: what is known of the checkpoint.
        model: its model.
        stock: the architecture of transformers that it is written as; None: one of its own.
    """
    record = run.provenance(run.scope)
    assert record is not None, "a checkpoint without provenance is refused before"
    checkpoint = CHECKPOINT_OF[run.scope]
    certificate = PUBLISHED / file_name(run.scope, record.fingerprint, "md")
    template = templates(escape=False).get_template("model_card.md.j2")
    return template.render(
        name=PRINTED[checkpoint],
        checkpoint=checkpoint,
        stage=run.scope,
        parameters=parameters(model.config, model.vocab_size)["total"],
        architecture=stock.architecture if stock else None,
        conversations=has_conversations(run),
        context=model.config.seq_len,
        record=record,
        commit=_commit(record),
        corpus=run.asked(run.scope).get("corpus.source"),
        data=run.data,
        figures=figures(run, checkpoint),
        keys=flatten(dict(record.params)),
        certificate=_first_line(certificate),
    )


def figures(run: FinishedRun, checkpoint: str) -> list[Figure]:
    """What was measured of a checkpoint, where its metrics lie beside it and are of these weights."""
    found = []
    bits = run.measured(run.scope).get("val_bpb")
    if isinstance(bits, float):
        found.append(Figure("bits per byte, held out", number(bits, 4), ""))
    if checkpoint == "base" and _is_current(run, "core", checkpoint):
        found += _core(_content(run, "metrics/core.json"))
    if _is_current(run, f"gsm8k_stage@{checkpoint}", checkpoint):
        found += _word_problems(_content(run, "metrics/gsm8k.json").get(checkpoint, {}))
    return found


def _core(measured: Mapping[str, Any]) -> list[Figure]:
    value, error = measured.get("core"), measured.get("core_stderr")
    if value is None or error is None:
        return []
    interval = f"{number(value - 1.96 * error, 3)} to {number(value + 1.96 * error, 3)}"
    return [Figure(f"CORE ({measured['bundle']})", number(value, 4), interval)]


def _word_problems(measured: Mapping[str, Any]) -> list[Figure]:
    if "accuracy" not in measured:
        return []
    interval = f"{percent(measured['ci_low'])} to {percent(measured['ci_high'])}"
    name = f"word problems solved, greedy, n = {measured['n']}"
    return [Figure(name, percent(measured["accuracy"]), interval)]


def _is_current(run: FinishedRun, evaluation: str, checkpoint: str) -> bool:
    """Whether dvc.lock says that an evaluation was of the checkpoint that it has now."""
    stages = run.lock.get("stages", {})
    read = stages.get(evaluation, {}).get("deps", [])
    made = stages.get(run.scope, {}).get("outs", [])
    path = f"checkpoints/{checkpoint}"
    versions = [entry.get("md5") for entry in (*read, *made) if entry.get("path") == path]
    return len(versions) == 2 and versions[0] == versions[1]


def _content(run: FinishedRun, path: str) -> dict[str, Any]:
    content = run.files.content(path)
    return json_object(content, path) if content else {}


def _commit(record: Provenance) -> str:
    """The commit of the run's code, in words."""
    commit = record.git.get("commit")
    if not commit:
        return "none"
    return f"`{commit}`" + (", with uncommitted changes" if record.git.get("dirty") else "")


def _first_line(path: Path) -> str | None:
    """The verdict of a certificate of `paribus verify`; None where there is none."""
    if not path.is_file():
        return None
    return path.read_text().splitlines()[0].lstrip("# ")

"""The outputs of a training stage: checkpoint, curve, metrics; and its messages at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import graph, tracking
from paribus.curriculum import CHECKPOINTS, PLOTS, TOKENIZER, checkpoint_before
from paribus.errors import naming
from paribus.journal import logged_steps
from paribus.stages.context import Session
from paribus.summary import refuse_divergence, write_curve, write_json, write_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from paribus.model.gpt import GPT

CUT_OFF_SAID = 0.1  # share of answers cut off from which on a warning appears


def write_outputs(
    run: Session,
    log: tracking.RunLog,
    model: GPT,
    target: str,
    summary: dict[str, Any],
    beside: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write checkpoint, curve and metrics in that order, so that metrics prove that the stage is done.

    Args:
        run: the stage's session.
        log: of its run.
        model: as training left it.
        target: the checkpoint's name.
        summary: all figures of the stage.
        beside: name -> weights that are kept beside the model's.

    Raises:
        UserError: for a run that diverged, before anything is written.
    """
    stage = run.stage
    refuse_divergence(stage, summary)
    from paribus.model.gpt import save_checkpoint

    tokenizer = source_tokenizer(target)
    with naming(CHECKPOINTS / target):
        save_checkpoint(CHECKPOINTS / target, model, tokenizer, run.provenance, beside)
    with naming(PLOTS / f"{stage}.csv"):
        write_curve(PLOTS / f"{stage}.csv", stage, logged_steps(run.folder))
    with naming(run.folder):
        log.artifact(PLOTS / f"{stage}.csv", "plots")
        log.artifact(CHECKPOINTS / target / "provenance.json")
    log.summary(
        summary | {"weights_sha256": graph.file_digest(CHECKPOINTS / target / "model.safetensors")}
    )
    write_json(run.folder / "delivered.json", graph.dvc_digest(CHECKPOINTS / target))
    write_metrics(stage, summary)


def source_tokenizer(target: str) -> Path:
    """The tokenizer.json that a checkpoint takes over, found as it was written: training may have taken days.

    target: the checkpoint. Raises UserError where it was altered since.
    """
    from paribus.data.tokenizer import check_trained
    from paribus.model.saved import check_record

    before = checkpoint_before(target)
    if before is None:
        check_trained(TOKENIZER)
        return TOKENIZER / "tokenizer.json"
    source = CHECKPOINTS / before
    check_record(source)
    return source / "tokenizer.json"


def say_cut_off(name: str, share: float, key: str, max_new_tokens: int, context: int) -> None:
    """Warn where many answers were cut off, as their endings are unknown.

    Args:
        name: of the stage, for the message.
        share: of all answers, from 0 to 1.
        key: of params.yaml that gives `max_new_tokens`.
        max_new_tokens: longest answer, tokens.
        context: tokens that the model sees, the question included.
    """
    if share < CUT_OFF_SAID:
        return
    limit = f"{key} ({max_new_tokens})"
    if max_new_tokens >= context:
        limit = f"the context (model.seq_len: {context})"
    print(
        f"paribus {name}: {share:.0%} of the answers were cut off at {limit} before their end, "
        "and count as wrong; raise it",
        file=sys.stderr,
    )

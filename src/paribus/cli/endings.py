"""What a stage says when it is done: its result in a figure or two, and what comes next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paribus.curriculum import EVALS, METRICS
from paribus.errors import UserError
from paribus.files import read_json
from paribus.text import clock, number, percent

Values = Mapping[str, Any]


def _tokenizer(values: Values) -> str:
    return f"{values['vocab_size']:,} tokens, {number(values['bytes_per_token'], 2)} bytes each"


def _pretrain(values: Values) -> str:
    return f"{number(values['val_bpb'])} bits per byte of held-out text"


def _supervised(values: Values) -> str:
    return f"loss {number(values['train_loss'])}"


def _rl(values: Values) -> str:
    before, after = values.get("pass_at_1_before"), values.get("pass_at_1_after")
    return f"pass@1 {percent(before)} before, {percent(after)} after, of problems held out"


def _core(values: Values) -> str:
    kind = (
        "of CORE-format tasks" if values["partial"] or values["bundle"] == "synthetic" else "CORE"
    )
    return f"{number(values['core'])} ± {number(values['core_stderr'])} {kind}"


def _solved(values: Values) -> str:
    interval = f"{percent(values['ci_low'])} to {percent(values['ci_high'])}"
    return f"{percent(values['accuracy'])} of {values['n']} word problems ({interval})"


def _final(values: Values) -> str:
    return _solved(values["rl"])


# Stage -> (the file that holds its result, its words, the stage of dvc.yaml that comes next).
RESULTS: dict[str, tuple[Path | None, Callable[[Values], str] | None, str]] = {
    "corpus": (None, None, "tokenizer"),
    "tokenizer": (METRICS / "tokenizer.json", _tokenizer, "tokens"),
    "tokens": (None, None, "pretrain"),
    "pretrain": (METRICS / "pretrain.json", _pretrain, "midtrain"),
    "midtrain": (METRICS / "midtrain.json", _supervised, "sft"),
    "sft": (METRICS / "sft.json", _supervised, "rl"),
    "rl": (METRICS / "rl.json", _rl, "gsm8k"),
    "core": (METRICS / "core.json", _core, "report"),
    "gsm8k_stage": (EVALS / "gsm8k", _solved, "gsm8k"),
    "gsm8k": (METRICS / "gsm8k.json", _final, "report"),
    "report": (METRICS / "gsm8k.json", _final, ""),
}
AFTER_ALL = """\
Next:
  report/report.html            the whole run on one page
  paribus ui                    curves, tables and answers, in MLflow
  paribus chat --web            talk to the checkpoints, side by side
  paribus ablate new my-idea    is your idea better, or was it the seed?"""


def print_ending(stage: str, arguments: tuple[str, ...], seconds: float) -> None:
    """Print a stage's result and what comes next to stderr; of the last one what to look at.

    Args:
        stage: its name.
        arguments: as those of an item of dvc.yaml's `foreach`.
        seconds: since its command began.
    """
    path, words, following = RESULTS[stage]
    said = f"{' '.join([stage, *arguments])}: done in {clock(seconds)}"
    if path is not None and words is not None:
        file = path / arguments[0] / "summary.json" if arguments else path
        result = _words(file, words)
        said += f", {result}" if result else ""
    if following:
        said += f"; next: {following}"
    print(said, file=sys.stderr, flush=True)
    if not following:
        print(AFTER_ALL, file=sys.stderr, flush=True)


def _words(file: Path, words: Callable[[Values], str]) -> str:
    """The result in a stage's file; "" where it holds none, as no ending may fail a stage that is done."""
    try:
        values = read_json(file, move=False)
        return words(values) if values else ""
    except (UserError, KeyError, TypeError, ValueError):
        return ""

"""The report: what the curriculum did, as one HTML file that opens offline, and the same figures as PNG.

It reads only what the other stages wrote (metrics, curves, evaluations, provenance) and computes no result of its
own beyond sums and means. No script, no link: figures are SVG in the page, in the reader's light or dark colours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import config
from paribus.curriculum import CHECKPOINT_NAMES, PRINTED, TRAINING_STAGES
from paribus.files import write_atomic
from paribus.pages.drawing import (
    svg,
    templates,
)
from paribus.pages.report_figures import ALT, FIGURES
from paribus.pages.report_inputs import Results, mean_of_measured, pass_at, read_results

if TYPE_CHECKING:
    pass


# ---------------------------------------------------------------- the page


def build_report(root: Path, out: Path) -> Path:
    """Write the report of the project folder `root` to `out`, one self-contained HTML file; returns `out`.

    The same inputs give the same bytes. Raises UserError where an input is missing or damaged.
    """
    results = read_results(root)
    page = render(
        results, {name: svg(draw(results), name, ALT[name]) for name, draw in FIGURES.items()}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def render(results: Results, drawn: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        results: of the curriculum.
        drawn: SVG by the names of FIGURES.
    """
    from markupsafe import Markup

    figures = {name: Markup(text) for name, text in drawn.items()}
    return (
        templates().get_template("report.html.j2").render(figures=figures, **page_values(results))
    )


def page_values(results: Results) -> dict[str, object]:
    """What the template shows, by name."""
    provenance = results.files["checkpoints/rl/provenance.json"]
    return {
        "stages": PRINTED,
        "settings": results.settings,
        "tokenizer": results.metrics("tokenizer"),
        "pretrain": results.metrics("pretrain"),
        "timeline": timeline(results),
        "core": core_table(results),
        "gsm8k": gsm8k_table(results),
        "rl": results.metrics("rl"),
        "sparsity": sparsity(results),
        "prompts": prompts(results),
        "samples": [_sample(sample) for sample in results.files["evals/gsm8k/rl/samples.json"]],
        "provenance": provenance,
        "versions": _flat({name: value for name, value in provenance.items() if name != "params"}),
        "params": [(key, value, meta["doc"]) for key, value, meta in _params(results.settings)],
    }


def timeline(results: Results) -> dict[str, object]:
    """Time, steps and tokens (RL: sampled answers) of each training stage."""
    rows = []
    for stage in TRAINING_STAGES:
        metrics = results.metrics(stage)
        work = (
            (metrics["samples"], "answers")
            if stage == "rl"
            else (metrics["train_tokens"], "tokens")
        )
        rows.append(
            {
                "stage": stage,
                "steps": metrics["steps"],
                "seconds": metrics["seconds"],
                "amount": work[0],
                "unit": work[1],
                "rate": work[0] / max(metrics["seconds"], 1e-9),
            }
        )
    total = sum(row["seconds"] for row in rows)
    return {
        "rows": rows,
        "seconds": total,
        "shares": [row["seconds"] / max(total, 1e-9) for row in rows],
    }


def core_table(results: Results) -> dict[str, object]:
    """metrics/core.json with its kind (`synthetic`, `partial` or `full`), its mean and the tasks that had no data."""
    metrics = results.metrics("core")
    partial = metrics["core"] is None
    kind = "partial" if partial else "full"
    if metrics["bundle"] == "synthetic":
        kind = "synthetic"
    return metrics | {
        "kind": kind,
        "mean": metrics["core_partial"] if partial else metrics["core"],
        "missing": results.files["evals/core/summary.json"]["missing"],
    }


def gsm8k_table(results: Results) -> dict[str, object]:
    """The stages' summaries in order, and each one's paired comparison with the stage before."""
    metrics = results.metrics("gsm8k")
    names = list(CHECKPOINT_NAMES)
    pairs = [
        {"before": a, "after": b, **metrics["paired"][f"{a}_{b}"]}
        for a, b in itertools.pairwise(names)
    ]
    stages = {name: results.answers(name) for name in names}
    difficulties: set[str] = set()
    for summary in stages.values():
        difficulties.update(summary["by_steps"])
    return {
        "stages": stages,
        "pairs": pairs,
        "dataset": metrics["dataset"],
        "k": pass_at(results),
        "difficulties": sorted(difficulties, key=int),
    }


def sparsity(results: Results) -> dict[str, object]:
    """How the shares of groups moved: means over the first and the last quarter of the steps."""
    rows = results.curve("rl")
    quarter = max(len(rows) // 4, 1)
    ends = {"first": rows[:quarter], "last": rows[-quarter:]}
    means: dict[str, Any] = {}
    for end, part in ends.items():
        means[end] = {}
        for key in ("zero_reward_groups", "all_reward_groups", "reward"):
            means[end][key] = mean_of_measured([row[key] for row in part])
    return means | {
        "silent_steps": sum(row["zero_gradient_groups"] >= 1 for row in rows),
        "steps": len(rows),
    }


def prompts(results: Results) -> list[dict[str, object]]:
    """Each fixed prompt with every stage's answer, as `_sample` has it."""
    answers = {
        stage: results.files[f"evals/gsm8k/{stage}/prompts.json"] for stage in CHECKPOINT_NAMES
    }
    shown = []
    for place, row in enumerate(answers["rl"]):
        samples = {stage: _sample(rows[place]) for stage, rows in answers.items()}
        shown.append({"prompt": row["prompt"], "answers": samples})
    return shown


def _sample(sample: dict[str, Any]) -> dict[str, object]:
    """A sample with its answer in parts: text, tool_call, tool_result."""
    parts = re.split(
        r"<\|tool\|>(.*?)<\|tool_end\|>|<\|result\|>(.*?)<\|result_end\|>",
        sample["answer"],
        flags=re.S,
    )
    kinds = ("text", "tool_call", "tool_result")
    typed = []
    for place, text in enumerate(parts):
        if text:
            without_end = re.sub(r"<\|(end|bos)\|>\s*$", "", text)
            typed.append({"type": kinds[place % 3], "text": without_end})
    return sample | {"parts": typed}


def _flat(value: object, prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as dotted keys, in order, without params, which have a table of their own."""
    if not isinstance(value, dict):
        return [(prefix.rstrip("."), value)]
    pairs = []
    for key, item in value.items():
        if prefix + key != "params":
            pairs += _flat(item, f"{prefix}{key}.")
    return pairs


def _params(settings: config.Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, metadata) of every key that holds a value."""
    documented = {key: meta for key, _, meta in config.describe()}
    flat = config.flatten(settings)
    return [
        (key, value, documented.get(key) or documented[key.rpartition(".")[0]])
        for key, value in flat.items()
    ]

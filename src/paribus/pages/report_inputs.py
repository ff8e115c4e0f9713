"""What the report reads: which stage writes each file, and what it has to hold."""

from __future__ import annotations

from paribus.files import NUMBER, Items, Optional, Shape, Values

STAGES = ("base", "mid", "sft", "rl")

INPUTS = {  # file -> the stage of dvc.yaml that writes it
    "metrics/tokenizer.json": "tokenizer",
    "metrics/pretrain.json": "pretrain",
    "metrics/midtrain.json": "midtrain",
    "metrics/sft.json": "sft",
    "metrics/rl.json": "rl",
    "metrics/core.json": "core",
    "metrics/gsm8k.json": "gsm8k",
    "plots/pretrain.csv": "pretrain",
    "plots/rl.csv": "rl",
    "plots/gsm8k.csv": "gsm8k",
    "evals/core/summary.json": "core",
    **{f"evals/gsm8k/{stage}/summary.json": f"gsm8k_stage@{stage}" for stage in STAGES},
    **{f"evals/gsm8k/{stage}/prompts.json": f"gsm8k_stage@{stage}" for stage in STAGES},
    "evals/gsm8k/rl/samples.json": "gsm8k_stage@rl",
    "checkpoints/rl/provenance.json": "rl",
}

_NULLABLE = (*NUMBER, type(None))
_TRAINED: Shape = {"steps": NUMBER, "seconds": NUMBER, "train_tokens": NUMBER}
_ANSWERS: Shape = Items({"prompt": Optional(str), "answer": str})

_SHAPES: dict[str, Shape] = {
    "metrics/tokenizer.json": {"vocab_size": NUMBER, "bytes_per_token": NUMBER},
    "metrics/pretrain.json": {
        "val_bpb": NUMBER,
        "steps": NUMBER,
        "seconds": NUMBER,
        "train_tokens": NUMBER,
    },
    "metrics/midtrain.json": _TRAINED,
    "metrics/sft.json": _TRAINED,
    "metrics/rl.json": {"steps": NUMBER, "seconds": NUMBER, "samples": NUMBER},
    "metrics/core.json": {
        "core": _NULLABLE,
        "bundle": str,
        "tasks": Values({"accuracy": NUMBER, "centered": NUMBER, "stderr": NUMBER}),
    },
    "metrics/gsm8k.json": {"paired": Values({}), "dataset": object},
    "evals/core/summary.json": {"missing": (list, dict)},
    "evals/gsm8k/rl/samples.json": _ANSWERS,
    "checkpoints/rl/provenance.json": {"fingerprint": str, "git": {}, "hardware": {}},
}
_COLUMNS = {
    "plots/pretrain.csv": {"step", "tokens", "val_bpb", "train_loss"},
    "plots/rl.csv": {"step", "reward", "zero_gradient_groups"},
    "plots/gsm8k.csv": {"stage", "accuracy", "ci_low", "ci_high"},
}


def shape_of(name: str) -> Shape:
    """What a JSON file of INPUTS has to hold."""
    if name.endswith("/prompts.json"):
        return _ANSWERS
    if name.startswith("evals/gsm8k/") and name.endswith("/summary.json"):
        return {"accuracy": NUMBER, "by_steps": {}}
    return _SHAPES[name]


def columns_of(name: str) -> set[str]:
    """The columns that a curve of INPUTS has to have."""
    return _COLUMNS[name]

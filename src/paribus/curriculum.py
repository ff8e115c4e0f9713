"""The curriculum, written down once: its training stages, the checkpoints they make, their files, and what they log.

| stage | reads | makes | in print |
| --- | --- | --- | --- |
| pretrain | data/tokens | checkpoints/base | base |
| midtrain | checkpoints/base | checkpoints/mid | mid |
| sft | checkpoints/mid | checkpoints/sft | SFT |
| rl | checkpoints/sft | checkpoints/rl | RL |
"""

from __future__ import annotations

from pathlib import Path

# Folders of a project, as dvc.yaml names them.
CORPUS = Path("data/corpus")
TOKENIZER = Path("data/tokenizer")
TOKENS = Path("data/tokens")
CHECKPOINTS = Path("checkpoints")
EVALS = Path("evals")
METRICS = Path("metrics")
HEADLINES = Path("headline")
PLOTS = Path("plots")
REPORT = Path("report")

# Training stage -> the checkpoint that it makes, in the order in which they run.
CHECKPOINT_OF = {"pretrain": "base", "midtrain": "mid", "sft": "sft", "rl": "rl"}
STAGE_OF = {checkpoint: stage for stage, checkpoint in CHECKPOINT_OF.items()}
TRAINING_STAGES = tuple(CHECKPOINT_OF)
CHECKPOINT_NAMES = tuple(STAGE_OF)
CONVERSATION_STAGES = ("midtrain", "sft")
SUPERVISED_STAGES = ("pretrain", *CONVERSATION_STAGES)

# Checkpoint -> its name in print.
PRINTED = {"base": "base", "mid": "mid", "sft": "SFT", "rl": "RL"}

# Curve in plots/ -> column -> the metric's name in the log. Midtraining and SFT have pretraining's columns without `val_bpb`.
CURVES = {
    "pretrain": {
        "step": "step",
        "tokens": "train/tokens",
        "seconds": "train/seconds",
        "train_loss": "train/loss",
        "val_bpb": "val/bpb",
    },
    "rl": {
        "step": "step",
        "reward": "rl/mean_reward",
        "zero_reward_groups": "rl/zero_reward_groups",
        "all_reward_groups": "rl/all_reward_groups",
        "zero_gradient_groups": "rl/zero_gradient_groups",
        "wasted_token_fraction": "rl/wasted_token_fraction",
        "watch_accuracy": "watch/accuracy",
    },
}
# Stage -> its headline: short name -> key among the stage's figures. MLflow's list of runs shows these.
HEADLINE = {
    "pretrain": {"val_bpb": "val_bpb"},
    "core": {"core": "core"},
    "gsm8k_stage@base": {"gsm8k_base": "accuracy"},
    "gsm8k_stage@mid": {"gsm8k_mid": "accuracy"},
    "gsm8k_stage@sft": {"gsm8k_sft": "accuracy"},
    "gsm8k_stage@rl": {"gsm8k_rl": "accuracy"},
    "rl": {"reward": "mean_reward_last"},
}
# Columns that a curve has only where something was measured.
OPTIONAL_COLUMNS = {
    f"val_{name}": f"val/{name}" for name in ("core", "core_partial", "core_stderr")
}


def checkpoint_before(checkpoint: str) -> str | None:
    """The checkpoint that the stage of `checkpoint` starts from; None for the first."""
    place = CHECKPOINT_NAMES.index(checkpoint)
    return CHECKPOINT_NAMES[place - 1] if place else None


def curve_columns(stage: str) -> dict[str, str]:
    """Column of plots/<stage>.csv -> the metric's name in the log, for a training stage."""
    if stage in CURVES:
        return CURVES[stage]
    return {column: key for column, key in CURVES["pretrain"].items() if column != "val_bpb"}

"""The curriculum, written down once: its training stages, the checkpoints they make, their files, and what they log.

| stage | reads | makes | in print |
| --- | --- | --- | --- |
| pretrain | data/tokens | checkpoints/base | base |
| midtrain | checkpoints/base | checkpoints/mid | mid |
| sft | checkpoints/mid | checkpoints/sft | SFT |
| rl | checkpoints/sft | checkpoints/rl | RL |
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Headline:
    """One of the few figures that stand for a whole curriculum.

    headline/ holds them for `dvc metrics show`, MLflow's list of runs and `paribus runs` print them.

    Attributes:
        name: short, as they all print it.
        metrics: the metrics file that holds it: metrics/<metrics>.json.
        key: of the figure, among those of the stage that measures it.
        checkpoint: the part of the metrics file that it stands in, where each checkpoint has one.
        unit: of the headline, in units of the metric: minutes are 60 seconds.
    """

    name: str
    metrics: str
    key: str
    checkpoint: str | None = None
    unit: float = 1.0

    @property
    def stage(self) -> str:
        """The stage whose run has the figure, as dvc.yaml names it."""
        return (
            self.metrics if self.checkpoint is None else f"{self.metrics}_stage@{self.checkpoint}"
        )

    @property
    def path(self) -> str:
        """The figure's dotted key in its metrics file."""
        return self.key if self.checkpoint is None else f"{self.checkpoint}.{self.key}"


HEADLINE = (
    Headline("val_bpb", "pretrain", "val_bpb"),
    Headline("pretrain_min", "pretrain", "seconds", unit=60),
    Headline("core", "core", "core"),
    *(Headline(f"gsm8k_{name}", "gsm8k", "accuracy", name) for name in CHECKPOINT_NAMES),
    Headline("reward", "rl", "mean_reward_last"),
)
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

"""Fixtures of all tests: where the project is, where real data is, a configuration that is tiny in every respect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paribus.config import Config, load_config

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two test files run side by side; before torch is loaded

# Small enough that every stage takes seconds on one core; whatever is not named here is as in params.yaml.
TINY = {
    "corpus.validation_problems": 8,
    "corpus.world.megabytes": 0.2,
    "corpus.world.problems": 60,
    "corpus.world.test_problems": 16,
    "corpus.world.conversations": 40,
    "corpus.world.core_items": 8,
    "tokenizer.vocab_size": 400,
    "tokenizer.train_megabytes": 0.1,
    "tokens.shard_tokens": 20_000,
    "model.depth": 2,
    "model.aspect_ratio": 16,
    "model.head_dim": 16,
    "model.seq_len": 64,
    "model.window": 16,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.threads": 1,
    "train.save_seconds": 0.0,
    "pretrain.steps": 6,
    "pretrain.batch_tokens": 256,
    "pretrain.device_batch_size": 4,
    "pretrain.eval_every": 3,
    "pretrain.eval_tokens": 256,
    "midtrain.steps": 3,
    "midtrain.batch_tokens": 256,
    "midtrain.device_batch_size": 4,
    "sft.steps": 3,
    "sft.batch_tokens": 256,
    "sft.device_batch_size": 4,
    "rl.steps": 2,
    "rl.questions_per_step": 2,
    "rl.samples_per_question": 2,
    "rl.max_new_tokens": 12,
    "rl.device_batch_size": 4,
    "rl.rollout_rows": 4,
    "rl.watch_every": 1,
    "rl.watch_questions": 4,
    "eval.bpb_tokens": 512,
    "eval.core.max_per_task": 4,
    "eval.core.batch_size": 4,
    "eval.gsm8k.questions": 4,
    "eval.gsm8k.samples": 2,
    "eval.gsm8k.sampled_questions": 2,
    "eval.gsm8k.few_shot": 1,
    "eval.gsm8k.max_new_tokens": 12,
    "eval.gsm8k.rows": 4,
    "tracking.system_metrics": False,
}


# Files of minutes go first: one of them begun last would be waited for with the other core idle.
LONGEST_FIRST = (
    "test_kills",
    "test_verify",
    "test_processes",
    "test_tune_workers",
    "test_ablation_run",
    "test_pipeline",
    "test_tracking",
    "test_tune",
    "test_distributed",
    "test_remotes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; within a file the order stays."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(project_root: Path) -> Path:
    """Real text, GSM8K and a CORE bundle; the test is skipped where they are not."""
    path = Path(os.environ.get("PARIBUS_SHARED_DATA", project_root.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; PARIBUS_SHARED_DATA may name another place")
    return path


@pytest.fixture(scope="session")
def tiny_config(project_root: Path) -> Config:
    return load_config(project_root / "params.yaml", overrides=TINY)

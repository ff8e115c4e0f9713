"""Every profile, dry: it parses, its model has the published size and runs on no device, its text covers its horizon."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkout import ROOT

from paribus.config import (
    Config,
    flatten,
    load_config,
    parse_source,
    read_yaml,
    resolve_model,
    resolve_pretrain,
)
from paribus.model.accounting import parameters
from paribus.model.gpt import GPT

PROFILES = {path.stem: path for path in sorted((ROOT / "experiments/profiles").glob("*.yaml"))}
PUBLISHED = {
    "d12": 185_597_952,
    "d16-rtx3090": 335_544_320,
    "d20-speedrun": 560_988_160,
    # S. Raschka's GPT_CONFIG_124M without tying: 2 x 50257 x 768 + 1024 x 768 + 12 x 7,085,568 + 1,536
    "gpt2-small": 163_009_536,
    # train_gpt_simple.py of the benchmark, 162,354,816, without the 50,304 biases of its head
    "optimizer-benchmark": 162_304_512,
}  # public runs
HORIZONS = {
    "d12": 7_080,
    "d16-rtx3090": 12_800,
    "d20-speedrun": 21_400,
    "gpt2-small": 33_165,
    "optimizer-benchmark": 3_250,
}  # steps of 2^19 tokens, 20 per parameter; of gpt2-small 96 rows of 1,024; the benchmark's own
BYTES_PER_TOKEN = 4.8  # of English with 32 to 65 thousand tokens


def config_of(name: str, project_root: Path) -> Config:
    return load_config(project_root / "params.yaml", flatten(read_yaml(PROFILES[name])))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_horizon_are_the_published_ones(name: str, project_root: Path) -> None:
    config = config_of(name, project_root)
    total = parameters(resolve_model(config.model), config.tokenizer.vocab_size)["total"]
    assert total == PUBLISHED[name]
    assert resolve_pretrain(config.pretrain, total, config.model.seq_len).steps == HORIZONS[name]


def test_gpt2_grade_has_the_horizon_it_states(project_root: Path) -> None:
    config = config_of("gpt2-grade", project_root)
    counts = parameters(resolve_model(config.model), config.tokenizer.vocab_size)
    schedule = resolve_pretrain(config.pretrain, counts["total"], config.model.seq_len)
    width = resolve_model(config.model).width
    scaling = 12 * config.model.depth * width**2 + config.tokenizer.vocab_size * width
    assert (schedule.steps or 0) * (schedule.batch_tokens or 0) / scaling == pytest.approx(
        9.5, rel=0.01
    )


@pytest.mark.parametrize("name", PROFILES)
def test_the_model_runs_without_a_device(name: str, project_root: Path) -> None:
    """Shapes through every block, and the parameters the accounting promises, on torch's meta device."""
    config = config_of(name, project_root)
    with torch.device("meta"):
        model = GPT(resolve_model(config.model), config.tokenizer.vocab_size, torch.bfloat16)
        tokens = torch.zeros(2, config.model.seq_len, dtype=torch.int64)
        logits = model.logits(model.hidden(tokens))
    assert logits.shape == (2, config.model.seq_len, config.tokenizer.vocab_size)
    counted = {id(one): one.numel() for one in model.parameters()}
    assert (
        sum(counted.values())
        == parameters(resolve_model(config.model), config.tokenizer.vocab_size)["total"]
    )


@pytest.mark.parametrize("name", PROFILES)
def test_batches_divide_and_mixtures_have_their_sources(name: str, project_root: Path) -> None:
    config = config_of(name, project_root)
    own = set(config.corpus.conversations)
    known = {
        "facts",
        "smalltalk",
        "instructions",
        "problems_worked",
        "problems_direct",
        "documents",
        *own,
    }
    for stage in (config.pretrain, config.midtrain, config.sft):
        assert (stage.batch_tokens or 0) % (stage.device_batch_size * config.model.seq_len) == 0
    for stage in (config.midtrain, config.sft):
        assert stage.mixture.keys() <= known
        assert sum(stage.mixture.values()) == pytest.approx(1, abs=0.01)
        mixed_in = {key for key, share in stage.mixture.items() if share}
        if own:
            assert own & mixed_in


@pytest.mark.parametrize(
    "name", [name for name, path in PROFILES.items() if "source: hub" in path.read_text()]
)
def test_enough_text_is_fetched_for_the_horizon_and_little_more(
    name: str, project_root: Path
) -> None:
    config = config_of(name, project_root)
    total = parameters(resolve_model(config.model), config.tokenizer.vocab_size)["total"]
    schedule = resolve_pretrain(config.pretrain, total, config.model.seq_len)
    horizon = (schedule.steps or 0) * (schedule.batch_tokens or 0)
    tokens = (
        (config.corpus.megabytes or 0) * 1e6 / BYTES_PER_TOKEN * (1 - config.tokens.val_fraction)
    )
    assert 1.02 < tokens / horizon < 1.08
    assert not any(isinstance(parse_source(path), str) for path in config.corpus.paths)

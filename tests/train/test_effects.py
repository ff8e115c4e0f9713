"""A key that is accepted acts, or is reported as without an effect: proved by training with every switch flipped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.checkout import ROOT
from support.tiny import TINY

from paribus.cli.commands import commands
from paribus.config import (
    Config,
    change_notes,
    changes,
    describe,
    flatten,
    inert,
    inert_problems,
    load_config,
    merge,
    merge_problems,
    parse_config,
    read_yaml,
)
from paribus.errors import UserError
from paribus.model.gpt import GPT
from paribus.recipe import Recipe
from paribus.study.reading import parse_experiment
from paribus.train.optim import MuonAdamW
from paribus.train.schedule import common_factor, own_factors
from paribus.train.trainer import RandomRows, next_token
from paribus.tune.space import read_study

PARAMS = read_yaml(ROOT / "params.yaml")
VOCABULARY = 64
SMALL = {
    "model.depth": 3,
    "model.width": 48,
    "model.head_dim": 12,
    "model.seq_len": 32,
    "model.window": 8,
    "pretrain.steps": 6,
    "pretrain.warmdown_fraction": 0.5,
    "rl.max_new_tokens": 8,
    "eval.gsm8k.max_new_tokens": 8,
}
# Other values of every key of model.*, optimizer.* and the schedule: at least one of them has to change the weights.
FLIPS: dict[str, list[Any]] = {
    "model.depth": [2, 1],
    "model.aspect_ratio": [24],
    "model.width": [36, None],
    "model.head_dim": [24],
    "model.n_heads": [None, 4, 2],
    "model.n_kv_heads": [2, 1],
    "model.seq_len": [16, 64],
    "model.recurrence": [2],
    "model.mlp": ["relu2", "gelu", "relu", "leaky_relu2", "geglu"],
    "model.mlp_ratio": [2.0],
    "model.mlp_bias": [True],
    "model.qkv_bias": [True],
    "model.out_bias": [True],
    "model.parallel_blocks": [True],
    "model.norm": ["layer"],
    "model.norm_position": ["post", "sandwich"],
    "model.norm_gain": [True, False],
    "model.norm_bias": [True],
    "model.qk_norm": [False, True],
    "model.qk_norm_position": ["before_rotary"],
    "model.qk_gain": [True, False],
    "model.attention_softcap": [2.0],
    "model.attention_gate": ["head"],
    "model.head_gain": [True],
    "model.value_residual": [True],
    "model.rotary_fraction": [0.5],
    "model.position": ["learned", "none", "rope"],
    "model.rope_base": [50.0],
    "model.window_pattern": ["L", "SL", "LS"],
    "model.window": [2, 4, None],
    "model.value_embeddings": ["none", "alternate", "all"],
    "model.x0_scalars": [False, True],
    "model.residual_scalars": [False, True],
    "model.tied_head": [True, False],
    "model.softcap": [0.0, 2.0],
    "model.future_tokens": [2],
    "model.embedding_norm": [False, True],
    "model.embedding_scale": [3.0],
    "model.embedding_std": [0.3],
    "model.initialisation": ["gpt2", "depth_scaled", "orthogonal"],
    "model.attention_dropout": [0.2],
    "model.mlp_dropout": [0.2],
    "model.residual_dropout": [0.2],
    "model.embedding_dropout": [0.2],
    "optimizer.kind": ["adamw", "muon", "torch.optim.SGD"],
    "optimizer.arguments": [{"momentum": 0.9}],
    "optimizer.matrix_lr": [0.08],
    "optimizer.adamw_matrix_lr": [0.008],
    "optimizer.embedding_lr": [0.05],
    "optimizer.head_lr": [0.03],
    "optimizer.scalar_lr": [0.2],
    "optimizer.lr_reference_width": [96],
    "optimizer.lr_width_exponent": [0.0, -1.0],
    "optimizer.clip_value": [1e-6],
    "optimizer.weight_decay": [0.5, 0.0],
    "optimizer.weight_decay_of": ["embeddings", "all"],
    "optimizer.weight_decay_schedule": ["constant", "linear", "rate_linear"],
    "optimizer.cautious_weight_decay": [True],
    "optimizer.beta1": [0.6],
    "optimizer.beta2": [0.99],
    "optimizer.eps": [1e-3],
    "optimizer.muon_momentum": [0.6],
    "optimizer.muon_nesterov": [False],
    "optimizer.muon_iterations": [2],
    "optimizer.muon_coefficients": ["newton_schulz", "polar_express"],
    "optimizer.muon_scaling": ["spectral", "rms", "none"],
    "optimizer.muon_normalisation": ["rows", "columns"],
    "optimizer.muon_beta2": [0.5],
    "optimizer.muon_hyperball": [True, False],
    "optimizer.grad_clip": [0.0, 0.01],
    "optimizer.ema_decay": [0.9, 0.0],
    "optimizer.evaluate": ["ema", "weights"],
    "pretrain.steps": [12],
    "pretrain.tokens_per_parameter": [5.0],
    "pretrain.lr_scale": [0.5],
    "pretrain.warmup_fraction": [0.5],
    "pretrain.warmdown_fraction": [0.0, 0.75],
    "pretrain.warmdown_shape": ["cosine", "sqrt", "square"],
    "pretrain.final_lr_fraction": [0.5],
    "pretrain.power": [0.5],
    "pretrain.group_warmup_fraction": [{"matrix": 0.5}, {"scalar": 0.5}],
    "pretrain.group_warmdown_fraction": [{"embedding": 0.0}, {"head": 0.75}],
    "pretrain.group_warmdown_shape": [{"matrix": "square"}, {"matrix": "linear"}],
    "pretrain.group_final_lr_fraction": [{"head": 0.5}],
    "pretrain.group_power": [{"embedding": 1.0}, {"embedding": 0.25}],
    "pretrain.z_loss": [1e-3],
    "pretrain.label_smoothing": [0.1],
    "pretrain.future_loss": [1.0],
}
WATCHING = ("eval_every", "eval_tokens", "core_every", "core_max_per_task", "device_batch_size")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "adamw": {"optimizer.kind": "adamw"},
    "a library's optimizer": {"optimizer.kind": "torch.optim.SGD"},
    "NorMuon": {"optimizer.muon_normalisation": "rows"},
    "hyperball": {"optimizer.muon_hyperball": True, "model.initialisation": "orthogonal"},
    "average": {"optimizer.ema_decay": 0.9},
    "no warm-down": {
        "pretrain.warmup_fraction": 0.25,  # of the steps, which otherwise decide nothing here
        "pretrain.warmdown_fraction": 0.0,
        "pretrain.power": 1.0,
    },
    "further tokens": {"model.future_tokens": 1},
    "learned positions": {"model.position": "learned"},
    "no positions": {"model.position": "none"},
    "all see everything": {"model.window_pattern": "L"},
    "window as long as the context": {"model.window": 32},
    "width of the depth": {"model.width": None, "model.aspect_ratio": 16},
    "one head": {"model.head_dim": 48},
    "one block": {"model.depth": 1},
    "tied, no value embeddings": {"model.tied_head": True, "model.value_embeddings": "none"},
    "nothing but matrices": {
        "model.value_embeddings": "none",
        "model.x0_scalars": False,
        "model.residual_scalars": False,
    },
    "rates of one width": {"optimizer.lr_width_exponent": 0.0},
    "width of the reference": {"optimizer.lr_reference_width": 48},
    "decay": {"optimizer.weight_decay": 0.5},
    "gains": {"model.norm_gain": True, "model.qk_gain": True, "model.norm_position": "sandwich"},
    "embedding as it is": {"model.embedding_norm": False, "model.qk_norm": False},
}
# In which a key or two are read otherwise than in one of the others; only with --soak.
RARE = (
    "NorMuon",
    "further tokens",
    "no positions",
    "window as long as the context",
    "width of the depth",
    "one head",
    "rates of one width",
    "embedding as it is",
    "learned positions",
    "all see everything",
    "average",
    "one block",
    "decay",
    "width of the reference",
    "tied, no value embeddings",
)


def config_of(values: dict[str, Any]) -> Config | None:
    """SMALL with values; None where they are refused."""
    try:
        return parse_config(merge(PARAMS, SMALL | values))
    except UserError:
        return None


def accepted(base: dict[str, Any], key: str) -> dict[str, Config]:
    """A key's other values that go with a base, as text, and SMALL with the base and each."""
    found = {str(value): config_of(base | {key: value}) for value in FLIPS[key]}
    return {value: config for value, config in found.items() if config is not None}


def training(config: Config, dtype: torch.dtype = torch.float32) -> Iterator[str]:
    """The weights at first and after each of a few steps: names, shapes, sums and norms, as text."""
    recipe, schedule = Recipe.of(config, VOCABULARY), config.pretrain
    steps = recipe.steps("pretrain")
    terms = next_token(RandomRows(recipe), recipe, "pretrain").terms
    model = GPT(recipe.architecture, VOCABULARY, dtype)
    model.initialise(config.seed)
    optimizer = MuonAdamW(model, config.optimizer)
    generator = torch.Generator().manual_seed(0)
    yield said(model)
    for step in range(5):
        rows = torch.randint(0, VOCABULARY, (2, config.model.seq_len + 1), generator=generator)
        inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        loss = model(inputs, targets, **terms) / rows.numel()
        loss.backward()
        optimizer.clip()
        own = own_factors(schedule, config.optimizer.weight_decay_schedule, step, steps)
        optimizer.step(common_factor(schedule, step, steps), own=own)
        optimizer.zero_grad()
        with optimizer.evaluated():
            yield said(model) + averages(optimizer)


def said(model: GPT) -> str:
    return "\n".join(
        f"{name} {tuple(tensor.shape)} {tensor.double().sum().item()!r} {tensor.norm().item()!r}"
        for name, tensor in model.named_parameters()
    )


def averages(optimizer: MuonAdamW) -> str:
    """The averaged weights, which a checkpoint holds beside the others."""
    kept = optimizer.full_state()
    names = sorted(name for name in kept if name.startswith("ema."))
    return "\n".join(f"{name} {kept[name].double().sum().item()!r}" for name in names)


def differ(base: list[str], config: Config, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a training ever leaves the weights of the base; it is followed no further."""
    return any(mine != theirs for mine, theirs in zip(training(config, dtype), base, strict=True))


def test_every_key_of_the_model_and_the_optimizer_is_flipped() -> None:
    keys = [path for path, *_ in describe() if path.startswith(("model.", "optimizer."))]
    assert sorted(keys) == sorted(key for key in FLIPS if not key.startswith("pretrain."))


def test_every_key_of_pretraining_is_flipped_here_or_where_rows_are_read() -> None:
    keys = {path for path, *_ in describe() if path.startswith("pretrain.")}
    rows = (ROOT / "tests/data/test_data_effects.py").read_text()
    read = {key for key in keys if f'    "{key}": {{' in rows}
    assert keys - read - FLIPS.keys() == {f"pretrain.{name}" for name in WATCHING}


def test_a_flipped_key_changes_the_weights_in_bfloat16_too() -> None:
    config = config_of({})
    assert config is not None
    before = list(training(config, torch.bfloat16))
    reported = inert(config)
    wrong = []
    for key in FLIPS:
        others = accepted({}, key).values()
        changed = any(differ(before, other, torch.bfloat16) for other in others)
        if others and changed == (key in reported):
            wrong.append(f"{key} {'acts' if changed else 'does not act'}")
    assert not wrong


def id_of(value: object) -> str:
    """A name for a case; sets in one order, as workers of one test run have to agree on names."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.soak if name in RARE else ()) for name in CONFIGURATIONS],
)
def test_a_flipped_key_changes_the_weights_or_is_reported(name: str) -> None:
    base = CONFIGURATIONS[name]
    config = config_of(base)
    assert config is not None
    before = list(training(config))
    reported = inert(config)
    wrong: list[str] = []
    for key in FLIPS:
        acting = []
        for value, other in accepted(base, key).items():
            acts, found = differ(before, other), changes(config, other)
            acting.append(acts)
            # whether a clipped gradient was above its bound is known only afterwards
            if acts != bool(found) and not (found and key == "optimizer.grad_clip"):
                wrong.append(f"{key}={value}: changes() says {found}")
        if key in reported and any(acting):
            wrong.append(f"{key} is reported and acts")
        if key not in reported and acting and not any(acting):
            wrong.append(f"{key} does not act and is not reported")
    assert not wrong


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ({"pretrain.steps": 9}, {"pretrain.tokens_per_parameter"}),
        ({"pretrain.eval_every": 0}, {"pretrain.eval_tokens"}),
        ({"pretrain.core_every": 0}, {"pretrain.core_max_per_task"}),
        ({"train.processes": 1}, {"train.sharding"}),
        ({"pretrain.warmdown_fraction": 0.0}, {"pretrain.final_lr_fraction"}),
        ({"sft.warmdown_fraction": 0.0}, {"sft.final_lr_fraction"}),
        ({"rl.warmup_fraction": 1.0}, {"rl.final_lr_fraction"}),
        ({"corpus.source": "world"}, {"corpus.paths", "corpus.text_column", "corpus.megabytes"}),
        ({"corpus.problems": "there"}, {"corpus.world.problems", "corpus.world.test_problems"}),
        ({"corpus.core": "there"}, {"corpus.world.core_items"}),
        ({"corpus.source": "local", "corpus.paths": ["a.txt"]}, {"corpus.world.megabytes"}),
    ],
    ids=id_of,
)
def test_a_key_of_the_stages_that_is_not_read_is_reported(
    values: dict[str, Any], reported: set[str]
) -> None:
    config = load_config(ROOT / "params.yaml", values)
    assert reported <= inert(config).keys()


@pytest.mark.parametrize(
    ("values", "acting"),
    [
        ({"pretrain.steps": None}, {"pretrain.tokens_per_parameter"}),
        ({"pretrain.eval_every": 5}, {"pretrain.eval_tokens"}),
        ({"pretrain.core_every": 5}, {"pretrain.core_max_per_task"}),
        ({"train.processes": 2}, {"train.sharding"}),
        ({"corpus.source": "local", "corpus.paths": ["a.txt"]}, {"corpus.text_column"}),
    ],
    ids=id_of,
)
def test_a_key_of_the_stages_that_is_read_is_not_reported(
    values: dict[str, Any], acting: set[str]
) -> None:
    assert not acting & inert(load_config(ROOT / "params.yaml", values)).keys()


def test_a_reason_says_what_it_would_take() -> None:
    config = load_config(ROOT / "params.yaml")
    assert inert_problems(config, ["optimizer.adamw_matrix_lr", "model.depth"]) == [
        "optimizer.adamw_matrix_lr is read only with optimizer.kind: adamw"
    ]


def test_weights_of_a_mixture_are_the_same_as_their_shares() -> None:
    config = load_config(ROOT / "params.yaml")
    mixture = {f"sft.mixture.{name}": 3 * weight for name, weight in config.sft.mixture.items()}
    assert changes(config, load_config(ROOT / "params.yaml", mixture)) == []


# ---------------------------------------------------------------- arms and spaces


def arms(*overrides: dict[str, Any]) -> list[str]:
    """The problems of an ablation with these arms."""
    raw = {
        "question": "Is it better?",
        "hypothesis": "It is.",
        "baseline": {"set": TINY},
        "arms": {f"arm{number}": change for number, change in enumerate(overrides)},
        "seeds": 2,
        "metric": "val_bpb",
        "smallest_effect": 0.01,
        "equal": "none",
        "stages": ["sft"],
    }
    try:
        parse_experiment("tiny", raw)
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer.adamw_matrix_lr": 0.1}, "read only with optimizer.kind: adamw"),
        ({"optimizer.kind": "adamw", "optimizer.matrix_lr": 0.1}, "read only with an optimizer.kind other"),
        ({"pretrain.tokens_per_parameter": 5}, "read only with pretrain.steps: null"),
        ({"model.window": 16, "model.window_pattern": "L"}, "model.window is read only with a letter S"),
        ({"model.mlp_ratio": 4.01}, "the baseline computes the same"),
        ({"sft.warmup_fraction": 0.06}, "the baseline computes the same"),
        ({"model.n_kv_heads": 2}, "the baseline computes the same"),
        ({"model.width": 32}, "the baseline computes the same"),
        ({"sft.mixture": {"facts": 0.5, "problems_worked": 0.5}}, "it was merged with the weights there are"),
    ],
    ids=id_of,
)  # fmt: skip
def test_an_arm_that_cannot_differ_is_refused(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    problems = arms(change)
    assert problems
    assert said in problems[0]


def test_an_arm_that_differs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    adamw = {"set": {"optimizer.kind": "adamw", "optimizer.adamw_matrix_lr": 0.1}, "as_one": "it"}
    assert not arms(adamw, {"model.n_kv_heads": 1}, {"model.width": 48})


STUDY = "trials: 2\nbudget: {tokens: 40960}\nmemory: 3GiB\nspace:\n"


@pytest.mark.parametrize(
    ("space", "refused"),
    [
        ("  optimizer.adamw_matrix_lr: {low: 0.001, high: 0.1}\n", True),
        ("  optimizer.adamw_matrix_lr: {low: 0.001, high: 0.1}\n  optimizer.kind: {choices: [muon, adamw]}\n", False),
        ("  model.rope_base: {low: 10, high: 100}\n  model.position: {choices: [none, learned]}\n", False),
        ("  optimizer.matrix_lr: {low: 0.001, high: 0.1}\n", False),
    ],
    ids=["never", "with one choice", "outside of the choices", "always"],
)  # fmt: skip
def test_a_space_of_a_key_that_no_trial_reads_is_refused(
    space: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments/tune").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "experiments/tune/it.yaml").write_text(STUDY + space)
    monkeypatch.chdir(tmp_path)
    if not refused:
        read_study("it")
        return
    with pytest.raises(UserError, match="read only with optimizer.kind: adamw"):
        read_study("it")


# ---------------------------------------------------------------- changes since the last commit


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the project's params.yaml and dvc.yaml committed."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "first"], check=True)
    return tmp_path


def set_params(*assignments: str) -> Config:
    """What `dvc exp run -S` makes of params.yaml."""
    from dvc.utils.hydra import apply_overrides

    apply_overrides("params.yaml", list(assignments))
    return load_config()


def test_a_changed_key_without_an_effect_is_named(committed: Path) -> None:
    config = set_params("optimizer.adamw_matrix_lr=0.1", "model.depth=3", "train.sharding=fsdp")
    assert change_notes(config, ["model", "optimizer"]) == [
        "optimizer.adamw_matrix_lr: changed, and without an effect: it is read only with optimizer.kind: adamw"
    ]
    assert len(change_notes(config)) == 2


def test_an_unchanged_file_gives_no_note(committed: Path) -> None:
    assert change_notes(load_config()) == []


def test_a_stage_names_it_on_standard_error(
    committed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from paribus.stages.context import name_changes

    name_changes("pretrain", set_params("optimizer.adamw_matrix_lr=0.1"))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(
        "paribus pretrain: optimizer.adamw_matrix_lr: changed, and without"
    )


def test_a_plan_names_it_on_standard_error_and_prints_json_alone(committed: Path) -> None:
    words = ["plan", "--json", "--device", "RTX 3090", "-S", "optimizer.adamw_matrix_lr=0.1"]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0
    assert "paribus plan: optimizer.adamw_matrix_lr: changed, and without" in done.stderr
    assert json.loads(done.stdout)["stages"]


def test_a_plan_refuses_a_mixture_that_would_be_merged(committed: Path) -> None:
    words = ["plan", "-S", "midtrain.mixture={facts: 0.5, problems_worked: 0.5}"]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 2
    assert "'~midtrain.mixture' -S" in done.stderr


def test_a_whole_mixture_that_dvc_merged_is_refused_and_the_command_given_replaces_it(
    committed: Path,
) -> None:
    wanted = "{facts: 0.5, problems_worked: 0.5}"
    with pytest.raises(UserError) as caught:
        change_notes(set_params(f"midtrain.mixture={wanted}"))
    command = "'~midtrain.mixture' -S '+midtrain.mixture={facts: 0.5, problems_worked: 0.5}'"
    assert command in caught.value.problems[0]
    (committed / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    config = set_params("~midtrain.mixture", f"+midtrain.mixture={wanted}")
    assert config.midtrain.mixture == {"facts": 0.5, "problems_worked": 0.5}
    assert change_notes(config) == []


def test_one_more_source_is_mixed_in_and_its_share_said(committed: Path) -> None:
    config = set_params("+corpus.conversations.mine=talk.jsonl", "+sft.mixture.mine=1.0")
    [note] = change_notes(config, ["sft"])
    assert "sft.mixture: the weights add up to 2" in note
    assert "mine 0.5" in note


def test_one_changed_weight_is_said_as_shares(committed: Path) -> None:
    [note] = change_notes(set_params("sft.mixture.facts=1.05"))
    assert "the weights add up to 2, so the shares are facts 0.525" in note


def test_a_profile_is_no_merge() -> None:
    before = flatten(read_yaml(ROOT / "params.yaml"))
    for path in sorted((ROOT / "experiments/profiles").glob("*.yaml")):
        after = flatten(load_config(ROOT / "params.yaml", flatten(read_yaml(path))))
        assert merge_problems(before, after) == []

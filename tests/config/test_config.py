"""params.yaml: strict, all problems at once, everything derived from the depth."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest

from paribus.config import (
    Config,
    describe,
    fingerprint,
    flatten,
    merge,
    parse_config,
    read_yaml,
    resolve_model,
    resolve_pretrain,
)
from paribus.errors import UserError
from paribus.model.accounting import parameters


@pytest.fixture(scope="module")
def params(project_root: Path) -> dict[str, Any]:
    return read_yaml(project_root / "params.yaml")


def problems(params: dict[str, Any], **overrides: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_config(
            merge(params, {key.replace("__", "."): value for key, value in overrides.items()})
        )
    return caught.value.problems


def test_every_problem_is_told_at_once(params: dict[str, Any]) -> None:
    found = problems(
        params, model__dept=6, model__depth="abc", sft__lr_scale=-1, train__device="gpu"
    )
    assert len(found) == 4


def test_unknown_key_names_the_nearest(params: dict[str, Any]) -> None:
    assert problems(params, model__dept=6) == ["model.dept: unknown key; did you mean model.depth?"]


def test_key_in_the_wrong_section_is_found_where_it_lives(params: dict[str, Any]) -> None:
    assert "did you mean eval.gsm8k.few_shot?" in problems(params, eval__few_shot=3)[0]


def test_wrong_type_says_what_is_allowed(params: dict[str, Any]) -> None:
    assert problems(params, model__depth="abc") == [
        "model.depth: 'abc' is not allowed; expected a whole number >= 1 and <= 256"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.depth", 0),
        ("model.depth", 4.5),
        ("model.depth", True),
        ("model.qk_norm", 1),
        ("optimizer.beta1", 1.0),
        ("model.mlp", "silu"),
        ("corpus.paths", "here"),
        ("midtrain.mixture", {"facts": -1.0}),
        ("model.softcap", None),
        ("train.session_minutes", 0),
        ("pretrain.lr_scale", float("nan")),
    ],
)
def test_bad_values_are_refused(params: dict[str, Any], key: str, value: object) -> None:
    assert problems(params, **{key.replace(".", "__"): value})[0].startswith(key)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"model.n_heads": 5}, "model.n_heads"),
        ({"model.n_kv_heads": 2, "model.n_heads": 3}, "model.n_kv_heads"),
        ({"model.window_pattern": "SX"}, "model.window_pattern"),
        ({"model.window": 10**6}, "model.window"),
        ({"model.width": 100}, "model.width"),
        ({"corpus.source": "local"}, "corpus.paths"),
        ({"sft.batch_tokens": None}, "sft.batch_tokens"),
        ({"sft.batch_tokens": 1000}, "sft.batch_tokens"),
        ({"pretrain.warmup_fraction": 0.8}, "pretrain"),
    ],
)
def test_combinations_are_refused_with_the_fix(
    params: dict[str, Any], overrides: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(merge(params, overrides))
    assert any(problem.startswith(key) for problem in caught.value.problems)


def test_missing_key_is_named(params: dict[str, Any]) -> None:
    without = {name: section for name, section in params.items() if name != "seed"}
    with pytest.raises(UserError, match="seed: missing"):
        parse_config(without)


def test_every_key_is_documented_and_in_params(params: dict[str, Any]) -> None:
    known = {path for path, *_ in describe()}
    config = parse_config(params)
    for path, hint, meta in describe():
        assert len(meta["doc"]) > 3, path
        holds_others = dataclasses.is_dataclass(hint) or isinstance(hint, types.GenericAlias)
        if not holds_others:
            assert path in flatten(config), path
    assert {key for key in flatten(config) if "mixture" not in key} <= known


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 3e-4\ny: -1.5E+2\nz: 1e3\nname: e3\nmd5: 4e90b.dir\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "x": 3e-4,
        "y": -150.0,
        "z": 1000.0,
        "name": "e3",
        "md5": "4e90b.dir",
    }


@pytest.mark.parametrize("text", ["a: [1", "just words", ""])
def test_broken_file_is_an_error_for_people(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="a.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_depth_is_the_one_dial(params: dict[str, Any]) -> None:
    deep = resolve_model(
        parse_config(
            merge(params, {"model.depth": 16, "model.aspect_ratio": 64, "model.head_dim": 128})
        ).model
    )
    assert (deep.width, deep.n_heads, deep.n_kv_heads) == (1024, 8, 8)


def test_derived_values_can_be_overridden(params: dict[str, Any]) -> None:
    config = parse_config(
        merge(params, {"model.width": 256, "model.head_dim": 64, "model.n_kv_heads": 1})
    )
    assert (resolve_model(config.model).width, resolve_model(config.model).n_kv_heads) == (256, 1)


def test_horizon_follows_the_parameters(params: dict[str, Any]) -> None:
    """A public run: 335.5 M parameters at 20 tokens each, in steps of 2^19 tokens."""
    pretrain = parse_config(
        merge(
            params,
            {
                "pretrain.steps": None,
                "pretrain.tokens_per_parameter": 20,
                "pretrain.batch_tokens": 2**19,
            },
        )
    ).pretrain
    assert resolve_pretrain(pretrain, 335_544_320, 2048).steps == 12_800


@pytest.mark.parametrize(("depth", "published"), [(16, 335_544_320), (20, 560_988_160)])
def test_parameter_counts_are_the_published_ones(
    params: dict[str, Any], depth: int, published: int
) -> None:
    """335.5 M and 561.0 M: the public runs of depth 16 and 20, vocabulary 65,536."""
    config = parse_config(
        merge(
            params,
            {
                "model.depth": depth,
                "model.aspect_ratio": 64,
                "model.head_dim": 128,
                "model.x0_scalars": False,
                "model.residual_scalars": False,
                "model.mlp": "relu2",
                "model.value_embeddings": "none",
            },
        )
    )
    assert parameters(resolve_model(config.model), 65_536)["total"] == published


def test_fingerprint_depends_on_every_part() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1) != fingerprint(a=1, b=[3])


def test_config_is_frozen(tiny_config: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config.seed = 2  # type: ignore[misc]

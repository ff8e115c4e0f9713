"""An empty mapping among overrides empties what is there, in a profile, in a study, and as arguments of DVC."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ablation_file import parse

from paribus.config import dotted, lay_over, load_config
from paribus.execute.worker import write_overrides
from paribus.graph import assignments

pytestmark = pytest.mark.usefixtures("in_checkout")

PROFILE = "gpt2-grade"  # which names conversations of its own


def test_a_mapping_that_is_empty_keeps_its_key() -> None:
    assert dotted({"corpus": {"conversations": {}, "seed": 1}}) == {
        "corpus.conversations": {},
        "corpus.seed": 1,
    }


def test_emptying_takes_what_the_layer_below_put_in_and_keeps_what_comes_with_it() -> None:
    base = {"corpus.conversations.a": "1", "corpus.seed": 1}
    more = {"corpus.conversations": {}, "corpus.conversations.b": "2"}
    assert lay_over(base, more) == {
        "corpus.seed": 1,
        "corpus.conversations": {},
        "corpus.conversations.b": "2",
    }


def test_a_study_empties_a_mapping_of_its_profile() -> None:
    changes: dict[str, object] = {"corpus.conversations": {}}
    for stage in ("midtrain", "sft"):
        changes |= {f"{stage}.mixture": {}, f"{stage}.mixture.facts": 1.0}
    baseline = {"profile": PROFILE, "set": changes}
    assert load_config(overrides=parse(baseline={"profile": PROFILE}).base).corpus.conversations
    assert not parse(baseline=baseline).config().corpus.conversations


def test_a_run_s_params_are_emptied(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("corpus:\n  conversations:\n    a: x.jsonl\n  seed: 1\n")
    write_overrides(params, {"corpus.conversations": {}})
    assert "x.jsonl" not in params.read_text()


def test_dvc_deletes_before_it_adds_as_it_merges_mappings() -> None:
    assert assignments({"corpus.conversations": {}}) == [
        "~corpus.conversations",
        "+corpus.conversations={}",
    ]

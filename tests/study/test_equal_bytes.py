"""Equal bytes: arms with other tokenizers read the same text, by the bytes of a token of each."""

from __future__ import annotations

import pytest
from support.ablation_file import parse
from support.tiny import TINY

from paribus.errors import UserError
from paribus.pages.held_equal import held
from paribus.study import budget
from paribus.study.arm_checks import arm_warnings
from paribus.study.settled import settle

pytestmark = pytest.mark.usefixtures("in_checkout")

MORE_STEPS = TINY | {"pretrain.steps": 200}
SMALL = {"small-vocabulary": {"tokenizer.vocab_size": 320}}


def test_steps_of_an_arm_read_the_text_of_the_baseline() -> None:
    experiment = parse(arms=SMALL, equal="bytes", baseline={"set": MORE_STEPS})
    of_token = {"baseline": 3.0, "small-vocabulary": 2.0}
    assert budget.steps_for(experiment, "small-vocabulary", of_token) == 300
    assert budget.steps_for(experiment, "baseline", of_token) == 200


def test_an_amount_of_text_gives_the_baseline_its_steps_too() -> None:
    experiment = parse(arms=SMALL, equal={"bytes": 76_800}, baseline={"set": MORE_STEPS})
    batch = TINY["pretrain.batch_tokens"]
    of_token = {"baseline": 3.0, "small-vocabulary": 2.0}
    assert budget.steps_for(experiment, "baseline", of_token) == 76_800 / (3 * batch)


def test_bytes_of_a_token_are_counted_once_for_arms_with_one_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arms = SMALL | {"adamw": {"optimizer.kind": "adamw"}}
    experiment = parse(arms=arms, equal="bytes", baseline={"set": MORE_STEPS})
    settled = settle(experiment, workers=1)
    counted = settled["token_bytes"]
    assert isinstance(counted, dict)
    assert counted["adamw"] == counted["baseline"]
    assert counted["small-vocabulary"]["bytes"] < counted["baseline"]["bytes"]
    steps = settled["steps"]
    assert isinstance(steps, dict)
    ratio = counted["baseline"]["bytes"] / counted["small-vocabulary"]["bytes"]
    assert steps == {"small-vocabulary": round(200 * ratio)}


def test_whole_steps_that_miss_the_text_are_refused() -> None:
    experiment = parse(arms=SMALL, equal="bytes")
    of_token = {"baseline": 3.0, "small-vocabulary": 2.0 * 3 / 3.1}
    [problem] = budget.text_problems(experiment, of_token)
    assert "small-vocabulary: equal: bytes: cannot be held" in problem
    assert "more than 2% apart" in problem


def test_equal_tokens_of_another_tokenizer_point_to_equal_bytes() -> None:
    [warning] = arm_warnings(parse(arms=SMALL))
    assert "equal: bytes gives each arm the same text" in warning
    assert not arm_warnings(parse(arms=SMALL, equal="bytes"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizons": [0.8, 1.0]}, "horizons: what is saved is counted in tokens"),
        ({"arms": {"longer": {"pretrain.steps": 9}}}, "which the arm sets (pretrain.steps)"),
        ({"equal": {"bytes": -1}}, "equal: {'bytes': -1} is not allowed"),
    ],
)
def test_what_bytes_cannot_hold_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(**({"arms": SMALL, "equal": "bytes"} | change))
    assert words in str(refused.value)


def test_the_page_says_that_text_was_held_equal() -> None:
    experiment = parse(arms=SMALL, equal={"bytes": 76_800}, baseline={"set": MORE_STEPS})
    assert "Training text (76.8\u202fk)" in held(experiment, [])

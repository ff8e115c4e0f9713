"""Factors: cells that tell apart what is asked, effects of a mixed model over matched seeds, and rates that hold."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import numpy as np
import pytest
from support.ablation_file import FILE
from support.results import result

from paribus.errors import UserError
from paribus.pages.factors import rows
from paribus.study.advice import again
from paribus.study.experiment import Experiment
from paribus.study.factor_effects import Judge, Model, factor_effects, fitted
from paribus.study.factors import Factorial, Signs
from paribus.study.outcomes import Outcomes
from paribus.study.reading import parse_experiment

FACTORS: dict[str, Any] = {
    "mlp": {"model.mlp": ["swiglu", "relu2"]},
    "qk": {"model.qk_norm": [True, False]},
    "values": {"model.value_embeddings": ["all", "none"]},
    "x0": {"model.x0_scalars": [True, False]},
    "adamw": {"optimizer.kind": ["muon", "adamw"]},
}


def parse(**changes: Any) -> Experiment:
    raw = {key: value for key, value in FILE.items() if key != "arms"}
    return parse_experiment("tiny", raw | {"factors": FACTORS, "seeds": 3} | changes)


def problems_of(**changes: Any) -> str:
    with pytest.raises(UserError) as refused:
        parse(**changes)
    return "\n".join(refused.value.problems)


def few(number: int) -> dict[str, Any]:
    return dict(itertools.islice(FACTORS.items(), number))


@pytest.fixture(scope="module")
def design() -> Factorial:
    found = parse(design="fraction").factorial
    assert found is not None
    return found


def judged(design: Factorial, values: Signs) -> dict[str, str]:
    """Effect -> its verdict. values: (cells, seeds)."""
    found = Judge("lower", 0.01, 0.05, fitted(design, values)).asked()
    return {" x ".join(term): effect.verdict for term, effect in found.items()}


# ---------------------------------------------------------------- the design


def test_a_fraction_of_five_factors_has_sixteen_cells_and_the_baseline_among_them() -> None:
    experiment = parse(design="fraction")
    assert len(experiment.names) == 16
    assert experiment.factorial is not None
    assert experiment.factorial.resolution == 5


@pytest.mark.parametrize("number", [5, 6, 7])
def test_a_fraction_tells_apart_every_effect_of_one_or_two_factors(number: int) -> None:
    more = {
        "warm": {"pretrain.warmup_fraction": [0.02, 0.1]},
        "clip": {"optimizer.grad_clip": [1.0, 2.0]},
    }
    factors = dict(itertools.islice((FACTORS | more).items(), number))
    design = parse(factors=factors, design="fraction").factorial
    assert design is not None
    columns = np.array([design.signs(term) for term in design.asked])
    assert np.array_equal(columns @ columns.T, len(design.cells) * np.eye(len(columns)))


def test_a_cell_changes_what_its_name_says() -> None:
    assert parse(design="full").arms["mlp-adamw"].overrides == {
        "model.mlp": "relu2",
        "optimizer.kind": "adamw",
    }


def test_aliases_of_a_small_fraction_are_named() -> None:
    design = parse(factors=few(4), design={"fraction": 8}, interactions=[["mlp", "qk"]]).factorial
    assert design is not None
    assert "resolution IV" in design.words()
    assert "mlp x qk = values x x0" in design.words()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"factors": few(3), "design": "fraction"}, "aliases what is asked: mlp with qk x values"),
        ({"design": {"fraction": 8}}, "design: {fraction: 16} tells them apart"),
        ({"design": {"fraction": 9}}, "expected 4, 8, 16"),
        ({"design": "half"}, "expected full, fraction"),
        ({"factors": few(1)}, "a single change is an arm"),
        ({"factors": few(1) | {"qk": {"model.qk_norm": [True]}}}, "factors.qk.model.qk_norm: 1 level;"),
        ({"factors": few(1) | {"qk": {"model.qk_norm": [False, True]}}}, "the first level is the baseline's"),
        ({"factors": few(1) | {"qk": {"model.qknorm": [True, False]}}}, "did you mean model.qk_norm?"),
        ({"factors": few(1) | {"act": {"model.mlp": ["swiglu", "gelu"]}}}, "a key of factors.mlp too"),
        ({"factors": few(1) | {"act": {"model.mlp_ratio": [4.0, "x"]}}}, "factors.act: model.mlp_ratio"),
        ({"interactions": [["mlp", "mpl"]]}, "interactions: ['mlp', 'mpl']"),
        ({"seeds": "open"}, "one look, after all of its cells"),
        ({"borrow": True}, "borrow: `factors` has a model of its own"),
        ({"arms": {"a": {"model.depth": 3}}}, "leave out one of them"),
        ({"tune": {"space": {"optimizer.beta1": {"low": 0.5, "high": 0.9}}, "trials": 2}}, "tune: not with factors"),
    ],
)  # fmt: skip
def test_a_design_that_cannot_be_is_refused_with_the_reason(
    changes: dict[str, Any], words: str
) -> None:
    assert words in problems_of(**changes)


def test_all_problems_of_a_design_are_named_at_once() -> None:
    text = problems_of(
        factors={"a": {"model.mlp": ["swiglu"]}, "b": 3}, design="some", seeds="open"
    )
    for where in ("factors.a", "factors.b", "design", "seeds"):
        assert f": {where}" in text


# ---------------------------------------------------------------- the effects


def test_planted_effects_are_found_and_nothing_else(design: Factorial) -> None:
    values = np.random.default_rng(0).normal(0, 0.002, (16, 4)) + np.array([1.0, 1.3, 0.8, 1.1])
    values += 0.03 * (design.signs(("adamw",)) > 0)[:, None]
    values -= 0.05 * design.signs(("mlp", "qk"))[:, None] / 4
    found = judged(design, values)
    different = {name: verdict for name, verdict in found.items() if verdict != "equivalent"}
    assert different == {"adamw": "worse", "mlp x qk": "better"}


def test_an_effect_that_varies_from_seed_to_seed_is_not_trusted_to_the_model(
    design: Factorial,
) -> None:
    generator = np.random.default_rng(3)
    wrong = 0
    for _ in range(300):
        values = generator.normal(0, 0.01, (16, 3))
        values += design.signs(("mlp",))[:, None] * generator.normal(0, 0.02, 3)
        wrong += judged(design, values)["mlp"] in ("better", "worse")
    assert wrong / 300 < 0.05


def mixed_model(design: Factorial, values: Signs) -> Any:
    """The same model by statsmodels."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    cells, seeds = values.shape
    columns = [np.ones(cells)]
    columns += [design.signs(term) / 2 / len(term) for term in design.asked]
    names = [f"v{number}" for number in range(len(design.factors))]
    slopes = np.array([design.signs((name,)) / 2 for name in design.factors]).T
    model = MixedLM(
        values.T.ravel(),
        np.tile(np.array(columns).T, (seeds, 1)),
        groups=np.repeat(np.arange(seeds), cells),
        exog_re=np.ones((cells * seeds, 1)),
        exog_vc=VCSpec(["slopes"], [[names] * seeds], [[slopes] * seeds]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(reml=True)


def test_effects_and_errors_are_those_of_statsmodels_mixed_model(design: Factorial) -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0, 1, (16, 3)) + generator.normal(0, 8, 3)
    for name in design.factors:
        values += design.signs((name,))[:, None] * generator.normal(0, 1, 3)
    model: Model = fitted(design, values)
    theirs = mixed_model(design, values)
    means = [float(np.mean(model.contrasts[term])) for term in design.asked]
    errors = [(model.variance[term] / 3) ** 0.5 for term in design.asked]
    assert means == pytest.approx(list(theirs.fe_params[1:]), rel=1e-6)
    assert errors == pytest.approx(list(theirs.bse_fe[1:]), rel=1e-3)


def test_one_change_at_a_time_follows_from_the_effects(design: Factorial) -> None:
    values = np.random.default_rng(0).normal(0, 0.001, (16, 3))
    values += 0.02 * ((design.signs(("mlp",)) > 0) & (design.signs(("qk",)) > 0))[:, None]
    found = Judge("lower", 0.005, 0.05, fitted(design, values)).at_baseline()
    assert found["mlp"].verdict == "equivalent"
    assert found["mlp"].mean == pytest.approx(0.0, abs=0.003)


def test_an_undecided_effect_names_a_new_study_and_what_it_costs() -> None:
    experiment = parse()
    assert experiment.factorial is not None
    found = [
        result(cell, seed, 2.0 + 0.01 * ((seed * 7 + place * 5) % 11 - 5))
        for place, cell in enumerate(experiment.factorial.cells)
        for seed in range(7, 10)
    ]
    outcomes = Outcomes(found)
    told = rows(experiment, factor_effects(experiment, outcomes), again(experiment, outcomes))
    undecided = [row["sentence"] for row in told if row["verdict"] == "undecided"]
    assert undecided
    for sentence in undecided:
        named = re.search(r" (\d+) seeds decide, .* --seeds (\d+)`, .* \((\d+) runs", sentence)
        assert named is not None
        seeds, option, runs = map(int, named.groups())
        assert option == seeds > 3
        assert runs == seeds * len(experiment.factorial.cells)

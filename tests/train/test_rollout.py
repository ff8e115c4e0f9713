"""One RL step's experience: pure, masked right, and honest about what was wasted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.talker import PROBLEMS, codec, problem, random_model, talker

from paribus.config import RL, Config, resolve_model
from paribus.evaluate.gsm8k import chat_prompt, score, solution_steps
from paribus.generate import Engine
from paribus.generate.sampling import choose
from paribus.model.gpt import GPT
from paribus.train.objectives import PolicyGradient
from paribus.train.rollout import Rollout, advantages_of, questions_of_step, rollout


@pytest.fixture
def cfg(tiny_config: Config) -> RL:
    return dataclasses.replace(
        tiny_config.rl,
        questions_per_step=5,
        samples_per_question=4,
        max_new_tokens=50,
        steps=10,
        rollout_rows=64,
    )


@pytest.fixture
def step(cfg: RL) -> Rollout:
    return rollout(talker(), PROBLEMS, cfg=cfg, seed=1, step=0)


def test_a_step_is_a_pure_function(cfg: RL, step: Rollout) -> None:
    again = rollout(
        talker(), PROBLEMS, cfg=dataclasses.replace(cfg, rollout_rows=3), seed=1, step=0
    )
    assert torch.equal(step.tokens, again.tokens)
    assert torch.equal(step.weights, again.weights)
    assert step.statistics == again.statistics
    assert rollout(talker(), PROBLEMS, cfg=cfg, seed=1, step=1).texts != step.texts


def test_batch_holds_the_answers_with_the_advantage_on_what_was_sampled(step: Rollout) -> None:
    """Every row, read back as text, is a question of the step, its answer and that answer's advantage."""
    tool_result = codec().special["<|result|>"]
    assert len(step.tokens) == int((step.advantages != 0).sum()) > 0
    by_question = {question: row for row, question in enumerate(step.questions)}
    for tokens, targets, weights in zip(step.tokens, step.targets, step.weights, strict=True):
        learned = targets >= 0
        assert torch.equal(learned, weights != 0)
        first, last = int(learned.nonzero()[0]), int(learned.nonzero()[-1])
        question = next(
            index
            for index, one in enumerate(PROBLEMS)
            if chat_prompt(codec(), one["question"]) == tokens[: first + 1].tolist()
        )
        answer = [*tokens[first + 1 : last + 1].tolist(), int(targets[last])]
        correct = score(codec().decode(answer), PROBLEMS[question]["answer"]).correct
        group = by_question[question]
        places = (step.rewards[group] == float(correct)).nonzero()[:, 0]
        assert float(weights[first]) == float(step.advantages[group, places[0]])
        assert len(set(weights[learned].tolist())) == 1
        forced = [place for place in range(first, last) if not learned[place]]
        assert all(
            targets[place] == tokens[place + 1] for place in range(first, last) if learned[place]
        )
        assert (len(forced) > 0) == (tool_result in answer)
        assert tool_result not in targets[learned].tolist()


def test_normaliser_counts_every_sampled_token_also_of_rows_left_out(
    cfg: RL, step: Rollout
) -> None:
    assert step.n_sampled_tokens == step.statistics["sampled_tokens"]
    assert step.n_sampled_tokens > int((step.targets >= 0).sum()), (
        "some group of this step carries no gradient"
    )
    wasted = 1 - int((step.targets >= 0).sum()) / step.n_sampled_tokens
    assert step.statistics["wasted_token_fraction"] == pytest.approx(wasted)


def test_statistics_follow_from_the_rewards(step: Rollout) -> None:
    rewards, statistics = step.rewards, step.statistics
    assert statistics["mean_reward"] == pytest.approx(float(rewards.mean()))
    assert statistics["zero_reward_groups"] == pytest.approx(
        float((rewards.sum(1) == 0).float().mean())
    )
    assert statistics["all_reward_groups"] == pytest.approx(
        float((rewards.sum(1) == 4).float().mean())
    )
    idle = statistics["zero_reward_groups"] + statistics["all_reward_groups"]
    assert statistics["zero_gradient_groups"] == pytest.approx(idle)
    assert statistics["gradient_samples"] == 4 * int((step.advantages != 0).any(1).sum())
    assert (statistics["groups"], statistics["samples_drawn"]) == (5, 20)
    assert sum(row["groups"] for row in statistics["by_steps"].values()) == 5


def test_the_share_of_answers_cut_off_is_told(cfg: RL) -> None:
    short = dataclasses.replace(cfg, max_new_tokens=4)
    step = rollout(talker(), PROBLEMS, cfg=short, seed=1, step=0)
    assert step.statistics["cut_off"] == 1


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    mean = advantages_of(rewards, "group_mean")
    assert mean[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert not mean[1:].any(), "exactly zero, also where the mean of equal rewards rounds"
    scaled = advantages_of(rewards, "group_mean_std")
    assert float(scaled[0].std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not scaled[1:].any()


def test_a_step_without_any_gradient_has_an_empty_batch(cfg: RL) -> None:
    step = rollout(Engine(random_model(), codec()), PROBLEMS, cfg=cfg, seed=1, step=0)
    assert step.tokens.shape[0] == step.targets.shape[0] == step.weights.shape[0] == 0
    assert step.n_sampled_tokens > 0
    assert step.statistics["wasted_token_fraction"] == 1.0
    assert step.statistics["zero_reward_groups"] == 1.0


def test_format_reward_makes_variance_and_is_not_a_right_answer(cfg: RL) -> None:
    unsolvable = [{"question": one["question"], "answer": "#### 999"} for one in PROBLEMS]
    plain = rollout(talker(), unsolvable, cfg=cfg, seed=1, step=0)
    paid = rollout(
        talker(), unsolvable, cfg=dataclasses.replace(cfg, format_reward=0.25), seed=1, step=0
    )
    assert plain.statistics["zero_gradient_groups"] == 1.0
    assert plain.statistics["mean_reward"] == 0
    assert set(paid.rewards.flatten().tolist()) == {0.0, 0.25}
    assert paid.statistics["zero_gradient_groups"] < 1.0
    assert paid.statistics["zero_reward_groups"] == 1.0
    assert paid.statistics["mean_reward"] == pytest.approx(0.25 * paid.statistics["formatted"])


def test_dynamic_sampling_redraws_and_counts_the_cost(cfg: RL, step: Rollout) -> None:
    redrawn = rollout(
        talker(), PROBLEMS, cfg=dataclasses.replace(cfg, dynamic_sampling=2), seed=1, step=0
    )
    idle = step.statistics["zero_gradient_groups"]
    assert idle > 0
    cost = redrawn.statistics["samples_drawn"] - step.statistics["samples_drawn"]
    assert cost == redrawn.statistics["redrawn_samples"] > 0
    assert step.statistics["redrawn_samples"] == 0
    assert int((redrawn.advantages != 0).any(1).sum()) > int((step.advantages != 0).any(1).sum())
    assert redrawn.rewards.shape == step.rewards.shape
    assert len(set(redrawn.questions)) == 5, "no question twice"
    kept = [row for row in range(5) if step.advantages[row].any()]
    assert [redrawn.questions[row] for row in kept] == [step.questions[row] for row in kept]


def test_dynamic_sampling_ends_when_no_question_is_left(cfg: RL) -> None:
    greedy = dataclasses.replace(cfg, dynamic_sampling=50)
    step = rollout(Engine(random_model(), codec()), PROBLEMS, cfg=greedy, seed=1, step=0)
    assert step.statistics["groups"] == len(PROBLEMS), (
        "each asked once, then none is left to redraw"
    )


def test_an_epoch_asks_every_question_once(cfg: RL) -> None:
    many = [problem(a, b) for a in range(10) for b in range(5)]
    epochs = [
        [
            question
            for step in range(start, start + 10)
            for question in questions_of_step(many, cfg, 3, step)
        ]
        for start in (0, 10)
    ]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert questions_of_step(many, cfg, 4, 0) != questions_of_step(many, cfg, 3, 0)
    assert len(questions_of_step(many[:2], cfg, 3, 0)) == 5, (
        "fewer problems than questions: asked again"
    )


def test_curriculum_opens_harder_questions_as_it_goes(cfg: RL) -> None:
    gentle = dataclasses.replace(cfg, curriculum=True)
    many = [problem(a, b, c) for a in range(10) for b in range(5) for c in (None, 2)]
    hardest = [
        max(solution_steps(many[index]) for index in questions_of_step(many, gentle, 3, step))
        for step in range(10)
    ]
    assert hardest[:4] == [1] * 4
    assert 2 in hardest[6:]
    assert len(set(questions_of_step(many, gentle, 3, 0))) == 5
    assert questions_of_step(many, gentle, 3, 2) == questions_of_step(many, gentle, 3, 2)
    assert questions_of_step(many, gentle, 3, 2) != questions_of_step(many, cfg, 3, 2)


# ---------------------------------------------------------------- the gradient, against the exact one

POLICIES = [(1.0, 0), (0.6, 0), (1.5, 0), (1.0, 3), (0.7, 5)]


@pytest.fixture(scope="module")
def small(tiny_config: Config) -> GPT:
    """Twelve tokens, so that every answer of one token can be counted."""
    model = GPT(
        resolve_model(dataclasses.replace(tiny_config.model, depth=1, width=16, head_dim=8)), 12
    )
    model.initialise(1)
    with torch.no_grad():
        noise = torch.randn(model.head_weight.shape, generator=torch.Generator().manual_seed(2))
        model.head_weight.copy_(noise)
    return model


PROMPT = torch.tensor([[3, 1, 4]])


def policy_of(model: GPT, temperature: float, top_k: int) -> torch.Tensor:
    """Probabilities of the first token of an answer, written down apart from the sampler and from the loss."""
    logits = model.logits(model.hidden(PROMPT))[0, -1]
    order = logits.argsort(descending=True)
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept[order[: top_k or len(logits)]] = True
    weights = torch.exp(logits / temperature) * kept
    return weights / weights.sum()


def gradients(model: GPT, value: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [one for one in found if one is not None]


def expected_loss(
    model: GPT, temperature: float, top_k: int, advantages: torch.Tensor
) -> torch.Tensor:
    """The loss on every possible answer, weighted by its probability: the estimator without its noise."""
    policy = policy_of(model, temperature, top_k).detach()
    drawn = policy.nonzero()[:, 0]
    targets = torch.full((len(drawn), 3), -1)
    weights = torch.zeros(len(drawn), 3)
    targets[:, -1] = drawn
    weights[:, -1] = policy[drawn] * advantages[drawn]
    tokens = PROMPT.repeat(len(drawn), 1)
    loss: torch.Tensor = model(tokens, targets, None, weights, temperature=temperature, top_k=top_k)
    return loss


@pytest.mark.parametrize(("temperature", "top_k"), POLICIES)
def test_the_loss_descends_the_exact_gradient_of_the_sampled_policys_reward(
    small: GPT, temperature: float, top_k: int
) -> None:
    rewards = torch.arange(12.0) % 3
    policy = policy_of(small, temperature, top_k)
    reward = (policy * rewards).sum()
    exact = gradients(small, reward)
    advantages = rewards - reward.detach()
    loss = expected_loss(small, temperature, top_k, advantages)
    for ours, theirs in zip(gradients(small, -loss), exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("temperature", "top_k"), POLICIES)
def test_a_token_that_decides_nothing_is_not_pushed(
    small: GPT, temperature: float, top_k: int
) -> None:
    """Whatever token comes, the advantage is the same: a gradient here would only sharpen the policy."""
    loss = expected_loss(small, temperature, top_k, torch.ones(12))
    assert max(float(one.abs().max()) for one in gradients(small, loss)) < 1e-5


@pytest.mark.parametrize(("temperature", "top_k"), POLICIES)
def test_the_loss_is_of_the_distribution_that_the_sampler_draws_from(
    small: GPT, temperature: float, top_k: int
) -> None:
    logits = small.logits(small.hidden(PROMPT))[0, -1].detach()
    uniforms = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0))
    drawn, _ = choose(logits.repeat(len(uniforms), 1), uniforms, temperature, top_k)
    shares = drawn.bincount(minlength=12) / len(uniforms)
    for token in range(12):
        targets = torch.tensor([[-1, -1, token]])
        loss = small(PROMPT, targets, None, temperature=temperature, top_k=top_k)
        if shares[token]:
            assert float((-loss).exp()) == pytest.approx(float(shares[token]), abs=0.01)


def test_a_drawn_token_that_rounding_put_outside_the_top_k_has_a_finite_loss(small: GPT) -> None:
    last = int(small.logits(small.hidden(PROMPT))[0, -1].argmin())
    loss = small(PROMPT, torch.tensor([[-1, -1, last]]), None, top_k=2)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(one).all() for one in gradients(small, loss))


def test_the_objective_hands_the_policy_to_the_loss(step: Rollout) -> None:
    objective = PolicyGradient(lambda _: step, 4, temperature=0.5, top_k=7)
    micro_batches = objective.work(0).micro_batches
    assert all(one.terms == {"temperature": 0.5, "top_k": 7} for one in micro_batches)
    plain = PolicyGradient(lambda _: step, 4).work(0).micro_batches
    assert micro_batches
    assert all(one.terms == {} for one in plain)


def test_rows_are_cut_to_a_multiple_of_the_length_step_and_lose_nothing(step: Rollout) -> None:
    exact = PolicyGradient(lambda _: step, 2).work(0).micro_batches
    stepped = PolicyGradient(lambda _: step, 2, length_step=8).work(0).micro_batches
    assert any(one.tokens.shape[1] % 8 for one in exact)
    for one, other in zip(exact, stepped, strict=True):
        length = one.tokens.shape[1]
        assert other.tokens.shape[1] - length in range(8)
        assert other.tokens.shape[1] % 8 == 0
        assert torch.equal(other.targets[:, :length], one.targets)
        assert other.weights is not None
        assert (other.targets[:, length:] == -1).all()
        assert not other.weights[:, length:].any()

"""One step's experience for RL: which questions, their sampled answers, rewards, advantages, and what was wasted.

On-policy policy gradient with the mean of a question's group as baseline (GRPO without its clipping and KL terms,
arXiv:2402.03300); the loss is the mean over sampled tokens of the whole batch (DAPO, arXiv:2503.14476):

    loss = sum(weights x -log p(target)) / n_sampled_tokens,    weights = advantage on sampled tokens, else 0

p is what the answers were drawn from, so that the loss stays on-policy: softmax(logits / cfg.temperature) among the
cfg.top_k largest logits.

Rows whose advantage is zero add nothing to the sum and are left out of the batch; they stay in n_sampled_tokens.

Shapes: G groups of N answers, B rows kept, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paribus.config import RL
from paribus.evaluate.gsm8k import Score, chat_prompt, is_cut_off, score, solution_steps
from paribus.generate import Completion, Engine, stream_seed
from paribus.train import parallel
from paribus.train.within import Say, nothing

Problem = dict[str, Any]
LENGTH_STEP = 32  # row lengths are multiples of this, so that few shapes occur
STD_FLOOR = 1e-6  # of group_mean_std


@dataclass(frozen=True)
class Rollout:
    """A step's batch and its statistics. Without any gradient in the step, B is 0."""

    tokens: Tensor  # (B, T) int64, inputs
    targets: Tensor  # (B, T) int64; -1 on the prompt, on forced tokens and on padding
    weights: Tensor  # (B, T) fp32: the answer's advantage on its sampled tokens, else 0
    n_sampled_tokens: int  # of all G x N answers: the normaliser of the loss
    rewards: Tensor  # (G, N) fp32
    advantages: Tensor  # (G, N) fp32
    questions: list[int]  # (G,) indices of the problems
    texts: list[str]  # an answer to each question, to read
    statistics: dict[str, Any]


@dataclass(frozen=True)
class _Group:
    """A question and its answers."""

    question: int
    steps: int
    prompt: list[int]
    answers: list[Completion]
    correct: list[bool]
    formatted: list[bool]
    cut_off: list[bool]
    rewards: list[float]

    @property
    def has_gradient(self) -> bool:
        return len(set(self.rewards)) > 1

    @property
    def sampled_tokens(self) -> int:
        return sum(sum(answer.sampled) for answer in self.answers)


def rollout(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    cfg: RL,
    seed: int,
    step: int,
    within: Say = nothing,
) -> Rollout:
    """Answer the questions of a step and score them: a pure function of (weights, problems, cfg, seed, step).

    engine: the current weights. problems: all that may be asked. seed: the run's. step: from 0.
    Ranks answer a share of the questions each and exchange the answers: all have the whole step afterwards.

    With cfg.dynamic_sampling, groups without variance are replaced by groups of new questions, up to so many times;
    what they cost is in the statistics. A group that is still without variance then stays.

    within("answers", done, of how many): called before every token; may raise to give the step up.
    """
    questions = questions_of_step(problems, cfg, seed, step)
    groups = _ask(engine, problems, questions, cfg, stream_seed(seed, step, 0), within)
    drawn = list(groups)
    for turn in range(1, cfg.dynamic_sampling + 1):
        places = [place for place, group in enumerate(groups) if not group.has_gradient]
        if not places:
            break
        used = {group.question for group in drawn}
        questions = _redraw(problems, cfg, seed, step, turn, len(places), used)
        fresh = _ask(engine, problems, questions, cfg, stream_seed(seed, step, turn), within)
        for place, group in zip(places, fresh, strict=False):
            groups[place] = group
        drawn += fresh
    return _assemble(engine, groups, drawn, cfg)


# ---------------------------------------------------------------- which questions


def questions_of_step(problems: Sequence[Problem], cfg: RL, seed: int, step: int) -> list[int]:
    """Indices of the questions of a step: of (problems, cfg, seed, step) only.

    problems: all that may be asked; seed: the run's; step: from 0.
    Each epoch is a permutation of all problems. With cfg.curriculum instead a draw, without replacement, from the
    easiest (step + 1) / steps of them (competence-based curriculum, arXiv:1903.09848).
    """
    count = cfg.questions_per_step
    if cfg.curriculum:
        return _draw(_pool(problems, cfg, seed, step), count, stream_seed(seed, step))
    size = len(problems)
    orders: dict[int, list[int]] = {}  # of each epoch that the step reaches into
    questions = []
    for place in range(step * count, (step + 1) * count):
        epoch, within = divmod(place, size)
        if epoch not in orders:
            orders[epoch] = _shuffled(range(size), stream_seed(seed, epoch))
        questions.append(orders[epoch][within])
    return questions


def _redraw(
    problems: Sequence[Problem],
    cfg: RL,
    seed: int,
    step: int,
    turn: int,
    count: int,
    used: set[int],
) -> list[int]:
    """New questions that this step has not asked before; fewer if not enough are left."""
    fresh = [index for index in _pool(problems, cfg, seed, step) if index not in used]
    return _shuffled(fresh, stream_seed(seed, step, turn))[:count]


def _pool(problems: Sequence[Problem], cfg: RL, seed: int, step: int) -> list[int]:
    """The questions that are open at a step."""
    if not cfg.curriculum:
        return list(range(len(problems)))
    order = _shuffled(range(len(problems)), stream_seed(seed))  # ties in difficulty fall by chance
    order.sort(key=lambda index: solution_steps(problems[index]))
    share = min((step + 1) / cfg.steps, 1.0)
    return order[: max(round(share * len(order)), cfg.questions_per_step)]


def _draw(pool: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` of the pool; again and again all of it if it is smaller."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += _shuffled(pool, stream_seed(seed, len(drawn)))
    return drawn[:count]


def _shuffled(items: Sequence[int], seed: int) -> list[int]:
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


# ---------------------------------------------------------------- answers and rewards


def _ask(
    engine: Engine,
    problems: Sequence[Problem],
    questions: Sequence[int],
    cfg: RL,
    seed: int,
    within: Say,
) -> list[_Group]:
    """The groups of `questions` (indices of problems), answered and scored; on every rank all of them."""
    tokenizer = engine.tokenizer
    prompts = [chat_prompt(tokenizer, problems[index]["question"]) for index in questions]
    mine = list(range(parallel.rank(), len(prompts), parallel.ranks()))
    wanted = len(mine) * cfg.samples_per_question
    answers: list[list[Completion]] = []
    if mine:
        answers = engine.generate(
            [prompts[place] for place in mine],
            samples=cfg.samples_per_question,
            ids=mine,
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            seed=seed,
            rows=cfg.rollout_rows,
            on_step=lambda done: within("answers", done, wanted),
        )
    if parallel.ranks() > 1:
        own = dict(zip(mine, answers, strict=True))
        answers = _exchange(own, len(prompts), cfg, engine.model.device)
    groups = []
    for index, prompt, completions in zip(questions, prompts, answers, strict=True):
        groups.append(_score_group(engine, problems[index], index, prompt, completions, cfg))
    return groups


def _exchange(
    mine: dict[int, list[Completion]], questions: int, cfg: RL, device: torch.device
) -> list[list[Completion]]:
    """The answers to all questions, on every rank, from each rank's own: place of a question -> its answers."""
    longest = cfg.max_new_tokens
    table = torch.zeros(questions, cfg.samples_per_question, 2 * longest + 4, dtype=torch.int32)
    for place, answers in mine.items():
        for row, answer in zip(table[place], answers, strict=True):
            facts = [
                len(answer.tokens),
                answer.finished,
                answer.tool_calls,
                answer.well_formed_tool_calls,
            ]
            row[:4] = torch.tensor(facts)
            row[4 : 4 + facts[0]] = torch.tensor(answer.tokens)
            row[4 + longest : 4 + longest + facts[0]] = torch.tensor(answer.sampled)
    table = table.to(device)
    dist.all_reduce(table)
    return [[_completion(row, longest) for row in group] for group in table.tolist()]


def _completion(row: list[int], longest: int) -> Completion:
    length, finished, calls, well_formed = row[:4]
    sampled = [bool(bit) for bit in row[4 + longest : 4 + longest + length]]
    return Completion(row[4 : 4 + length], sampled, bool(finished), calls, well_formed)


def _score_group(
    engine: Engine,
    problem: Problem,
    question: int,
    prompt: list[int],
    answers: list[Completion],
    cfg: RL,
) -> _Group:
    tokenizer = engine.tokenizer
    scores = [score(tokenizer.decode(answer.tokens), problem["answer"]) for answer in answers]
    return _Group(
        question=question,
        steps=solution_steps(problem),
        prompt=prompt,
        answers=answers,
        correct=[given.correct for given in scores],
        formatted=[given.formatted for given in scores],
        cut_off=[is_cut_off(answer, tokenizer.bos) for answer in answers],
        rewards=[_reward(given, cfg) for given in scores],
    )


def _reward(given: Score, cfg: RL) -> float:
    if given.correct:
        return 1.0
    return cfg.format_reward if given.formatted else 0.0


def advantages_of(rewards: Tensor, kind: str) -> Tensor:
    """The advantage of each answer: its reward minus its group's mean.

    rewards (G, N) fp32. kind: `rl.advantage`; group_mean_std divides by the group's standard deviation. Returns (G, N).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    same = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    centred = centred.masked_fill(same, 0.0)  # exactly zero, whatever the mean rounds to
    if kind == "group_mean_std":
        centred = centred / (rewards.std(dim=1, keepdim=True, correction=0) + STD_FLOOR)
    return centred


# ---------------------------------------------------------------- the batch


def _assemble(engine: Engine, groups: list[_Group], drawn: list[_Group], cfg: RL) -> Rollout:
    """The batch of a step. drawn: all groups that were answered, those that dynamic sampling dropped included."""
    rewards = torch.tensor([group.rewards for group in groups], dtype=torch.float32)
    advantages = advantages_of(rewards, cfg.advantage)
    rows = []
    for group, group_advantages in zip(groups, advantages.tolist(), strict=True):
        for answer, advantage in zip(group.answers, group_advantages, strict=True):
            if advantage != 0 and any(answer.sampled):
                rows.append((group.prompt, answer, advantage))
    tokens, targets, weights = _pack(rows, engine.model.config.seq_len)
    samples_drawn = sum(len(group.answers) for group in drawn)
    return Rollout(
        tokens=tokens,
        targets=targets,
        weights=weights,
        n_sampled_tokens=sum(group.sampled_tokens for group in groups),
        rewards=rewards,
        advantages=advantages,
        questions=[group.question for group in groups],
        texts=[engine.tokenizer.decode(group.answers[0].tokens) for group in groups],
        statistics=statistics(drawn) | {"redrawn_samples": samples_drawn - rewards.numel()},
    )


def _pack(
    rows: Sequence[tuple[list[int], Completion, float]], context: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt, answer and advantage of each row -> tokens, targets, weights (B, T), padded on the right."""
    longest = max((len(prompt) + len(answer.tokens) - 1 for prompt, answer, _ in rows), default=0)
    rounded = -(-longest // LENGTH_STEP) * LENGTH_STEP
    shape = (len(rows), min(rounded, max(context, longest)))
    tokens = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, -1, dtype=torch.int64)
    weights = torch.zeros(shape)
    for row, (prompt, answer, advantage) in enumerate(rows):
        sequence = torch.tensor(prompt + answer.tokens)
        start = len(prompt) - 1  # the last prompt token predicts the first of the answer
        end = len(sequence) - 1
        sampled = torch.tensor(answer.sampled)
        tokens[row, :end] = sequence[:-1]
        targets[row, start:end] = torch.where(sampled, sequence[start + 1 :], -1)
        weights[row, start:end] = advantage * sampled
    return tokens, targets, weights


# ---------------------------------------------------------------- statistics


def statistics(groups: Sequence[_Group]) -> dict[str, Any]:
    """Figures of all groups drawn in a step, those that dynamic sampling dropped included.

    zero_reward_groups: no answer right; all_reward_groups: every answer right; zero_gradient_groups: all rewards
    equal, which with a format reward is not the sum of the two. wasted_token_fraction: share of sampled tokens in
    groups without gradient. cut_off: share of answers that ended at rl.max_new_tokens, or where the context was full. All
    fractions are of groups, `formatted`, `cut_off` and `accuracy` of answers. A rollout adds
    redrawn_samples: answers that dynamic sampling dropped.
    """
    useful = [group for group in groups if group.has_gradient]
    sampled_tokens = sum(group.sampled_tokens for group in groups)
    useful_tokens = sum(group.sampled_tokens for group in useful)
    answers = sum(len(group.answers) for group in groups)
    answer_tokens = sum(len(answer.tokens) for group in groups for answer in group.answers)
    return {
        "mean_reward": sum(sum(group.rewards) for group in groups) / answers,
        "accuracy": sum(sum(group.correct) for group in groups) / answers,
        "formatted": sum(sum(group.formatted) for group in groups) / answers,
        "cut_off": sum(sum(group.cut_off) for group in groups) / answers,
        **_fractions(groups),
        "wasted_token_fraction": 1 - useful_tokens / max(sampled_tokens, 1),
        "sampled_tokens": sampled_tokens,
        "groups": len(groups),
        "samples_drawn": answers,
        "gradient_samples": sum(len(group.answers) for group in useful),
        "mean_answer_tokens": answer_tokens / answers,
        "by_steps": _by_steps(groups),
    }


def _by_steps(groups: Sequence[_Group]) -> dict[str, dict[str, float]]:
    """Number of solution steps -> the figures of the groups whose question takes so many."""
    alike: dict[int, list[_Group]] = {}
    for group in sorted(groups, key=lambda group: group.steps):
        alike.setdefault(group.steps, []).append(group)
    return {str(steps): _difficulty(members) for steps, members in alike.items()}


def _fractions(groups: Sequence[_Group]) -> dict[str, float]:
    return {
        "zero_reward_groups": sum(not any(group.correct) for group in groups) / len(groups),
        "all_reward_groups": sum(all(group.correct) for group in groups) / len(groups),
        "zero_gradient_groups": sum(not group.has_gradient for group in groups) / len(groups),
    }


def _difficulty(groups: Sequence[_Group]) -> dict[str, float]:
    answers = sum(len(group.answers) for group in groups)
    accuracy = sum(sum(group.correct) for group in groups) / answers
    return {"groups": len(groups), "accuracy": accuracy, **_fractions(groups)}

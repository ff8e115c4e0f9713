"""`paribus eval sparsity`: whether RL would learn anything from a checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from paribus.config import (
    fingerprint,
    flatten,
    load_config,
)
from paribus.errors import UserError
from paribus.graph import package_digest, tree_digest
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.machine.lock import StateLock
from paribus.machine.process import set_up_process
from paribus.places import find_checkpoint, state_root
from paribus.progress import Progress


def evaluate_sparsity(checkpoint: str, questions: int, samples: int, as_json: bool) -> None:
    """Print what RL with the settings of params.yaml would find: pass@k, groups without gradient, a recommendation."""
    from paribus.data import contents
    from paribus.evaluate.gsm8k import chat_prompt, is_cut_off, score, solution_steps
    from paribus.evaluate.kept import Kept, signals_stop, stop_if
    from paribus.evaluate.sparsity import sparsity_report
    from paribus.generate import Completion, open_checkpoint
    from paribus.stages.evaluation import stoppable

    if questions < 1 or samples < 2:
        raise UserError(
            f"--questions {questions} --samples {samples}: at least 1 question and 2 samples are needed"
        )
    config = load_config()
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    folder = find_checkpoint(checkpoint)
    problems = list(contents.rows(Path("data/corpus"), "problems/validation.jsonl"))[:questions]
    name = fingerprint(
        stage="sparsity",
        weights=tree_digest([folder]),
        code=package_digest(),
        problems=problems,
        samples=samples,
        rl=flatten(config.rl),
        seed=config.seed,
        hardware=hardware.hardware_class(),
    )
    state = state_root() / "runs" / f"sparsity-{name}"
    with (
        StateLock(state),
        Interrupt(state, config.train.session_minutes) as interrupt,
        stoppable("eval sparsity", interrupt),
        Progress("sparsity", len(problems), "questions") as bar,
        Kept(state / "answers.jsonl", name) as kept,
        signals_stop(interrupt),
    ):
        engine = open_checkpoint(
            folder, hardware.device, hardware.dtype, graphs=hardware.decode_graphs
        )
        tokenizer = engine.tokenizer
        answered = {row["question"]: row for row in kept.rows}
        todo = [number for number in range(len(problems)) if number not in answered]
        before = len(problems) - len(todo)
        began = time.perf_counter()

        def keep(place: int, group: list[Completion]) -> None:
            nonlocal began
            number, now = todo[place], time.perf_counter()
            reference = problems[number]["answer"]
            row = {
                "question": number,
                "correct": sum(
                    score(tokenizer.decode(one.tokens), reference).correct for one in group
                ),
                "cut_off": sum(is_cut_off(one, tokenizer.bos) for one in group),
                "seconds": now - began,
            }
            began = now
            kept.add(row)
            answered[number] = row

        def on_step(done: int) -> None:
            stop_if(interrupt.requested)
            bar.within("answers", done, len(todo) * samples)

        engine.generate(
            [chat_prompt(tokenizer, problems[number]["question"]) for number in todo],
            samples=samples,
            max_new_tokens=config.rl.max_new_tokens,
            temperature=config.rl.temperature,
            top_k=config.rl.top_k,
            seed=config.seed,
            rows=config.rl.rollout_rows,
            ids=todo,
            on_done=keep,
            on_progress=lambda done, _: bar.count(before + done, len(problems)),
            on_step=on_step,
        )
    rows = [answered[number] for number in range(len(problems))]
    answers = len(problems) * samples
    found = sparsity_report(
        [row["correct"] for row in rows],
        [solution_steps(problem) for problem in problems],
        samples,
        samples_per_second=answers / sum(row["seconds"] for row in rows),
        group_size=config.rl.samples_per_question,
        cut_off=sum(row["cut_off"] for row in rows) / answers,
        max_new_tokens=config.rl.max_new_tokens,
    )
    (state / "answers.jsonl").unlink(missing_ok=True)  # a second request computes it again
    click.echo(json.dumps(found, indent=1) if as_json else _page(found))


def _page(found: dict[str, Any]) -> str:
    lines = [
        f"{found['questions']} questions, {found['samples']} answers each, {found['samples_per_second']:.1f} answers/s"
    ]
    lines += [
        f"pass@{key.removeprefix('pass_at_'):<3} {value:.3f}"
        for key, value in found.items()
        if key.startswith("pass_at_")
    ]
    lines += ["group size   no gradient   all wrong   all right   useful groups/hour"]
    lines += [
        f"{size:>10}   {row['zero_gradient_groups']:>11.1%}   {row['zero_reward_groups']:>9.1%}   "
        f"{row['all_reward_groups']:>9.1%}   {row['gradient_groups_per_hour']:>18,.0f}"
        for size, row in found["by_group_size"].items()
    ]
    return "\n".join([*lines, found["recommendation"]])

"""dvc.yaml declares the keys that a stage reads: a value that decides outputs is part of the stage's fingerprint."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import ROOT

from paribus import graph
from paribus.config import describe

STAGES = ROOT / "src/paribus/stages"

# Keys that a stage reads without letting them decide a byte of its outputs: how it shares the work, saves, prints, logs.
WITHOUT_EFFECT = {
    "train.activation_checkpointing",
    "train.keep_states",
    "train.log_every",
    "train.processes",
    "train.save_seconds",
    "train.session_minutes",
    "train.sharding",
    "tracking",
    "eval.core.batch_size",
    "eval.gsm8k",  # `watch` replaces every field but the two that are declared
}


def chains(function: ast.AST) -> Iterator[str]:
    """Dotted keys read from `config` or `run.config` in a function: `config.eval.bpb_tokens` -> eval.bpb_tokens."""
    inner = {
        id(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            text = ast.unparse(node).removeprefix("run.")
            if text.startswith("config."):
                yield text.removeprefix("config.")


def reached(tree: ast.Module, entry: str) -> list[ast.AST]:
    """The functions of a module that `entry` names, itself and what those name."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names, todo = {entry}, [entry]
    while todo:
        for node in ast.walk(functions[todo.pop()]):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in names:
                names.add(node.id)
                todo.append(node.id)
    return [functions[name] for name in names]


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "rl"])
def test_every_key_that_a_training_stage_reads_is_declared(stage: str, project_root: Path) -> None:
    tree = ast.parse((STAGES / "training.py").read_text(encoding="utf-8"))
    keys = {path for path, *_ in describe()}
    sections = {key.rpartition(".")[0] for key in keys}
    declared = [*graph.stage_definition(stage, project_root / "dvc.yaml").params, *WITHOUT_EFFECT]
    read = {key for function in reached(tree, stage) for key in chains(function)}
    named = {key for key in read if key in keys | sections | {"eval", "train"}}
    assert named, "nothing is read: the test no longer sees the code"
    for key in named:
        covered = any(key == name or key.startswith(f"{name}.") for name in declared)
        assert covered, f"{stage} reads {key}, which dvc.yaml does not declare"


def test_what_the_watched_problems_are_sampled_with_is_part_of_rl(project_root: Path) -> None:
    declared = graph.stage_definition("rl", project_root / "dvc.yaml").params
    assert {"eval.gsm8k.samples", "eval.gsm8k.temperature"} <= set(declared)

"""dvc.yaml declares the keys that a stage reads: a value that decides outputs is part of the stage's fingerprint."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from support.checkout import ROOT

from paribus import graph
from paribus.audit.rebuild import TRAIN
from paribus.config import load_config
from paribus.curriculum import TRAINING_STAGES
from paribus.machine.hardware import detect_hardware

STAGES = ROOT / "src/paribus/stages"

# Keys that a stage reads without letting them decide a byte of its outputs.
WITHOUT_EFFECT = {
    "eval.core.batch_size",
    "eval.gsm8k",  # the watched problems replace every field but the two that RL declares
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
            text = (
                ast.unparse(node).removeprefix("self.").removeprefix("run.").removeprefix("_run.")
            )
            if text.startswith("config."):
                yield text.removeprefix("config.")


def definitions() -> dict[str, ast.AST]:
    """The functions and classes of the modules that the training stages are written in."""
    found: dict[str, ast.AST] = {}
    for name in ("training.py", "callbacks.py", "context.py"):
        for node in ast.parse((STAGES / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
    return found


def reached(entry: str) -> list[ast.AST]:
    """The definitions that `entry` names, itself and what those name."""
    known = definitions()
    names, todo = {entry}, [entry]
    while todo:
        for node in ast.walk(known[todo.pop()]):
            if isinstance(node, ast.Name) and node.id in known and node.id not in names:
                names.add(node.id)
                todo.append(node.id)
    return [known[name] for name in names]


def test_every_evaluation_key_that_a_training_stage_reads_is_declared(project_root: Path) -> None:
    seen = set()
    for stage in TRAINING_STAGES:
        declared = graph.stage_definition(stage, project_root / "dvc.yaml").params
        for function in reached(stage):
            for key in chains(function):
                if key.startswith("eval.") and key not in WITHOUT_EFFECT:
                    seen.add(key)
                    assert key in declared, f"{stage} reads {key}, which dvc.yaml does not declare"
    assert "eval.bpb_tokens" in seen, "nothing is read: the test no longer sees the code"


def test_what_the_watched_problems_are_sampled_with_is_part_of_rl(project_root: Path) -> None:
    declared = graph.stage_definition("rl", project_root / "dvc.yaml").params
    assert {"eval.gsm8k.samples", "eval.gsm8k.temperature"} <= set(declared)


def test_what_chooses_a_stages_kernels_is_declared(project_root: Path) -> None:
    """Keys of `train` in the hardware class: DVC computes a stage again where one of them changes."""
    found = detect_hardware(load_config(project_root / "params.yaml").train)
    switched = replace(found, device="cpu", tf32=True, fp8=True, decode_graphs=True)
    kernels = {*switched.hardware_class(), "process_threads"}
    keys = {f"train.{key}" for key, field in TRAIN.items() if field in kernels}
    assert "train.fp8" in keys
    for stage in TRAINING_STAGES:
        unused = (
            {"train.fp8"} if stage == "rl" else {"train.decode_graphs"}
        )  # RL does not use it; only RL samples
        declared = graph.stage_definition(stage, project_root / "dvc.yaml").params
        assert keys - unused <= set(declared), stage

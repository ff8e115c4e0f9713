"""The planner: memory against torch's own tracker, time against public runs, profiles, bad input."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from test_cli import paribus, project  # noqa: F401

from paribus.config import Config, flatten, load_config, read_yaml, resolve_model
from paribus.errors import UserError
from paribus.model.accounting import Batch
from paribus.plan import memory, throughput
from paribus.plan.estimate import as_json, make_plan, stage_plan
from paribus.plan.tracker import track_step

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"model.depth": 3, "model.width": 128, "model.head_dim": 32, "model.seq_len": 128}
POINTS: dict[
    str, tuple[dict[str, Any], int, int, str, bool, bool]
] = {  # overrides, vocabulary, rows, type, accumulate, packed
    "default": ({}, 1024, 8, "float32", True, False),
    "checkpointing, deep": (
        {"model.depth": 8, "train.activation_checkpointing": True},
        512,
        32,
        "float32",
        False,
        False,
    ),
    "large vocabulary, bf16": ({"model.depth": 1}, 16384, 4, "bfloat16", True, False),
    "grouped heads, swiglu": (
        {"model.n_kv_heads": 1, "model.mlp": "swiglu"},
        512,
        8,
        "float32",
        False,
        False,
    ),
    "packed, windows": ({"model.window_pattern": "SL"}, 512, 8, "bfloat16", False, True),
    "adamw, one row": (
        {"optimizer.kind": "adamw", "model.seq_len": 64},
        2048,
        1,
        "float32",
        True,
        False,
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_memory_is_within_5_percent_of_torchs_tracker(name: str) -> None:
    overrides, vocab, rows, dtype, accumulate, packed = POINTS[name]
    config = load_config(ROOT / "params.yaml", SMALL | overrides)
    tracked = track_step(
        config, vocab, rows=rows, accumulate=accumulate, dtype=dtype, packed=packed
    )
    batch = Batch(rows, config.model.seq_len, 4 if dtype == "float32" else 2, packed)
    predicted = memory.training_step(
        resolve_model(config.model),
        vocab,
        config.optimizer,
        batch,
        accumulate=accumulate,
        checkpointing=config.train.activation_checkpointing,
    ).total
    assert predicted == pytest.approx(tracked.peak, rel=0.05)


def test_sixteen_rows_of_depth_16_fit_24_gb() -> None:
    """What the tracker says of it is in benchmarks/plan_memory_d16.json; here the planner, which a test above holds to it."""
    kept = json.loads((ROOT / "benchmarks/plan_memory_d16.json").read_text())["rows"]
    for row in kept:
        overrides = {"train.activation_checkpointing": row["activation_checkpointing"]}
        config = load_config(
            ROOT / "params.yaml",
            flatten(read_yaml(ROOT / "experiments/profiles/d16-rtx3090.yaml")) | overrides,
        )
        found = memory.training_step(
            resolve_model(config.model),
            65536,
            config.optimizer,
            Batch(16, 2048, 2),
            accumulate=True,
            checkpointing=row["activation_checkpointing"],
        ).total
        assert row["tracked_bytes"] < 24e9 and found == pytest.approx(
            row["tracked_bytes"], rel=0.05
        )


def test_largest_batch_fits_and_one_more_does_not() -> None:
    config = load_config(ROOT / "params.yaml", {"pretrain.batch_tokens": 2**19})
    for stage in memory.STAGES:
        budget = 700 * 2**20
        rows = memory.max_device_batch(config, stage, budget, device="cpu", dtype="float32")
        sizes = [
            memory.stage_memory(config, stage, device="cpu", dtype="float32", rows=n).total
            for n in (rows, rows + 1)
        ]
        limit = config.rl.questions_per_step * config.rl.samples_per_question
        capped = rows in (4096, limit, 2**19 // 256, 4096 // 256)
        assert sizes[0] <= budget and (capped or sizes[1] > budget)


def test_relu2_product_gives_torchs_own_bits() -> None:
    from torch.nn import functional as F

    from paribus.model.layers import ReluSquaredProduct

    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(3, 5, 48), torch.randn(24, 48)
        results = []
        for own in (True, False):
            a, b = (t.clone().requires_grad_() for t in (x, w))
            y = a.to(dtype)
            z = ReluSquaredProduct.apply(y, b) if own else F.linear(y.relu().square(), b.to(dtype))
            z.square().sum().backward()
            results.append((z.detach(), b.grad, a.grad))
        assert all(torch.equal(mine, torchs) for mine, torchs in zip(*results, strict=True))


# ---------------------------------------------------------------- time


def run_config(row: dict[str, str]) -> Config:
    """A row of measured_runs.csv as a configuration."""
    width, heads, nano = int(row["width"]), int(row["heads"]), "nanochat" in row["trainer"]
    new = "2026" in row["trainer"]
    batches = dict.fromkeys(
        ("pretrain.batch_tokens", "midtrain.batch_tokens", "sft.batch_tokens"), 2**19
    )
    return load_config(
        ROOT / "params.yaml",
        batches
        | {
            "model.depth": int(row["layers"]),
            "model.width": width,
            "model.n_heads": heads,
            "model.head_dim": width // heads,
            "model.seq_len": int(row["seq_len"]),
            "model.window_pattern": "SSSL" if new else "L",
            "model.value_embeddings": "alternate" if new else "none",
            "model.mlp": "relu2" if nano else "gelu",
            "model.tied_head": not nano,
            "model.window": None,
            "model.n_kv_heads": None,
            "model.mlp_ratio": 4.0,
            "optimizer.kind": "muon" if nano else "adamw",
            "tokenizer.vocab_size": int(row["vocab"]),
        },
    )


def test_public_runs_are_within_20_percent_and_10_in_the_median(shared_data: Path) -> None:
    errors = {}
    for row in csv.DictReader((shared_data / "measured_runs.csv").open()):
        config, gpus = run_config(row), int(row["gpus"])
        rows = int(row["device_batch"] or 8) * int(row["seq_len"])
        batch = int(row["total_batch_tokens"] or rows * gpus)
        work = throughput.step_seconds(
            resolve_model(config.model),
            int(row["vocab"]),
            config.optimizer,
            throughput.device_named(row["gpu"]),
            batch_tokens=batch,
            device_tokens=rows,
            gpus=gpus,
        )
        errors[row["id"]] = batch / work.total / float(row["tokens_per_second"]) - 1
    assert (
        max(map(abs, errors.values())) < 0.2 and statistics.median(map(abs, errors.values())) < 0.1
    ), errors
    assert abs(errors["seed-d16"]) < 0.15 and abs(errors["seed-d20"]) < 0.15


def test_the_seed_study_s_run_is_bound_by_matrix_products() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d16-rtx3090.yaml"))
    )
    plan = as_json(
        make_plan(config, throughput.device_named("RTX 3090"), dtype="bfloat16", vram=24 * 2**30)
    )
    assert plan["bound_by"] == "matrix products" and plan["hours_low"] < 59 < plan["hours_high"]
    assert plan["stages"]["pretrain"]["hours"] == pytest.approx(59, rel=0.15)
    assert plan["seed_study_hours"] == pytest.approx(52, rel=0.05)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090", "h100", "NVIDIA A100-SXM4-80GB", "NVIDIA L4", "Tesla T4", "b200"],
)
def test_cards_are_found_by_the_names_torch_gives(name: str) -> None:
    assert throughput.device_named(name).memory > 10 * 2**30


def test_more_work_takes_longer_and_a_faster_card_less() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d16-rtx3090.yaml"))
    )
    hours = {
        card: make_plan(config, throughput.device_named(card), dtype="bfloat16", vram=2**35).hours
        for card in ("RTX 4070", "RTX 3090", "RTX 4090", "A100", "H100", "B200")
    }
    assert sorted(hours.values(), reverse=True) == list(hours.values())


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "profile", sorted(path.stem for path in (ROOT / "experiments/profiles").glob("*.yaml"))
)
def test_every_profile_has_a_plan(profile: str, project: Path) -> None:  # noqa: F811
    card = (
        ["--device", "H100"]
        if profile in ("d20-speedrun", "gpt2-grade")
        else ["--device", "RTX 3090", "--vram", "24GiB"]
    )
    done = paribus("plan", profile, "--json", *card, cwd=project)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert {
        "hours",
        "hours_low",
        "hours_high",
        "bound_by",
        "memory_bytes",
        "max_device_batch_size",
    } <= plan.keys()
    for stage in memory.STAGES:
        entry = plan["stages"][stage]
        assert {
            "hours",
            "hours_low",
            "hours_high",
            "bound_by",
            "memory_bytes",
            "max_device_batch_size",
        } <= entry.keys()
        assert plan["fits"][stage] and entry["max_device_batch_size"] >= 1 and entry["hours"] > 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--device", "RTX 3080"], "RTX 3090"),
        (["--device", "3090", "--vram", "24 apples"], "24GiB"),
        (["-S", "model.dept=4", "--device", "3090"], "did you mean model.depth?"),
        (["desk", "--device", "3090"], "laptop"),
        (["-S", "model.depth", "--device", "3090"], "KEY=VALUE"),
    ],
)
def test_bad_input_is_named(arguments: list[str], said: str, project: Path) -> None:  # noqa: F811
    done = paribus("plan", *arguments, cwd=project)
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and said in done.stderr + done.stdout
    )


def test_a_device_that_is_unknown_is_an_error() -> None:
    with pytest.raises(UserError, match="devices.yaml"):
        throughput.device_named("Voodoo 2")


def test_a_probe_brings_the_estimate_to_what_steps_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    device, dtype = probe.here(config)
    found = probe.run_probe(config, device, dtype, seconds=1.0)
    after = probe.calibrated(config, device, dtype)
    assert after.correction("pretrain") == found.correction and after.spread < device.spread
    other = load_config(ROOT / "params.yaml", TINY | {"model.depth": 3})
    assert probe.calibrated(other, device, dtype) == device


def test_what_stages_took_corrects_the_next_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the median of the last ones, each stage by itself; what was never run goes by pretraining."""
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    device, dtype = probe.here(config)
    for stage, seconds in [
        ("pretrain", 20.0),
        ("pretrain", 21.0),
        ("pretrain", 500.0),
        ("rl", 7.0),
    ]:  # one was disturbed
        probe.remember(config, stage, seconds)
    after = probe.calibrated(config, *probe.here(config))

    def planned(stage: str) -> float:
        return stage_plan(config, stage, after, dtype).seconds

    assert planned("pretrain") == pytest.approx(21.0) and planned("rl") == pytest.approx(7.0)
    assert after.correction("sft") == after.correction("pretrain") != after.correction("rl")

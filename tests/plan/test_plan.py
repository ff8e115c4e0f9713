"""The planner: time against public runs, names of cards, profiles, bad input."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT, make_checkout, paribus
from support.tiny import TINY

from paribus.config import Config, flatten, load_config, read_yaml, resolve_model
from paribus.errors import UserError
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.places import state_root
from paribus.plan import memory, throughput
from paribus.plan.devices import (
    SPREAD,
    device_named,
    device_table,
    known_device,
    peak_flops,
)
from paribus.plan.estimate import as_json, make_plan, stage_plan
from paribus.recipe import Recipe


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Path:
    return make_checkout(tmp_path, project_root)


def test_relu2_product_gives_torchs_own_bits() -> None:
    from torch.nn import functional as F

    from paribus.model.kernels import ReluSquaredProduct

    product: Any = ReluSquaredProduct.apply
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.randn(3, 5, 48), torch.randn(24, 48)
        results = []
        for own in (True, False):
            a, b = (t.clone().requires_grad_() for t in (x, w))
            y = a.to(dtype)
            z = product(y, b) if own else F.linear(y.relu().square(), b.to(dtype))
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
            "model.window_pattern": "SSSL" if new and "window L" not in row["notes"] else "L",
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


CHOSEN_ON = {  # the runs that were in sight when the constants of throughput.py were chosen
    "seed-d16",
    "seed-d20",
    "nc25-d20-8xh100",
    "nc25-d20-5090",
    "nc25-d32-8xh100",
    "nc26-d24-8xh100",
    "nc26-d12-laptop",
    "mpt-125m-a100",
    "mpt-1b-a100",
}


def speed_errors(path: Path) -> dict[str, float]:
    """Run of a table of public runs -> predicted / measured tokens per second."""
    errors = {}
    for row in csv.DictReader(path.open()):
        config, gpus = run_config(row), int(row["gpus"])
        rows = int(row["device_batch"] or 8) * int(row["seq_len"])
        batch = int(row["total_batch_tokens"] or rows * gpus)
        work = throughput.step_seconds(
            resolve_model(config.model),
            int(row["vocab"]),
            config.optimizer,
            device_named(row["gpu"]),
            batch_tokens=batch,
            device_tokens=rows,
            gpus=gpus,
            checkpointing="checkpointing" in row["notes"],
        )
        errors[row["id"]] = batch / work.total / float(row["tokens_per_second"])
    return errors


def test_public_runs_lie_within_the_interval_of_a_card_that_was_not_probed(
    shared_data: Path,
) -> None:
    errors = speed_errors(shared_data / "measured_runs.csv")
    seen = {run: error for run, error in errors.items() if run in CHOSEN_ON}
    unseen = {run: error for run, error in errors.items() if run not in CHOSEN_ON}
    assert len(seen) == 9
    assert len(unseen) >= 5
    assert all(1 / SPREAD <= error <= SPREAD for error in unseen.values()), unseen
    assert all(1 / 1.2 <= error <= 1.2 for error in seen.values()), seen


def test_the_table_of_the_planning_page_is_what_the_planner_says(
    shared_data: Path, project_root: Path
) -> None:
    errors = speed_errors(shared_data / "measured_runs.csv")
    page = (project_root / "benchmarks/measurements.md").read_text(encoding="utf-8")
    for run, error in errors.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{run}` |"))
        assert f"| {error - 1:+.0%} |".replace("%", " %") in row, (row, error)


def test_the_seed_study_s_run_is_bound_by_matrix_products() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d16-rtx3090.yaml"))
    )
    plan = as_json(
        make_plan(Recipe.of(config), device_named("RTX 3090"), dtype="bfloat16", vram=24 * 2**30)
    )
    assert plan["bound_by"] == "matrix products"
    assert plan["hours_low"] < 59 < plan["hours_high"]
    assert plan["stages"]["pretrain"]["hours"] == pytest.approx(59, rel=0.15)


@pytest.mark.parametrize(
    "name, key",
    [
        ("rtx3090", "RTX 3090"),
        ("3090", "RTX 3090"),
        ("  RTX-3090 ", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx 4070ti", "RTX 4070 Ti"),
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("a100 40gb", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA B200", "B200"),
        ("Apple M1 Max", "Apple M1 Max"),
    ],
)
def test_cards_are_found_by_the_names_that_people_and_torch_give(name: str, key: str) -> None:
    assert device_named(name).name == key


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX A1000",
        "A1000",
        "RTX 3090 Ti",
        "RTX 3090 12GB",
        "RTX 4070 Ti SUPER",
        "RTX 4090 D",
        "RTX 6000",
        "NVIDIA GB200",
        "NVIDIA GH200 480GB",
        "NVIDIA H200 NVL",
        "H800",
        "H100 96GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "L40",
        "A10",
        "Apple M1",
        "RTX",
        "100",
        "",
    ],
)
def test_a_card_that_is_not_in_the_table_is_never_taken_for_another(name: str) -> None:
    with pytest.raises(UserError, match="is not in devices.yaml"):
        device_named(name)
    assert not known_device(name)


def test_a_name_of_several_memories_is_asked_back() -> None:
    with pytest.raises(UserError, match="A100 80GB, A100 40GB; say which"):
        device_named("A100")


def test_a_slice_of_a_card_is_none_of_the_table_and_all_cards_of_its_family_are_named() -> None:
    with pytest.raises(UserError, match="A100 80GB, A100 40GB"):
        device_named("NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    with pytest.raises(UserError, match="nearest are H100"):
        device_named("NVIDIA H100 80GB HBM3 MIG 1g.10gb")


def test_a_refusal_names_the_nearest_card() -> None:
    with pytest.raises(UserError, match="the nearest are RTX 3090"):
        device_named("RTX 3090 Ti")


def test_every_card_has_its_own_names_and_a_source() -> None:
    for key, entry in device_table().items():
        assert entry["source"], key
        for name in [key, *entry.get("names", [])]:
            assert device_named(name).name == key


def hardware(name: str, dtype: str) -> Hardware:
    """A card as torch names it, on a machine that has only its CPU."""
    found = detect_hardware(load_config(ROOT / "params.yaml", TINY).train)
    return dataclasses.replace(found, device_name=name, dtype=dtype)


def test_mfu_is_a_share_of_the_plans_own_figure() -> None:
    assert peak_flops(hardware("NVIDIA H100 PCIe", "bfloat16")) == 756e12
    assert peak_flops(hardware("NVIDIA H100 80GB HBM3", "bfloat16")) == 989.4e12


def test_mfu_of_a_card_that_is_not_in_the_table_is_a_share_of_what_was_measured() -> None:
    assert peak_flops(hardware("NVIDIA GeForce RTX 4090 Laptop GPU", "float32")) < 50e12
    assert peak_flops(hardware("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16")) < 50e12


def test_more_work_takes_longer_and_a_faster_card_less() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d16-rtx3090.yaml"))
    )
    hours = {
        card: make_plan(Recipe.of(config), device_named(card), dtype="bfloat16", vram=2**35).hours
        for card in ("RTX 4070", "RTX 3090", "RTX 4090", "A100 80GB", "H100", "B200")
    }
    assert sorted(hours.values(), reverse=True) == list(hours.values())


def test_looks_by_the_first_card_alone_do_not_shrink_with_more_cards() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d20-speedrun.yaml"))
    )
    hours = {}
    for gpus in (1, 8):
        plan = as_json(
            make_plan(
                Recipe.of(config),
                device_named("H100"),
                dtype="bfloat16",
                vram=80 * 2**30,
                gpus=gpus,
            )
        )
        hours[gpus] = plan["stages"]["pretrain"]
    assert hours[1]["validation_hours"] == hours[8]["validation_hours"] > 0.5
    training = {gpus: row["hours"] - row["validation_hours"] for gpus, row in hours.items()}
    assert 6 < training[1] / training[8] < 8.1


def test_core_on_the_way_is_counted() -> None:
    config = load_config(ROOT / "params.yaml", TINY)
    often = load_config(ROOT / "params.yaml", TINY | {"pretrain.core_every": 1})
    card = device_named("RTX 3090")
    seconds = [
        stage_plan(Recipe.of(each), "pretrain", card, "bfloat16").seconds
        for each in (config, often)
    ]
    assert seconds[0] < seconds[1]


def of_width(width: int, **train: Any) -> Recipe:
    shape = {
        "model.width": width,
        "model.head_dim": 128,
        "model.depth": 12,
        "model.seq_len": 2048,
        "model.mlp": "relu2",
        "pretrain.batch_tokens": 2**19,
        "train.compile": True,
    }
    keys = {f"train.{name}": value for name, value in train.items()}
    return Recipe.of(load_config(ROOT / "params.yaml", shape | keys), 32768)


def test_a_card_without_8_bit_products_is_refused() -> None:
    for card in ("RTX 3090", "A100 80GB"):
        with pytest.raises(UserError, match=f"train.fp8: true: {card} has no 8-bit products"):
            stage_plan(of_width(1024, fp8=True), "pretrain", device_named(card), "bfloat16")


def test_tf32_is_priced_as_such_and_refused_where_a_card_has_none() -> None:
    exact, rounded = (of_width(1024, dtype="float32", tf32=tf32) for tf32 in (False, True))
    card = device_named("A100 80GB", "float32")
    slow, quick = (stage_plan(one, "pretrain", card, "float32").seconds for one in (exact, rounded))
    assert quick < slow / 2
    with pytest.raises(UserError, match="train.tf32: true: T4 has no TF32"):
        stage_plan(rounded, "pretrain", device_named("T4", "float32"), "float32")


def test_8_bit_products_pay_where_they_are_wide() -> None:
    """Rounding is memory traffic in proportion to the width, and products grow with its square."""
    card = device_named("H100")
    gains = []
    for width in (768, 1664, 4096):
        plain, rounded = (
            stage_plan(of_width(width, fp8=fp8), "pretrain", card, "bfloat16").work
            for fp8 in (False, True)
        )
        assert rounded.products < plain.products
        assert rounded.traffic > plain.traffic
        gains.append(plain.total / rounded.total)
    assert gains == sorted(gains)
    assert gains[-1] > 1.1


def test_several_cards_share_the_answers_of_rl() -> None:
    config = load_config(
        ROOT / "params.yaml", flatten(read_yaml(ROOT / "experiments/profiles/d20-speedrun.yaml"))
    )
    one, eight = (
        stage_plan(Recipe.of(config), "rl", device_named("H100"), "bfloat16", gpus=gpus)
        for gpus in (1, 8)
    )
    assert eight.tokens == one.tokens
    assert eight.seconds < 0.7 * one.seconds


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "profile", sorted(path.stem for path in (ROOT / "experiments/profiles").glob("*.yaml"))
)
def test_every_profile_has_a_plan(profile: str, project: Path) -> None:
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
        assert plan["fits"][stage]
        assert entry["max_device_batch_size"] >= 1
        assert entry["hours"] > 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--device", "RTX 3080"], "RTX 3090"),
        (["--device", "3090", "--vram", "24 apples"], "24GiB"),
        (["-S", "model.dept=4", "--device", "3090"], "did you mean model.depth?"),
        (["desk", "--device", "3090"], "laptop"),
        (["--device", "NVIDIA GeForce RTX 4090 Laptop GPU"], "RTX 4090"),
        (["--device", "A100"], "say which"),
        (["--device", "3090", "--price", "nan"], "not a finite number"),
        (["-S", "model.depth", "--device", "3090"], "KEY=VALUE"),
        (["-S", "train.fp8=true", "--device", "3090"], "RTX 3090 has no 8-bit products"),
    ],
)
def test_bad_input_is_named(arguments: list[str], said: str, project: Path) -> None:
    done = paribus("plan", *arguments, cwd=project)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert said in done.stderr + done.stdout


def test_a_device_that_is_unknown_is_an_error() -> None:
    with pytest.raises(UserError, match="devices.yaml"):
        device_named("Voodoo 2")


def test_a_probe_brings_the_estimate_to_what_steps_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    device, dtype = probe.here(Recipe.of(config))
    found = probe.run_probe(Recipe.of(config), device, dtype, seconds=1.0)
    after = probe.calibrated(Recipe.of(config), device, dtype)
    assert after.correction("pretrain") == found.correction
    assert after.spread < device.spread
    plan = make_plan(Recipe.of(config), after, dtype=dtype, vram=device.memory)
    assert plan.spread_of("pretrain") == after.spread
    assert plan.spread_of("rl") == device.spread  # which the probe did not run
    several = make_plan(Recipe.of(config), after, dtype=dtype, vram=device.memory, gpus=8)
    assert several.spread_of("pretrain") == device.spread
    other = load_config(ROOT / "params.yaml", TINY | {"model.depth": 3})
    assert probe.calibrated(Recipe.of(other), device, dtype) == device


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", '{"a": 3}', '{"KEY": {"flops": "x", "bandwidth": 1, "corrections": {}}}', "{"],
)
def test_damaged_timings_are_put_aside(
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    path = state_root() / "timings.json"
    path.write_text(text)
    assert probe.prediction(Recipe.of(config), "pretrain")["predicted/seconds"] > 0
    probe.remember(Recipe.of(config), "pretrain", 2.0)
    assert (path.parent / "timings.json.damaged").read_text() == text
    assert json.loads(path.read_text())
    assert capsys.readouterr().err.count("timings.json") == 2  # one line, with the new name


@pytest.mark.parametrize("field", ["flops", "bandwidth", "corrections"])
@pytest.mark.parametrize("value", [0, -1.0])
def test_a_rate_or_time_that_no_measurement_gives_is_not_used(
    field: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided by, it would end every stage that starts."""
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    probe.remember(Recipe.of(config), "pretrain", 2.0)
    path = state_root() / "timings.json"
    [(key, known)] = json.loads(path.read_text()).items()
    known[field] = {"pretrain": [value]} if field == "corrections" else value
    path.write_text(json.dumps({key: known}))
    assert probe.prediction(Recipe.of(config), "pretrain")["predicted/seconds"] > 0
    probe.remember(Recipe.of(config), "pretrain", 2.0)
    [known] = json.loads(path.read_text()).values()
    assert known["flops"] > 0
    assert known["bandwidth"] > 0
    assert min(known["corrections"]["pretrain"]) > 0


def test_a_trials_cap_leaves_room_for_the_cards_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's limit is of its tensors alone; context and tensors together are within the budget."""
    from types import SimpleNamespace

    from paribus.tune import trial

    shares: list[float] = []
    card = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    trial.cap("cuda", 8 * 2**30)
    assert shares[0] * card.total_memory + memory.CUDA_CONTEXT == pytest.approx(8 * 2**30)


@pytest.mark.parametrize(
    "seconds, said", [(100.0, ""), (150.0, "2 minutes"), (9000.0, "2 hours"), (1e6, "12 days")]
)
def test_a_long_training_says_what_the_plan_expects_before_its_first_step(
    seconds: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from paribus.stages.training import print_long_plan

    print_long_plan("rl", {"predicted/seconds": seconds})
    printed = capsys.readouterr().err
    assert said in printed
    assert bool(printed) == bool(said)


def test_what_stages_took_corrects_the_next_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the median of the last ones, each stage by itself; what was never run goes by pretraining."""
    from paribus.plan import probe

    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "params.yaml", TINY)
    _device, dtype = probe.here(Recipe.of(config))
    for stage, seconds in [
        ("pretrain", 20.0),
        ("pretrain", 21.0),
        ("pretrain", 500.0),
        ("rl", 7.0),
    ]:  # one was disturbed
        probe.remember(Recipe.of(config), stage, seconds)
    after = probe.calibrated(Recipe.of(config), *probe.here(Recipe.of(config)))

    def planned(stage: str) -> float:
        return stage_plan(Recipe.of(config), stage, after, dtype).seconds

    assert planned("pretrain") == pytest.approx(21.0)
    assert planned("rl") == pytest.approx(7.0)
    assert after.correction("sft") == after.correction("pretrain") != after.correction("rl")

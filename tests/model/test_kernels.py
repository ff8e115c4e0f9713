"""What a card's kernels need, checked without a card: tools, block sizes, kernels for grouped queries, compiled variants."""

from __future__ import annotations

import dataclasses
import functools
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention

from paribus import config
from paribus.cli import doctor
from paribus.config import Config, resolve_model
from paribus.errors import UserError
from paribus.machine.hardware import detect_hardware
from paribus.model import attention, compiler, gpt, kernels
from paribus.model.gpt import GPT
from paribus.recipe import Recipe
from paribus.stages.context import new_model
from paribus.train import parallel
from paribus.train.optim import MuonAdamW

RTX_3090, A100, H100, T4 = 101_376, 166_912, 232_448, 65_536  # bytes of shared memory of a block
# Bytes of shared memory of FlexAttention's forward and backward kernels with blocks of (32 or 16) x as many, the larger
# of both: (padded head_dim, bytes of a number, block) -> bytes, as compiled for compute capability 8.6 by torch 2.13.
MEASURED = {
    (64, 2, 32): 22_528,
    (64, 2, 16): 10_752,
    (128, 2, 32): 43_520,
    (128, 2, 16): 22_784,
    (256, 2, 32): 83_968,
    (256, 2, 16): 41_472,
    (64, 4, 32): 45_184,
    (64, 4, 16): 21_504,
    (128, 4, 32): 86_016,
    (128, 4, 16): 42_048,
    (256, 4, 32): 168_064,  # for 9.0
    (256, 4, 16): 83_008,
}


# ---------------------------------------------------------------- tools


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without its headers, as Debian's without python3-dev."""
    found = sysconfig.get_paths
    monkeypatch.setattr(
        sysconfig, "get_paths", lambda *a, **k: found(*a, **k) | {"include": str(tmp_path)}
    )


def check(config: Config, device: str = "cuda", *, compiled: bool = False, **model: Any) -> None:
    changed = resolve_model(dataclasses.replace(config.model, **model))
    kernels.check_device(changed, device, "bfloat16", compiled=compiled, documents=False)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared memory of an RTX 3090."""
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(shared_memory_per_block_optin=RTX_3090),
    )


def test_windows_on_cuda_without_a_compiler_are_refused_before_the_first_forward(
    card: None, no_compiler: None, tiny_config: Config
) -> None:
    with pytest.raises(UserError, match=r"no C compiler \(no gcc or clang\).*apt-get install gcc"):
        check(tiny_config)
    check(tiny_config, window_pattern="L")  # plain causal attention compiles nothing
    check(tiny_config, "cpu")


def test_a_stage_on_cuda_stops_before_it_makes_a_model_where_there_is_no_compiler(
    card: None, no_compiler: None, tiny_config: Config
) -> None:
    hardware = detect_hardware(tiny_config.train)
    cuda = dataclasses.replace(hardware, device="cuda", dtype="bfloat16")
    run: Any = SimpleNamespace(stage="pretrain", config=tiny_config, hardware=cuda)
    with pytest.raises(UserError, match="no C compiler"):
        new_model(run, Recipe.of(tiny_config, 50))


def test_a_model_is_not_compiled_without_a_compiler(no_compiler: None, tiny_config: Config) -> None:
    """As the planner's probe and the tuner's trials do, without a stage."""
    with pytest.raises(UserError, match="train.compile compiles its kernels.*no C"):
        small(tiny_config).compiled()


def test_attention_outside_a_stage_names_the_missing_compiler_too(no_compiler: None) -> None:
    kernels.flex_of.cache_clear()
    with pytest.raises(UserError, match="no C compiler"), torch.inference_mode():
        kernels.compiled_flex()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_train_compile_without_a_compiler_is_refused(
    card: None, no_compiler: None, tiny_config: Config, device: str
) -> None:
    with pytest.raises(UserError, match="train.compile compiles its kernels.*no C"):
        check(tiny_config, device, compiled=True, window_pattern="L")


def test_packed_conversations_on_cuda_need_the_compiler_too(
    card: None, no_compiler: None, tiny_config: Config
) -> None:
    model = resolve_model(dataclasses.replace(tiny_config.model, window_pattern="L"))
    with pytest.raises(UserError, match="no C compiler"):
        kernels.check_device(model, "cuda", "bfloat16", compiled=False, documents=True)


def test_a_compiler_without_pythons_header_is_refused(
    card: None, no_header: None, tiny_config: Config
) -> None:
    with pytest.raises(UserError, match=r"no header of this Python.*Python.h.*python3\.\d+-dev"):
        check(tiny_config)


def test_a_compiler_that_the_environment_names_must_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "CC=no-such-compiler is not a command" in compiler.missing_tools("cuda")[0]


def test_doctor_names_a_missing_compiler_where_a_card_is_computed_on(
    no_compiler: None, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.CHECKS["compiler"]().state == "ok"  # neither a card nor train.compile
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    finding = doctor.CHECKS["compiler"]()
    assert finding.state == "broken"
    assert "no C compiler" in finding.text
    assert tiny_config.train.device == "cpu"
    monkeypatch.setattr(config, "load_config", lambda: tiny_config)
    assert doctor.CHECKS["compiler"]().state == "ok"


# ---------------------------------------------------------------- wide heads


@pytest.mark.parametrize("head_dim", [16, 48, 64, 96, 128, 129, 160, 192, 256])
@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("shared", [RTX_3090, A100, H100])
def test_every_head_has_blocks_that_fit_the_card(head_dim: int, item: int, shared: int) -> None:
    options = kernels.flex_options(head_dim, item, shared)
    padded = 1 << (head_dim - 1).bit_length()
    if options:
        (block,) = set(options.values())
        assert set(options) == set(kernels.BLOCK_NAMES)
        assert MEASURED[padded, item, block] <= shared


def test_torchs_own_blocks_are_left_where_they_fit() -> None:
    assert kernels.flex_options(128, 2, RTX_3090) == {}
    assert kernels.flex_options(256, 2, H100) == kernels.flex_options(256, 2, A100) == {}
    # measured: torch's own take 114,688 bytes for 256 numbers of bf16, and 81,920 for 128 of fp32
    assert kernels.flex_options(160, 2, RTX_3090)["BLOCK_M1"] == 32
    assert kernels.flex_options(128, 4, T4)["BLOCK_M"] == 16


def test_heads_that_fit_no_card_of_this_kind_are_refused_by_name(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "shared_memory", lambda device: T4)
    model = resolve_model(dataclasses.replace(tiny_config.model, head_dim=256))
    with pytest.raises(UserError, match="model.head_dim: heads of 256 do not fit the 65,536 bytes"):
        kernels.check_device(model, "cuda", "float32", compiled=False, documents=False)


# ---------------------------------------------------------------- grouped queries


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """(query heads, key heads, enable_gqa) of each call of scaled_dot_product_attention."""
    seen: list[tuple[int, int, bool]] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: bool) -> torch.Tensor:
        seen.append((q.shape[1], k.shape[1], options["enable_gqa"]))
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return seen


@pytest.mark.parametrize(
    ("dtype", "masked", "repeated"),
    [
        (torch.bfloat16, True, True),
        (torch.float32, True, True),
        (torch.float32, False, True),
        (torch.bfloat16, False, False),
    ],
)
def test_cuda_gets_equal_heads_where_no_fused_kernel_shares_keys(
    calls: list[tuple[int, int, bool]], dtype: torch.dtype, masked: bool, repeated: bool
) -> None:
    with FakeTensorMode():
        q = torch.empty(2, 8, 32, 16, device="cuda", dtype=dtype)
        k = torch.empty(2, 2, 32, 16, device="cuda", dtype=dtype)
        mask = torch.empty(2, 1, 32, 32, device="cuda", dtype=torch.bool) if masked else None
        attention.attend(q, k, k, mask)
    assert calls == [(8, 8, False) if repeated else (8, 2, True)]


def test_a_cpu_shares_keys_as_before(calls: list[tuple[int, int, bool]]) -> None:
    q, k = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    attention.attend(q, k, k, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert calls == [(4, 2, True)]


def test_repeated_heads_are_those_that_grouped_queries_share() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 2, 2))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    expected = attention.attend(q, k, v, mask)
    found = attention.attend(q, kernels.equal_heads(k, 6), kernels.equal_heads(v, 6), mask)
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- compiled variants


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Counts what dynamo compiles; the graphs themselves run as plain operations."""
    dynamo = pytest.importorskip("torch._dynamo")
    dynamo.reset()
    kernels.flex_of.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    start = dynamo.utils.counters["stats"].get("unique_graphs", 0)
    yield lambda: dynamo.utils.counters["stats"].get("unique_graphs", 0) - start
    dynamo.reset()
    kernels.flex_of.cache_clear()


def small(config: Config, dtype: torch.dtype = torch.float32, **model: Any) -> GPT:
    changed = dataclasses.replace(config.model, **{"depth": 2, "seq_len": 256} | model)
    made = GPT(resolve_model(changed), 50, dtype)
    made.initialise(1)
    return made


SIZES = [
    (4, 200),
    (4, 131),
    (3, 87),
    (5, 64),
    (1, 77),
    (2, 255),
    (3, 180),
    (2, 97),
    (4, 211),
    (6, 143),
]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.soak), torch.bfloat16]
)
def test_rl_compiles_a_model_twice_whatever_the_lengths(
    graphs: Callable[[], int],
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    """Once for several rows, once for a single one; and for each of these a chunk of the loss, whole and cut."""
    monkeypatch.setattr(gpt, "logit_rows", lambda vocab, device: 128)
    model = small(tiny_config, dtype, window_pattern="L")
    forward = parallel.wrap(model, "ddp", compiled=True, ragged=True)
    plain = small(tiny_config, dtype, window_pattern="L")
    for rows, length in SIZES:
        tokens = torch.randint(0, 50, (rows, length))
        weights = torch.rand(rows, length)
        loss = forward(tokens, tokens, None, weights)
        loss.backward()
        expected = plain(tokens, tokens, None, weights)
        expected.backward()
        torch.testing.assert_close(loss, expected)
    assert graphs() <= 6
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, msg=name)


@pytest.mark.soak
def test_rl_with_windows_compiles_few_models(
    graphs: Callable[[], int], tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides as above, once more for sequences that a window covers, and in parts around the making of the masks."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    choose = attention.backend
    monkeypatch.setattr(attention, "backend", lambda _, *rest: choose("cuda", *rest))
    model = small(tiny_config, window=100, window_pattern="S")
    forward = parallel.wrap(model, "ddp", compiled=True, ragged=True)
    for rows, length in SIZES:
        tokens = torch.randint(0, 50, (rows, length))
        forward(tokens, tokens, None, torch.rand(rows, length)).backward()
    assert graphs() <= 16  # parts; each has at most 4 variants of dynamo's 8


def test_pretraining_compiles_one_model_and_one_chunk(
    graphs: Callable[[], int], tiny_config: Config
) -> None:
    model = small(tiny_config, window_pattern="L")
    forward = parallel.wrap(model, "ddp", compiled=True)
    for _ in range(3):
        tokens = torch.randint(0, 50, (4, 256))
        forward(tokens, tokens).backward()
    assert graphs() == 2


def test_too_many_variants_are_an_error_and_not_a_slow_run(graphs: Callable[[], int]) -> None:
    function = kernels.compiled(lambda x: x * 2)
    with pytest.raises(UserError, match="compiled anew too often"), parallel.together():
        for dimensions in range(1, 20):
            function(torch.ones([2] * dimensions))


@pytest.mark.soak
def test_attention_of_a_whole_curriculum_stays_far_from_the_limit(
    graphs: Callable[[], int], tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretraining with validation and CORE, conversations, then RL, in one process and with CUDA's choice of kernels."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(kernels, "must_compile", lambda q: not torch.compiler.is_compiling())
    choose = attention.backend
    monkeypatch.setattr(attention, "backend", lambda _, *rest: choose("cuda", *rest))
    model = small(tiny_config, window=64, window_pattern="S", depth=2)
    variants: dict[str, int] = {}

    def run(stage: str, rows: int, length: int, packed: bool = False) -> None:
        tokens = torch.randint(0, 50, (rows, length))
        documents = (torch.arange(length).expand(rows, -1) // 40).int().contiguous()
        if stage == "train":
            model(tokens, tokens, documents if packed else None).backward()
        elif stage == "validate":
            with torch.no_grad():
                model.hidden(tokens, documents if packed else None)
        else:
            with torch.inference_mode():
                model.hidden(tokens)

    def count(stage: str, calls: list[tuple[int, int]], packed: bool = False) -> None:
        before = graphs()
        for rows, length in calls:
            run(stage, rows, length, packed)
        variants[stage] = variants.get(stage, 0) + graphs() - before

    count("train", [(4, 256)] * 2)
    count("validate", [(4, 256), (1, 256), (3, 256)])
    count("core", SIZES)
    count("train", [(4, 256)] * 2, packed=True)
    count("validate", [(4, 256), (1, 256)], packed=True)
    count("train", SIZES)
    assert max(variants.values()) <= 6  # of dynamo's 8, for each mode


# ---------------------------------------------------------------- deterministic mode


def test_filling_new_tensors_first_changes_no_bit(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deterministic mode fills them with NaN: whoever read one unwritten would differ here."""
    trained = []
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        for filled in (True, False):
            monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", filled)
            model = small(tiny_config, window=64, window_pattern="SL")
            optimizer = MuonAdamW(model, tiny_config.optimizer)
            generator = torch.Generator().manual_seed(0)
            for _ in range(3):
                tokens = torch.randint(0, 50, (2, 256), generator=generator)
                (model(tokens, tokens) / tokens.numel()).backward()
                optimizer.clip()
                optimizer.step(1.0)
                optimizer.zero_grad()
            trained.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
    finally:
        torch.set_deterministic_debug_mode(before)
    assert trained[0].isfinite().all()
    assert torch.equal(trained[0], trained[1])

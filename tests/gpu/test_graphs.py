"""Decoding by CUDA graphs: torch's capture goes through on the null device; on the emulated card the answers are the CPU's."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from support.emulated_card import emulated_card
from support.talker import PROBLEMS, codec, random_model, talker

from paribus.card.bench import SIZES, Bench
from paribus.card.checks import sampling
from paribus.chat import Options, Speaker
from paribus.config import load_config
from paribus.errors import UserError
from paribus.evaluate.gsm8k import chat_prompt
from paribus.generate import Completion, Engine
from paribus.generate.decoder import Decoder
from paribus.generate.graphs import Graphs
from paribus.generate.step import Rows, Step, eventful_tokens
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.model import cache as cache_module
from paribus.model.cache import PrefixCache
from paribus.model.gpt import save_checkpoint
from paribus.model.inference import for_inference
from paribus.stages.context import Session, open_engine


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph for every few tokens."""
    monkeypatch.setattr(cache_module, "ROUND_KEYS", 16)


# ---------------------------------------------------------------- what the emulated card shows


def doubled() -> tuple[torch.Tensor, torch.Tensor, torch.cuda.CUDAGraph]:
    """What a graph reads, where it writes twice as much, and the graph."""
    source, result = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result.copy_(2 * source)
    return source, result, graph


def test_a_capture_computes_nothing_and_a_replay_what_lies_there_by_then() -> None:
    with emulated_card():
        source, result, graph = doubled()
        assert result.tolist() == [0.0] * 3
        source.copy_(torch.tensor([3.0, 4.0, 5.0]))
        graph.replay()
        assert result.tolist() == [6.0, 8.0, 10.0]


def test_a_replay_does_not_see_a_tensor_that_took_the_place_of_another() -> None:
    with emulated_card():
        source, result, graph = doubled()
        source = source + 9
        graph.replay()
        assert result.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "waits", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu]
)
def test_waiting_in_a_capture_is_refused(waits: Callable[[torch.Tensor], Any]) -> None:
    with emulated_card():
        number = torch.ones(1, device="cuda")
        with (
            pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            waits(number)


# ---------------------------------------------------------------- answers


def with_and_without(engine: Engine, prompts: list[list[int]], **options: Any) -> list[Any]:
    """Answers on the CPU, and by graphs on the emulated card."""
    expected = engine.generate(prompts, **options)
    with emulated_card():
        there = Engine(copy.deepcopy(engine.model).to("cuda"), engine.tokenizer, "graphs")
        found = there.generate(prompts, **options)
    return [expected, found]


def lengths(answers: list[list[Completion]]) -> set[int]:
    return {len(one.tokens) for group in answers for one in group}


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (0.7, 5)])
def test_answers_by_graphs_are_the_cpus(temperature: float, top_k: int) -> None:
    """Of prompts of several lengths, with the calculator; rows end at different times, are refilled, and leave."""
    engine = talker()
    prompts = [chat_prompt(codec(), one["question"]) for one in PROBLEMS]
    expected, found = with_and_without(
        engine,
        prompts,
        samples=2,
        max_new_tokens=60,
        temperature=temperature,
        top_k=top_k,
        seed=3,
        rows=6,
    )
    assert found == expected
    assert len({len(prompt) for prompt in prompts}) > 1
    assert len(lengths(expected)) > 1
    assert sum(one.well_formed_tool_calls for group in expected for one in group) > 6


@pytest.mark.parametrize(
    "shape",
    [
        {"window_pattern": "SL", "window": 9},
        {"n_kv_heads": 1, "value_embeddings": "all", "attention_softcap": 20.0},
        {"position": "learned", "norm": "layer", "value_residual": True},
    ],
    ids=str,
)
def test_architectures_by_graphs_give_the_cpus_answers(shape: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [
        [0, *torch.randint(8, codec().vocab_size, (length,), generator=generator).tolist()]
        for length in (3, 70, 20, 1)
    ]
    engine = Engine(random_model(**shape), codec())
    expected, found = with_and_without(
        engine, prompts, samples=2, max_new_tokens=80, temperature=1.0, rows=4
    )
    assert found == expected


def test_in_bf16_graphs_compute_what_steps_of_the_same_sizes_compute() -> None:
    prompts = [chat_prompt(codec(), one["question"]) for one in PROBLEMS[:4]]
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 50, "temperature": 1.0, "rows": 6}
    with emulated_card():
        model = copy.deepcopy(talker().model).to("cuda")
        model.compute_dtype = torch.bfloat16
        by_hand, found = (
            Engine(model, codec(), sizes).generate(prompts, **options)
            for sizes in ("rounded", "graphs")
        )
    assert found == by_hand


def test_nearly_all_steps_are_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a size is known: here it takes two steps by hand, the second of them captured."""
    plain = Step.__call__
    by_hand: list[Step] = []
    steps: list[int] = []

    def counted(self: Step) -> None:
        by_hand.append(self)
        plain(self)

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(cache_module, "ROUND_KEYS", 128)
    with emulated_card():
        there = Engine(copy.deepcopy(talker().model).to("cuda"), codec(), "graphs")
        there.generate([[0, 9]], max_new_tokens=60, stop=set(), on_step=steps.append)
    assert len(by_hand) == 2
    assert len(steps) > 20


def test_a_second_call_answers_its_own_prompts() -> None:
    prompts = [chat_prompt(codec(), one["question"]) for one in PROBLEMS]
    options: dict[str, Any] = {"max_new_tokens": 50, "rows": 4}
    expected = [talker().generate(part, **options) for part in (prompts[:5], prompts[5:])]
    with emulated_card():
        there = Engine(copy.deepcopy(talker().model).to("cuda"), codec(), "graphs")
        assert [there.generate(part, **options) for part in (prompts[:5], prompts[5:])] == expected


def test_a_stream_by_graphs_is_the_cpus() -> None:
    prompt = chat_prompt(codec(), PROBLEMS[4]["question"])
    expected = list(talker().stream(prompt, max_new_tokens=60))
    with emulated_card():
        there = Engine(copy.deepcopy(talker().model).to("cuda"), codec(), "graphs")
        assert list(there.stream(prompt, max_new_tokens=60)) == expected


def test_steps_whose_tensors_were_replaced_give_other_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The proof of the proof: a decoder that assigns its next inputs in place of writing them is found out."""
    plain, kept = Decoder.step, []

    def assigning(self: Decoder) -> list[tuple[int, int, Completion]]:
        kept.append(self.rows.token)
        self.rows.token = self.rows.token.clone()
        return plain(self)

    prompts = [chat_prompt(codec(), one["question"]) for one in PROBLEMS[:3]]
    monkeypatch.setattr(Decoder, "step", assigning)
    expected, found = with_and_without(talker(), prompts, max_new_tokens=20, rows=3)
    assert expected == talker().generate(prompts, max_new_tokens=20, rows=3)
    assert found != expected


def test_the_check_of_a_card_times_both_ways_and_compares_their_answers() -> None:
    sizes = dataclasses.replace(SIZES["cpu"], new_tokens=8)
    with emulated_card():
        found = sampling(Bench("cuda", sizes))
    assert found.wrong == ""
    assert found.figures.keys() == {"rows2_tokens_per_second", "rows2_graphs_tokens_per_second"}


@pytest.mark.parametrize("graphs", [False, True])
def test_the_key_reaches_stages_and_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """From params.yaml to the engine of a stage's checkpoint, and of a chat, which answers by it."""
    changes = {"train.device": "cuda", "train.dtype": "float32", "train.decode_graphs": graphs}
    config = load_config(ROOT / "params.yaml", changes)
    monkeypatch.chdir(tmp_path)
    codec().save(tmp_path / "codec.json")
    folder = tmp_path / "checkpoints/sft"
    save_checkpoint(folder, talker().model, tmp_path / "codec.json", {"stage": "sft"})
    hardware = detect_hardware(config.train)
    stop = Interrupt(tmp_path / "state", None)
    run = Session("rl", config, hardware, "", {}, tmp_path / "state", stop)
    sizes = "graphs" if graphs else "exact"
    with emulated_card():
        assert open_engine(run, "sft").sizes == sizes
        speaker = Speaker.open("sft", config)
        assert speaker.engine.sizes == sizes
        question = {"role": "user", "content": PROBLEMS[0]["question"]}
        pieces = list(speaker.answer([question], Options(max_new_tokens=40)))
    assert "3+4" in "".join(piece.text for piece in pieces)


# ---------------------------------------------------------------- torch's own capture


def graphs_on_card(dtype: torch.dtype = torch.float32, **shape: Any) -> tuple[Graphs, PrefixCache]:
    """The steps of two rows on the null device, in which torch raises where the host waits; and their cache."""
    plain = random_model(**shape).to("cuda").eval()
    plain.compute_dtype = dtype
    model, device = for_inference(plain), plain.device
    cache = PrefixCache(model.config, 2, 1, 2, 8, 200, device, dtype, rounded=True)
    rows = Rows(2, 200, device)
    step = Step(model, cache, rows, eventful_tokens(model.vocab_size, [1], device), 1.0, 5)

    def without_waiting() -> None:
        torch.cuda.set_sync_debug_mode("error")
        step()
        torch.cuda.set_sync_debug_mode("default")

    return Graphs(without_waiting), cache


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"window_pattern": "SL", "window": 9},
        {"dtype": torch.bfloat16, "value_embeddings": "all"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error:The CUDA Graph is empty")
def test_a_step_is_captured_without_waiting_by_deterministic_kernels(shape: dict[str, Any]) -> None:
    """Three steps of each of two sizes, and again after rows have left: by hand, on the stream that captures, replayed."""
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode():
            graphs, cache = graphs_on_card(**shape)
            for _ in range(2):
                for extent in (10, 150):
                    cache.own.extent = extent
                    for _ in range(3):
                        graphs.take(cache.reach())
                graphs.forget()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@torch.inference_mode()
def test_graphs_take_memory_and_free_it_with_their_call() -> None:
    def reserved() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    held = []
    for _ in range(2):  # cuBLAS keeps what it took at the first
        graphs, cache = graphs_on_card()
        graphs.take(cache.reach())
        before = reserved()
        graphs.take(cache.reach())
        held.append(reserved() - before)
        del graphs, cache
        held.append(reserved())
    assert held[2] > 0
    assert held[1] == held[3]


def test_a_step_that_waits_is_refused_by_name_of_the_key() -> None:
    number = torch.ones(1, device="cuda")

    def waiting() -> None:
        number.add_(number.item())

    graphs = Graphs(waiting)
    graphs.take(1)
    current = torch.cuda.current_stream()
    with pytest.raises(UserError, match=r"train\.decode_graphs: .* capturing; set it to false"):
        graphs.take(1)
    assert torch.cuda.current_stream() == current

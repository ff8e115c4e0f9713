"""The engine: cached equals uncached, answers do not depend on the batch, tool results are computed and forced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.talker import PROBLEMS, codec, model_config, random_model, talker

from paribus.config import resolve_model
from paribus.data.chat import problem_conversation, render
from paribus.errors import UserError
from paribus.evaluate.gsm8k import chat_prompt
from paribus.generate import Completion, Engine, Sizes, open_checkpoint, sampling, stream_seed
from paribus.generate.decoder import Decoder
from paribus.generate.sampling import choose, uniform
from paribus.model import cache
from paribus.model.cache import KVCache, PrefixCache, Reach
from paribus.model.gpt import GPT, save_checkpoint

SHAPES = [
    {},
    {"n_kv_heads": 4},
    {"n_kv_heads": 1},
    {"window_pattern": "SL", "window": 9},
    {"position": "learned"},
    {"position": "none", "norm": "layer", "mlp": "swiglu"},
    {"value_embeddings": "all", "tied_head": True, "softcap": 0.0},
]


def prompts(count: int = 7, longest: int = 50) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [
        [0, *torch.randint(8, codec().vocab_size, (length,), generator=generator).tolist()]
        for length in lengths
    ]


def slow_greedy(model: GPT, prompt: list[int], count: int) -> list[int]:
    """One token at a time, everything recomputed, no cache."""
    sequence = list(prompt)
    stop = codec().special["<|end|>"], codec().bos
    with torch.no_grad():
        for _ in range(count):
            hidden = model.hidden(torch.tensor([sequence]))[0, -1]
            sequence.append(int(model.logits(hidden).argmax()))
            if sequence[-1] in stop:
                break
    return sequence[len(prompt) :]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cached_equals_uncached(shape: dict[str, Any]) -> None:
    model = random_model(**shape)
    batch = prompts()
    expected = [slow_greedy(model, prompt, 12) for prompt in batch]
    answers = Engine(model, codec()).generate(batch, max_new_tokens=12, rows=3, tools=False)
    assert [answer.tokens for (answer,) in answers] == expected


@pytest.mark.parametrize("shape", [{}, {"window_pattern": "SL", "window": 9}], ids=str)
def test_decoded_logits_equal_uncached_ones(
    monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    """To float tolerance, for several answers to each prompt: every logit that a token was chosen from."""
    model, batch = random_model(**shape), prompts(3)
    seen: list[torch.Tensor] = []
    logits_of = GPT.logits

    def watched(self: GPT, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(logits_of(self, hidden))
        return seen[-1]

    monkeypatch.setattr(GPT, "logits", watched)
    groups = Engine(model, codec()).generate(
        batch, samples=4, max_new_tokens=9, temperature=1.0, rows=12, tools=False
    )
    chosen_from = torch.cat([logits for logits in seen if len(logits) > 1])
    for prompt, answers in zip(batch, groups, strict=True):
        for answer in answers:
            uncached = logits_of(model, model.hidden(torch.tensor([prompt + answer.tokens])))[
                0, len(prompt) - 1 : -1
            ]
            nearest = torch.cdist(uncached, chosen_from, p=torch.inf).min(dim=1).values
            assert nearest.max() < 1e-4


ROUNDED = [
    *SHAPES,
    {"attention_softcap": 20.0, "value_residual": True, "window_pattern": "SL", "window": 9},
]


@pytest.fixture(params=ROUNDED, ids=str)
def short_rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GPT:
    """A model of each shape, and lengths rounded up to few tokens."""
    monkeypatch.setattr(cache, "ROUND_KEYS", 32)
    return random_model(**request.param)


def test_answers_of_rounded_sizes_are_those_of_exact_ones(short_rounds: GPT) -> None:
    """What a CUDA graph computes, here on a CPU."""
    exact, rounded = (Engine(short_rounds, codec(), sizes) for sizes in ("exact", "rounded"))
    options: dict[str, Any] = {"samples": 3, "max_new_tokens": 70, "temperature": 1.0, "rows": 6}
    expected = exact.generate(prompts(3), **options)
    assert rounded.generate(prompts(3), **options) == expected
    assert len({len(answer.tokens) for group in expected for answer in group}) > 1


def stepped(model: GPT, rounded: bool) -> torch.Tensor:
    """The stream (70, 4, D) of so many tokens of two answers each to two prompts."""
    config, generator = model.config, torch.Generator().manual_seed(2)
    tokens = torch.randint(8, codec().vocab_size, (4, 90), generator=generator)
    dtype = model.compute_dtype
    prefix = PrefixCache(config, 4, 3, 2, 20, 70, "cpu", dtype, rounded)
    prefilled = KVCache(config, 2, 20, "cpu", dtype)
    model.hidden(tokens[:2, :20], cache=prefilled)
    prefilled.advance(torch.tensor([20, 5]))
    slots = torch.tensor([0, 2])
    prefix.store(slots, prefilled)
    prefix.assign(torch.arange(4), slots[[0, 0, 1, 1]], torch.tensor([0, 1, 0, 1]))
    prefix.slots_used = 3
    streams = []
    for token in tokens[:, 20:].T:
        streams.append(model.hidden(token[:, None], cache=prefix)[:, 0])
        prefix.advance(torch.ones(4, dtype=torch.int64))
        prefix.extend()
    return torch.stack(streams).float()


def test_rounded_sizes_move_the_last_bits_alone(short_rounds: GPT) -> None:
    """In fp32, and in bf16, where a close call may fall otherwise."""
    model = short_rounds
    with torch.no_grad():
        for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
            model.compute_dtype = dtype
            difference = stepped(model, rounded=True) - stepped(model, rounded=False)
            assert difference.abs().max() < most
            assert difference.std() < most / 20


def test_graphs_are_refused_where_the_model_is_on_no_card(tmp_path: Path) -> None:
    """Whoever opens the checkpoint: the key reaches the engine."""
    codec().save(tmp_path / "codec.json")
    folder = tmp_path / "model"
    save_checkpoint(folder, random_model(), tmp_path / "codec.json", {})
    with pytest.raises(UserError, match=r"train\.decode_graphs: .*the model is on cpu"):
        open_checkpoint(folder, "cpu", "float32", graphs=True, recorded=False)


def test_rounded_sizes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a graph to capture: of rows that leave at the end only when half are idle, and of a few lengths."""
    met: dict[Sizes, set[tuple[int, Reach]]] = {"exact": set(), "rounded": set()}
    step = Decoder.step
    for sizes, found in met.items():

        def noted(
            self: Decoder, found: set[tuple[int, Reach]] = found
        ) -> list[tuple[int, int, Completion]]:
            finished = step(self)
            found.add((len(self.jobs), self.cache.reach()))
            return finished

        monkeypatch.setattr(Decoder, "step", noted)
        Engine(random_model(seq_len=192), codec(), sizes).generate(
            prompts(), samples=3, max_new_tokens=100, temperature=1.0, rows=16
        )
    assert len(met["exact"]) > 60
    assert len(met["rounded"]) < 16


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (0.7, 5)])
def test_answers_do_not_depend_on_rows(temperature: float, top_k: int) -> None:
    engine = Engine(random_model(window_pattern="SL", window=9), codec())
    options: dict[str, Any] = {
        "samples": 3,
        "max_new_tokens": 12,
        "temperature": temperature,
        "top_k": top_k,
        "seed": 7,
    }
    first, *others = [engine.generate(prompts(), rows=rows, **options) for rows in (1, 3, 16)]
    assert all(other == first for other in others)
    different = {tuple(answer.tokens) for group in first for answer in group}
    assert (len(different) == 7) if temperature == 0 else (len(different) > 15)


def test_answers_do_not_depend_on_the_other_prompts() -> None:
    engine = Engine(random_model(), codec())
    whole = engine.generate(prompts(), samples=2, max_new_tokens=15, temperature=1.0, seed=3)
    alone = engine.generate(
        prompts()[4:5], samples=2, max_new_tokens=15, temperature=1.0, seed=3, ids=[4]
    )
    assert alone[0] == whole[4]
    assert (
        engine.generate(
            prompts()[4:5], samples=2, max_new_tokens=15, temperature=1.0, seed=4, ids=[4]
        )[0]
        != whole[4]
    )


def test_slots_are_refilled_and_rows_leave() -> None:
    """Steps follow from the answers' total length, not from the number of rounds of the longest."""
    engine = talker()
    batch = [chat_prompt(codec(), problem["question"]) for problem in PROBLEMS]
    steps = 0
    logits_of = GPT.logits

    def count(self: GPT, hidden: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return logits_of(self, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "logits", count)
        groups = engine.generate(batch, samples=3, max_new_tokens=60, temperature=1.0, rows=6)
    lengths = [len(answer.tokens) for group in groups for answer in group]
    assert len(set(lengths)) > 5, "answers must differ in length for this to mean anything"
    assert steps < sum(lengths) / 6 + max(lengths) + 4 < len(lengths) / 6 * max(lengths)


def test_tool_results_are_computed_and_forced() -> None:
    tokenizer = codec()
    prompt = chat_prompt(tokenizer, PROBLEMS[0]["question"])
    ((answer,),) = talker().generate([prompt], max_new_tokens=60)
    text = tokenizer.decode(answer.tokens)
    assert "<|tool|>3+4<|tool_end|><|result|>7<|result_end|>" in text
    forced = [
        token for token, sampled in zip(answer.tokens, answer.sampled, strict=True) if not sampled
    ]
    assert tokenizer.decode(forced) == "<|result|>7<|result_end|>"
    assert (answer.tool_calls, answer.well_formed_tool_calls, answer.finished) == (1, 1, True)
    ids, mask = render(problem_conversation(PROBLEMS[0], "worked"), tokenizer)
    assert ids == prompt + answer.tokens, (
        "the model has learned this one; training and sampling write it alike"
    )
    assert [bool(bit) for bit in mask[len(prompt) :]] == answer.sampled, (
        "forced when sampling is unlearned in training"
    )


def test_tools_off_forces_nothing() -> None:
    prompt = chat_prompt(codec(), PROBLEMS[0]["question"])
    ((answer,),) = talker().generate([prompt], max_new_tokens=60, tools=False)
    assert all(answer.sampled)
    assert answer.tool_calls == 0


def scripted(text: str, **options: Any) -> Completion:
    """The answer of a model whose next token follows `text` by position, whatever it reads."""
    tokenizer = codec()
    script = [
        token
        for part in text.split("|")
        for token in (
            [tokenizer.special[f"<|{part[1:]}|>"]]
            if part.startswith("!")
            else tokenizer.encode(part)
        )
    ]
    prompt = [tokenizer.bos, *tokenizer.encode("Q")]
    config = model_config(
        position="learned",
        depth=1,
        width=128,
        n_kv_heads=None,
        x0_scalars=False,
        residual_scalars=False,
    )
    model = GPT(resolve_model(config), tokenizer.vocab_size)
    for parameter in model.parameters():
        parameter.data.zero_()
    for place, token in enumerate(script):
        model.positions.weight.data[len(prompt) - 1 + place, place] = 1.0
        model.head.weight.data[token, place] += 10.0
    ((answer,),) = Engine(model, tokenizer).generate([prompt], max_new_tokens=40, **options)
    return answer


def test_calls_without_a_value_get_an_empty_result() -> None:
    # The forced tokens take positions too, so the script is written around them: `..` stands under the result.
    answer = scripted("!tool|1/0|!tool_end|..|ok|!end")
    assert (
        codec().decode(answer.tokens) == "<|tool|>1/0<|tool_end|><|result|><|result_end|>ok<|end|>"
    )
    assert (answer.tool_calls, answer.well_formed_tool_calls) == (1, 0)


def test_a_close_without_a_call_is_text() -> None:
    answer = scripted("!tool_end|3|!end")
    assert codec().decode(answer.tokens) == "<|tool_end|>3<|end|>"
    assert all(answer.sampled)
    assert answer.tool_calls == 0


def test_bos_ends_an_answer_unfinished() -> None:
    answer = scripted("3|!bos|4")
    assert answer.tokens[-1] == codec().bos
    assert len(answer.tokens) == 2
    assert not answer.finished


def test_limits() -> None:
    engine = Engine(random_model(), codec())
    context = engine.model.config.seq_len
    nothing: dict[str, Any] = {"stop": set(), "max_new_tokens": 40}
    assert len(engine.generate([[0, 9]], **nothing)[0][0].tokens) <= 40
    full = engine.generate(
        [[0] + [9] * (context - 4), [9] * context, [9] * (context + 5)], **nothing
    )
    assert [len(answer.tokens) for (answer,) in full] == [3, 0, 0]
    assert not any(answer.finished for (answer,) in full)
    assert engine.generate([], max_new_tokens=5) == []


@pytest.mark.parametrize("rows", [1, 16])
def test_a_text_ends_answers_with_the_token_that_completes_it(rows: int) -> None:
    engine = Engine(random_model(), codec())
    options: dict[str, Any] = {"max_new_tokens": 20, "rows": rows, "stop": set(), "tools": False}
    endless = [answer.tokens for (answer,) in engine.generate(prompts(), **options)]
    until = [
        codec().decode(endless[0][3:5]),
        codec().decode(endless[1][6:7]),
        "a text that never comes",
    ]
    answers = [answer for (answer,) in engine.generate(prompts(), until=until, **options)]
    for tokens, answer in zip(endless, answers, strict=True):
        ends = [
            count
            for count in range(1, len(tokens) + 1)
            if any(text in codec().decode(tokens[:count]) for text in until)
        ]
        assert answer.tokens == tokens[: min(ends, default=len(tokens))]
        assert answer.finished == bool(ends)
    assert len(answers[0].tokens) <= 5
    assert len(answers[1].tokens) <= 7


def test_stream_gives_what_generate_gives() -> None:
    prompt = chat_prompt(codec(), PROBLEMS[4]["question"])
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.0, "seed": 5}
    ((answer,),) = talker().generate([prompt], **options)
    assert list(talker().stream(prompt, **options)) == answer.tokens
    assert False in answer.sampled, "a forced result is part of it"


def test_each_prompt_is_reported_once_when_it_is_done() -> None:
    reported: dict[int, list[Completion]] = {}
    progress: list[tuple[int, int]] = []
    groups = Engine(random_model(), codec()).generate(
        prompts(),
        samples=2,
        max_new_tokens=8,
        rows=3,
        on_done=reported.__setitem__,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert [reported[prompt] for prompt in range(7)] == groups
    assert progress == [(done, 7) for done in range(1, 8)]


def test_a_diverged_model_is_named() -> None:
    model = random_model()
    model.embedding.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        Engine(model, codec()).generate([[0, 9]], max_new_tokens=3)


def test_sampling_follows_the_softmax() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(1))
    for temperature, top_k in ((1.0, 0), (0.5, 0), (1.3, 7)):
        tokens, _ = choose(logits.expand(len(uniforms), -1), uniforms, temperature, top_k)
        kept = (
            logits
            if not top_k
            else logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
        )
        expected = torch.softmax(kept / temperature, dim=0)
        shares = torch.bincount(tokens, minlength=50) / len(uniforms)
        assert (shares - expected).abs().max() < 5 * (0.25 / len(uniforms)) ** 0.5
        assert not shares[expected == 0].any()


def test_close_calls_are_seen() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [1.0, 2.0, 0.0]])
    assert choose(logits, torch.zeros(2, 2), 0.0, 0)[1].tolist() == [True, False]
    level = torch.zeros(2, 16)
    on_an_edge = torch.tensor([[0.5, 0.1], [0.6, 0.1]])
    assert choose(level, on_an_edge, 1.0, 0)[1].tolist() == [True, False]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_deciding_a_token_alone_gives_the_same_token(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """If every token were a close call, no answer would change: also with forced results in it."""
    prompts = [chat_prompt(codec(), problem["question"]) for problem in PROBLEMS[:4]]
    options: dict[str, Any] = {
        "samples": 2,
        "max_new_tokens": 50,
        "temperature": temperature,
        "seed": 2,
    }
    usual = talker().generate(prompts, **options)
    alone = 0
    hidden = GPT.hidden

    def counted(self: GPT, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal alone
        alone += len(tokens) == 1 and "cache" not in options
        return hidden(self, tokens, **options)

    monkeypatch.setattr(GPT, "hidden", counted)
    for name in ("CLOSE_LOGITS", "CLOSE_BLOCK"):
        monkeypatch.setattr(sampling, name, 1e9)
    assert talker().generate(prompts, **options) == usual
    assert alone == sum(sum(answer.sampled) for group in usual for answer in group)


def test_random_streams() -> None:
    """splitmix64's published numbers for seed 1234567; different names give different, even numbers."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    seeds = torch.full((3,), 1234567)
    numbers = uniform(seeds, torch.arange(3))
    assert numbers.tolist() == [float((value >> 40) / 2**24) for value in expected]
    names = {stream_seed(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(names) == 12**3
    assert stream_seed(1, 2) != stream_seed(2, 1)
    many = uniform(torch.full((100_000,), 42), torch.arange(100_000))
    assert abs(many.mean() - 0.5) < 0.005
    assert abs(many.var() - 1 / 12) < 0.002


def test_answers_are_kept_apart_from_the_batch_size_in_fp32_alone() -> None:
    """Where rounding is coarser than the margins, deciding a token alone would cost a forward pass for nothing."""
    before = torch.get_float32_matmul_precision()
    try:
        for precision, exact in (("highest", True), ("high", False)):  # fp32, TF32
            torch.set_float32_matmul_precision(precision)
            assert sampling.rounds_finely(torch.float32, "cuda") is exact
            assert sampling.rounds_finely(torch.float32, "cpu")
            assert not sampling.rounds_finely(torch.bfloat16, "cuda")
    finally:
        torch.set_float32_matmul_precision(before)

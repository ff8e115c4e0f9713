"""Sampling speed: 16 answers to each of many questions, and beside it nanochat's engine on the same shapes.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/generate.py --rows 16 256 --threads 1 --peer /somewhere/nanochat --out generate.json

Models are random (depth 4, width 256, vocabulary 4,096) with nanochat's switches on both sides (steps.py), prompts of 80 to
120 tokens, answers of --new tokens in the mean. `equal`: all as long, the best case for an engine that waits for the
longest of its 16. `spread`: log-normal with sigma 0.25, so that the mean is two thirds of the longest of 16; sft and rl of
the default curriculum measured .60 and .71. Rounds alternate; medians. Tokens per second are tokens of answers, prefill
included in the time. `cpu` divides by processor time instead, which other processes on the machine disturb less.
`matrix_products_alone`: the tokens a second that a step would give if it were its matrix products and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from steps import Shape, machine

from paribus.config import resolve_model
from paribus.generate import Engine, decoder
from paribus.model.gpt import GPT

DEPTH, WIDTH, HEAD_DIM, VOCAB, CONTEXT, SAMPLES = 4, 256, 64, 4096, 256, 16
SPECIAL = ("<|bos|>", "<|end|>", "<|tool|>", "<|tool_end|>", "<|result|>", "<|result_end|>")


class Codec:
    """Special tokens at the end of the vocabulary; a random model calls no tool, so no text is needed."""

    special: ClassVar[dict[str, int]] = {
        name: VOCAB - 1 - place for place, name in enumerate(SPECIAL)
    }
    bos = special["<|bos|>"]

    def encode(self, text: str) -> list[int]:
        return [1 for _ in text]

    def decode(self, ids: Any) -> str:
        return "?" * len(ids)


class PeerCodec(Codec):
    """What the peer's engine asks of a tokenizer."""

    def encode_special(self, name: str) -> int:
        return {"<|assistant_end|>": VOCAB - 2}.get(name, VOCAB - 3)

    def get_bos_token_id(self) -> int:
        return self.bos


def randomise(model: torch.nn.Module) -> None:
    """Weights of trained size: logits spread by several nats, so that sampling meets a peaked distribution."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = (
                    0.35
                    if "head" in name
                    else 1.0
                    if "embed" in name or "wte" in name
                    else parameter.shape[-1] ** -0.5
                )
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


Lengths = list[list[int]]  # of each answer to each question
Run = Callable[[list[list[int]], Lengths, int], int]  # prompts, lengths, rows -> tokens of answers


def own_model(dtype: torch.dtype) -> GPT:
    shape = Shape(DEPTH, WIDTH, HEAD_DIM, VOCAB, CONTEXT, SAMPLES)
    model = GPT(resolve_model(shape.model()), VOCAB, dtype)
    randomise(model)
    return model.eval()


def floor(model: GPT, rows: int) -> float:
    """Tokens a second of the matrix products of a decoding step alone, each repeated while its weights are in the cache."""
    seconds = 0.0
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or "embedding" in name:
            continue
        weight = weight.to(model.compute_dtype)
        x = torch.randn(rows, weight.shape[1], dtype=weight.dtype)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            times.append(time.perf_counter() - start)
        seconds += min(times)  # other processes only lengthen it
    return rows / seconds


def own_engine(model: GPT) -> Run:
    engine = Engine(model, Codec())  # type: ignore[arg-type]

    def run(prompts: list[list[int]], lengths: Lengths, rows: int) -> int:
        ends_at(lengths)
        groups = engine.generate(
            prompts,
            samples=len(lengths[0]),
            max_new_tokens=max(map(max, lengths)),
            temperature=1.0,
            rows=rows,
            stop=set(),
        )
        return sum(len(answer.tokens) for group in groups for answer in group)

    return run


def ends_at(lengths: Lengths) -> None:
    """A random model does not know when to end: give each answer a limit of its own as its row is filled."""

    def admit(self: Any, rows: list[int], staged: list[tuple[int, int, int]]) -> None:
        ADMIT(self, rows, staged)
        self.rows.limit[rows] = torch.tensor(
            [lengths[prompt][sample] for prompt, sample, _ in staged]
        )

    decoder.Decoder._admit = admit


ADMIT = decoder.Decoder._admit


def peer_engine(folder: Path, dtype: str) -> Run:
    """nanochat's, question after question; it goes on until the longest answer is done."""
    os.environ["NANOCHAT_DTYPE"] = dtype
    sys.path.insert(0, str(folder))
    for name in (
        "rustbpe",
        "tiktoken",
    ):  # its tokenizers, which its engine imports and these shapes do not need
        sys.modules.setdefault(name, types.ModuleType(name))
    gpt, engine = (
        importlib.import_module("nanochat.gpt"),
        importlib.import_module("nanochat.engine"),
    )
    shape = gpt.GPTConfig(
        sequence_len=CONTEXT,
        vocab_size=VOCAB,
        n_layer=DEPTH,
        n_head=WIDTH // HEAD_DIM,
        n_kv_head=WIDTH // HEAD_DIM,
        n_embd=WIDTH,
        window_pattern="L",
    )
    with torch.device("meta"):
        model = gpt.GPT(shape)
    model.to_empty(device="cpu")
    model.init_weights()
    randomise(model)
    answering = engine.Engine(model.eval(), PeerCodec())

    def run(prompts: list[list[int]], lengths: Lengths, rows: int) -> int:
        for prompt, group in zip(prompts, lengths, strict=True):
            for _ in answering.generate(
                prompt, num_samples=len(group), max_tokens=max(group), temperature=1.0
            ):
                pass
        return sum(map(sum, lengths))

    return run


def timed(run: Callable[[], int]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return {
        "wall": tokens / (time.perf_counter() - wall),
        "cpu": tokens / (time.process_time() - cpu),
    }


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(80, 121, (count,), generator=generator).tolist()
    return [
        torch.randint(0, VOCAB - 16, (length,), generator=generator).tolist() for length in lengths
    ]


def answer_lengths(questions: int, samples: int, mean: int, sigma: float) -> Lengths:
    generator = torch.Generator().manual_seed(2)
    factors = torch.exp(sigma * torch.randn(questions, samples, generator=generator) - sigma**2 / 2)
    return [
        [min(max(round(mean * factor), 1), CONTEXT - 121) for factor in row]
        for row in factors.tolist()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 16, 128, 256], help="answers side by side"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=32,
        help="at the largest rows; fewer in proportion at others",
    )
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = own_model(getattr(torch, args.dtype))
    with torch.inference_mode():
        floors = {rows: floor(model, rows) for rows in args.rows}
    own = own_engine(model)
    contenders: dict[str, Callable[[], int]] = {}
    for kind, sigma in (("equal", 0.0), ("spread", 0.25)):
        for rows in args.rows:
            questions, samples = max(args.questions * rows // max(args.rows), 1), min(SAMPLES, rows)
            work = prompts(questions), answer_lengths(questions, samples, args.new, sigma)
            contenders[f"{kind} paribus rows={rows}"] = partial(own, *work, rows)
    if args.peer:
        peer = peer_engine(args.peer, args.dtype)
        for (kind, sigma), (samples, questions) in product(
            (("equal", 0.0), ("spread", 0.25)), ((1, 1), (SAMPLES, 4))
        ):
            work = prompts(questions), answer_lengths(questions, samples, args.new, sigma)
            contenders[f"{kind} nanochat rows={samples}"] = partial(peer, *work, samples)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(args.rounds + 1):  # the first warms up
        for name, run in contenders.items():
            speed = timed(run)
            if turn:
                rounds[name].append(speed)
            print(
                f"round {turn} {name:28} {speed['wall']:8.0f} tokens/s {speed['cpu']:8.0f} tokens/cpu-s",
                flush=True,
            )
    write(args, rounds, floors)


def write(
    args: argparse.Namespace,
    rounds: dict[str, list[dict[str, float]]],
    floors: dict[int, float],
) -> None:
    medians = {
        name: {kind: statistics.median(one[kind] for one in speeds) for kind in ("wall", "cpu")}
        for name, speeds in rounds.items()
    }
    report: dict[str, Any] = {
        "tokens_per_second": medians,
        "matrix_products_alone": floors,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "machine": machine(),
        "new_tokens": args.new,
    }
    if args.peer:
        report["ratio"] = {
            f"{kind} rows={rows}": {
                clock: medians[f"{kind} paribus rows={rows}"][clock]
                / medians[f"{kind} nanochat rows={SAMPLES}"][clock]
                for clock in ("wall", "cpu")
            }
            for kind, rows in product(("equal", "spread"), args.rows)
        }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {
                name: report[name]
                for name in ("tokens_per_second", "matrix_products_alone", "ratio")
                if name in report
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

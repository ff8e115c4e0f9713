"""The checks of a card, the most important first; each runs in a process of its own (`paribus.card.one`)."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paribus.card.bench import Bench, Figures, digest, disturb, seconds_of, speed, timed_steps
from paribus.card.peer import PeerShape, peer_step
from paribus.config import Tokenizer as TokenizerSettings
from paribus.data.tokenizer import train_tokenizer
from paribus.generate import Completion, Engine, Sizes
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.model import attention, window_kernel
from paribus.model.footprint import Batch
from paribus.places import state_root
from paribus.plan.memory import max_device_batch, training_step
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Plan, peak_memory_bytes
from paribus.train.optim import MuonAdamW
from paribus.train.trainer import RandomRows, Trainer
from paribus.tune.batch import candidates

# Of a loss near ln(vocabulary) in bf16, whose numbers have 8 bits: products round by 0.4 %, and sums of them by less.
LOSS_ERROR = {"fp8": 0.05, "bfloat16": 0.02, "float32": 1e-4}
GRADIENT_ERROR = {"fp8": 0.15, "bfloat16": 0.05, "float32": 1e-3}
MASK_ERROR = {"bfloat16": 0.03, "float32": 1e-4}  # of outputs of size 1
UPDATE_ERROR = 0.05  # of a step's length: the products of Muon's iteration round in bf16
MEMORY_ERROR = 0.15  # a plan that is off by more would promise what does not fit
FIRST, ALL = 2, 4  # steps before and after a restart
FEW = 2  # steps after which every tensor of a step is there
MANY_ROWS = 128  # of an optimiser step, so that the memory bounds a forward pass, and not the step


@dataclass(frozen=True)
class Outcome:
    """What a check found. wrong: why it failed, "" where it passed; figures: by name, for the record."""

    wrong: str = ""
    figures: Figures = field(default_factory=dict)


def loss(bench: Bench) -> Outcome:
    """Loss and gradient of one batch on the device, beside the CPU's in fp32."""
    recipe = bench.recipe(bench.sizes.depths[0], 1)
    rows = RandomRows(recipe).batch(0, range(1), 1)
    figures: Figures = {}
    expected = _loss_and_norm(Bench("cpu", bench.sizes), rows, "float32")
    wrong = []
    for dtype in bench.precisions:
        found = _loss_and_norm(bench, rows, dtype)
        errors = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
        figures |= {f"{dtype}_loss_error": errors[0], f"{dtype}_gradient_error": errors[1]}
        bench.say(figures)
        if not (errors[0] <= LOSS_ERROR[dtype] and errors[1] <= GRADIENT_ERROR[dtype]):
            wrong.append(f"{dtype}: loss off by {errors[0]:.2%}, gradient by {errors[1]:.2%}")
    return Outcome("; ".join(wrong), figures)


def _loss_and_norm(bench: Bench, rows: Any, dtype: str) -> tuple[float, float]:
    """(loss a token, norm of the gradient) of rows."""
    kind: dict[str, Any] = {"train__dtype": dtype}
    if dtype == "fp8":
        kind = {"train__dtype": "bfloat16", "train__fp8": True}
    trainer, _ = bench.trainer(bench.sizes.depths[0], 1, **kind)
    disturb(trainer.model)
    tokens, targets = (x.contiguous().to(bench.device) for x in (rows.inputs, rows.targets))
    mean = trainer.model(tokens, targets) / targets.numel()
    mean.backward()
    return float(mean.detach()), float(trainer.optimizer.clip())


def masks(bench: Bench) -> Outcome:
    """FlexAttention's block masks (windows, documents) beside dense masks, forward and backward."""
    sizes = bench.sizes
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    torch.manual_seed(0)
    shape = (2, 2, sizes.seq_len, sizes.head_dim)
    q, k, v, weight = (torch.randn(shape, device=bench.device).to(dtype) for _ in range(4))
    documents = torch.arange(sizes.seq_len, device=bench.device) * 5 // sizes.seq_len
    documents = documents.expand(2, -1).contiguous().int()
    positions = torch.arange(sizes.seq_len, device=bench.device)[None]
    errors: dict[str, float] = {}
    figures: Figures = {}
    for name, window, packed in (
        ("window", sizes.window // 2, None),
        ("documents", None, documents),
        ("both", sizes.window // 2, documents),
    ):
        block = attention.block_mask(sizes.seq_len, window, packed, q.device)
        dense = attention.dense_mask(positions, window, packed, None)
        pairs = zip(
            _attended(q, k, v, block, weight), _attended(q, k, v, dense, weight), strict=True
        )
        errors[name] = max(float((a - b).abs().max()) for a, b in pairs)
        figures[f"{name}_error"] = errors[name]
        bench.say(figures)
    if bench.device == "cuda":
        recipe = bench.recipe(sizes.depths[0], 1)
        figures |= dataclasses.asdict(window_kernel.measure(recipe.architecture))
    bound = MASK_ERROR[str(dtype).removeprefix("torch.")]
    off = [f"{name} by {error:.3g}" for name, error in errors.items() if not error <= bound]
    return Outcome("off: " + ", ".join(off) if off else "", figures)


def _attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object, weight: torch.Tensor
) -> list[torch.Tensor]:
    """The output of attention and the gradients of its three inputs, in fp32; on a CPU Flex has no backward pass."""
    if q.device.type == "cpu":
        return [attention.attend(q, k, v, mask).float()]
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = attention.attend(q, k, v, mask)
    out.backward(weight)
    gradients = [x.grad.float() for x in (q, k, v) if x.grad is not None]
    return [out.detach().float(), *gradients]


def deterministic(bench: Bench) -> Outcome:
    """The same steps twice, in deterministic mode: the same weights, to the bit."""
    hashes = []
    for _ in range(2):
        trainer, _ = _proof_trainer(bench)
        timed_steps(bench, trainer, warmup=0, steps=ALL)
        hashes.append(digest(trainer.model))
    wrong = "" if hashes[0] == hashes[1] else "two runs of the same steps end in different weights"
    return Outcome(wrong, {"weights_sha256": hashes})


def _proof_trainer(bench: Bench) -> tuple[Trainer, Hardware]:
    """For steps whose results are compared to the bit."""
    return bench.trainer(bench.sizes.depths[0], bench.sizes.proof_rows, train__deterministic=True)


def resume(bench: Bench) -> Outcome:
    """A run that is stopped, saved and continued ends in the weights of one that is not."""
    with tempfile.TemporaryDirectory(prefix="paribus-card-") as name:
        whole = _run(bench, Path(name) / "whole", ALL)
        _run(bench, Path(name) / "cut", FIRST)
        cut = _run(bench, Path(name) / "cut", ALL)
    wrong = "" if whole == cut else "a continued run ends in different weights"
    return Outcome(wrong, {"weights_sha256": [whole, cut]})


def _run(bench: Bench, folder: Path, steps: int) -> str:
    """Train to a step, from the newest state in a folder; the hash of the weights."""
    trainer, _ = _proof_trainer(bench)
    store = StateStore(folder, 1)
    plan = Plan(steps, lambda step: 1.0, 1.0, 1.0, save_seconds=0.0)
    loop = trainer.loop(store, Interrupt(), [], plan)
    state = store.load()
    if state is not None:
        loop.restore(state)
    loop.run()
    store.wait()
    return digest(trainer.model)


def speed_of(place: int) -> Callable[[Bench], Outcome]:
    """The check of the speed at one of the bench's depths."""

    def check(bench: Bench) -> Outcome:
        """Tokens per second, MFU and memory of compiled steps."""
        depths = bench.sizes.depths
        return _speed(bench, depths[min(place, len(depths) - 1)], deterministic=False)

    return check


def determinism_cost(bench: Bench) -> Outcome:
    """The speed again with deterministic kernels; compiled, the same steps twice end in the same weights."""
    return _speed(bench, bench.sizes.depths[0], deterministic=True)


def speed_in_fp8(bench: Bench) -> Outcome:
    """The speed of the large model with 8-bit products, where the card has them."""
    if "fp8" not in bench.precisions:
        return Outcome("", {"fp8": "this device has none"})
    return _speed(bench, bench.sizes.depths[-1], deterministic=False, fp8=True)


def _speed(bench: Bench, depth: int, deterministic: bool, fp8: bool = False) -> Outcome:
    rows = bench.rows(depth)
    if not rows:
        return Outcome("", {"depth": depth, "rows": 0})  # the card is too small for this model
    trainer, hardware = bench.trainer(
        depth,
        rows,
        train__compile=bench.compiles,
        train__deterministic=deterministic,
        train__fp8=fp8,
    )
    seconds = timed_steps(bench, trainer)
    figures = {"depth": depth, **speed(trainer.recipe, hardware, seconds)}
    figures["peak_memory_bytes"] = peak_memory_bytes(trainer.model.device)
    bench.say(figures)
    if not deterministic:
        return Outcome("", figures)
    hashes = []
    for _ in range(2):
        trainer.start_over()
        timed_steps(bench, trainer, warmup=0, steps=FEW)
        hashes.append(digest(trainer.model))
    figures["weights_sha256"] = hashes
    same = hashes[0] == hashes[1]
    return Outcome("" if same else "two runs of the same steps end in different weights", figures)


def peer(bench: Bench) -> Outcome:
    """Tokens per second and MFU of nanochat at each depth, on tokens that are on the card already."""
    assert bench.peer is not None, "asked for with a checkout alone"
    sizes = bench.sizes
    figures: Figures = {}
    for depth in sizes.depths:
        rows = bench.rows(depth)
        if not rows:
            continue
        recipe = bench.recipe(depth, rows)
        hardware = detect_hardware(recipe.config.train)
        shape = PeerShape(
            depth,
            64 * depth,
            sizes.head_dim,
            sizes.vocab_size,
            sizes.seq_len,
            rows,
            window_pattern="SSSL",
        )
        step, _ = peer_step(bench.peer, shape, bench.device, bench.compiles, sizes.passes)
        for _ in range(sizes.warmup):
            step()
        seconds: list[float] = []
        while len(seconds) < sizes.steps and sum(seconds) < sizes.seconds:
            seconds.append(seconds_of(step, bench))
        for name, value in speed(recipe, hardware, seconds).items():
            figures[f"d{depth}_{name}"] = value
        bench.say(figures)
    return Outcome("", figures)


def memory(bench: Bench) -> Outcome:
    """The most that the allocator handed out in a step, beside the plan, over a grid of depths and rows."""
    figures: Figures = {}
    wrong = []
    for depth, rows in bench.sizes.grid:
        if bench.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer, hardware = bench.trainer(depth, rows, model__window_pattern="L")
        timed_steps(bench, trainer, warmup=FEW, steps=1)
        measured, planned = peak_memory_bytes(trainer.model.device), _planned(trainer, rows)
        name = f"d{depth}_rows{rows}"
        figures |= {f"{name}_measured_bytes": measured, f"{name}_planned_bytes": planned}
        bench.say(figures)
        del trainer
        if hardware.device == "cuda" and abs(measured / planned - 1) > MEMORY_ERROR:
            wrong.append(f"d{depth} with {rows} rows takes {measured / planned:.2f} of the plan")
    return Outcome("; ".join(wrong), figures)


def _planned(trainer: Trainer, rows: int) -> int:
    """Bytes of a step by the planner, without its reserve."""
    recipe, model = trainer.recipe, trainer.model
    batch = Batch(
        rows,
        recipe.architecture.seq_len,
        model.compute_dtype.itemsize,
        cuda=model.device.type == "cuda",
    )
    planned = training_step(
        recipe.architecture,
        recipe.vocab_size,
        recipe.config.optimizer,
        batch,
        accumulate=recipe.rows("pretrain") > rows,
        checkpointing=False,
    )
    return planned.tensors


def device_batch(bench: Bench) -> Outcome:
    """Whether the largest device batch that the planner promises fits, and the speed of smaller ones."""
    sizes = bench.sizes
    depth = sizes.depths[0]
    recipe = bench.recipe(depth, MANY_ROWS)
    trainer, hardware = bench.trainer(depth, 1)
    total = bench.free_memory()
    most = max_device_batch(recipe, "pretrain", total, device=bench.device, dtype=hardware.dtype)
    tried = candidates(recipe.rows("pretrain"), most)[-3:] if most else []
    figures: Figures = {"planned": most}
    wrong = ""
    for rows in tried:
        batch = RandomRows(recipe).batch(0, range(rows), rows)
        tokens, targets = (x.contiguous().to(bench.device) for x in (batch.inputs, batch.targets))

        def pass_through(tokens: torch.Tensor = tokens, targets: torch.Tensor = targets) -> None:
            (trainer.model(tokens, targets) / targets.numel()).backward()

        try:
            pass_through()
            seconds = seconds_of(pass_through, bench)
        except torch.OutOfMemoryError:
            wrong = f"{rows} rows, of {most} that the plan promises, are out of memory"
            break
        trainer.optimizer.zero_grad()
        figures[f"rows{rows}_tokens_per_second"] = tokens.numel() / seconds
        bench.say(figures)
    return Outcome(wrong, figures)


def sampling(bench: Bench) -> Outcome:
    """Tokens per second of answers decoded side by side, and by CUDA graphs, whose answers must be the same."""
    trainer, _ = bench.trainer(bench.sizes.depths[0], 1)
    disturb(trainer.model)
    settings = TokenizerSettings(270, 1, 0.1, kind="bpe", pre_split="gpt4")
    tokenizer = train_tokenizer(["one and one is two"] * 9, settings)

    def answer(sizes: Sizes, rows: int, new_tokens: int) -> list[Completion]:
        """Answers side by side."""
        engine = Engine(trainer.model.eval(), tokenizer, sizes)
        options: dict[str, Any] = {"temperature": 1.0, "stop": set(), "tools": False}
        options |= {"samples": rows, "max_new_tokens": new_tokens}
        return engine.generate([[1, 2, 3, 4]], **options)[0]

    # Graphs compute what steps of the same sizes compute, to the bit; exact sizes round otherwise. A CPU has no graphs.
    timed: Sizes = "graphs" if bench.device == "cuda" else "rounded"
    figures: Figures = {}
    for rows in bench.sizes.samples:
        found = {}
        for sizes in ("exact", timed):
            answer(sizes, rows, 2)  # what a process does once is in no figure
            began = time.perf_counter()
            found[sizes] = answer(sizes, rows, bench.sizes.new_tokens)
            tokens = sum(len(one.tokens) for one in found[sizes])
            name = f"rows{rows}" if sizes == "exact" else f"rows{rows}_{sizes}"
            figures[f"{name}_tokens_per_second"] = tokens / (time.perf_counter() - began)
            bench.say(figures)
        expected = answer("rounded", rows, bench.sizes.new_tokens)
        if found[timed] != expected:
            return Outcome(f"{rows} answers by graphs are not those of steps one by one", figures)
    return Outcome("", figures)


def saving(bench: Bench) -> Outcome:
    """How long a save holds up training, and how long it takes to be on disk."""
    trainer, _ = bench.trainer(bench.sizes.depths[0], bench.sizes.proof_rows)
    timed_steps(bench, trainer, warmup=1, steps=1)
    tensors: dict[str, torch.Tensor] = {}
    tensors |= {f"model.{name}": p.detach() for name, p in trainer.model.named_parameters()}
    tensors |= trainer.optimizer.full_state()
    with tempfile.TemporaryDirectory(prefix="paribus-card-", dir=state_root()) as name:
        store = StateStore(Path(name), 1)
        stalled = []
        began = time.perf_counter()
        for step in range(1, FEW + 1):  # the first makes the pinned memory that later ones reuse
            save = functools.partial(store.save, step, tensors, {})
            stalled.append(seconds_of(save, bench))
            store.wait()
        written = (time.perf_counter() - began) / FEW
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    figures = {
        "first_stall_seconds": stalled[0],
        "stall_seconds": stalled[-1],
        "write_seconds": written,
        "state_bytes": size,
    }
    return Outcome("", figures)


def update(bench: Bench) -> Outcome:
    """The optimiser's step, compiled and not, from the same weights and gradients."""
    trainer, _ = bench.trainer(bench.sizes.depths[0], 1)
    model, settings = trainer.model, trainer.recipe.config.optimizer
    disturb(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [torch.randn_like(one) for one in before]
    figures: Figures = {}
    ends: list[list[torch.Tensor]] = []
    for compiled in (False, bench.compiles):
        for parameter, value, gradient in zip(model.parameters(), before, gradients, strict=True):
            parameter.detach().copy_(value)
            parameter.grad = gradient.clone()
        optimizer = MuonAdamW(model, settings, compiled=compiled)
        step = functools.partial(optimizer.step, 1.0)
        first = seconds_of(step, bench)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
        later = [seconds_of(step, bench) for _ in range(ALL)]
        name = "compiled" if compiled else "uncompiled"
        figures |= {f"{name}_first_seconds": first, f"{name}_seconds": statistics.median(later)}
        bench.say(figures)
    moved = distance(before, ends[0])
    error = distance(*ends) / moved if moved else math.nan
    figures["error"] = error
    wrong = "" if error <= UPDATE_ERROR else f"a compiled step ends {error:.1%} of a step off"
    return Outcome(wrong, figures)


def distance(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Between two lists of tensors, as one vector each."""
    norms = [torch.linalg.vector_norm(a - b) for a, b in zip(ones, others, strict=True)]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


@dataclass(frozen=True)
class Check:
    """A check: what it is called, what it says in a page, how long it may take, and what to change where it fails."""

    name: str
    title: str
    run: Callable[[Bench], Outcome]
    cure: str
    seconds: int = 60  # of ten minutes; with more minutes it may take as much longer


REPEATS = "train.compile: false, then train.deterministic: false"
SMALLER = "pretrain.device_batch_size: smaller, or train.compile: false"
NO_FP8 = "train.fp8: false"
CHECKS = (
    Check(
        "loss",
        "Loss and gradient of one batch beside the CPU's in fp32",
        loss,
        "train.dtype: float32; if that is off too, another build of torch",
        90,
    ),
    Check(
        "masks",
        "FlexAttention's block masks (windows, documents) beside dense masks, forward and backward",
        masks,
        "model.window_pattern: L for windows; train.device: cpu for packed rows (midtrain, sft)",
        90,
    ),
    Check(
        "deterministic",
        "The same steps twice, to the bit, in deterministic mode",
        deterministic,
        REPEATS,
    ),
    Check("resume", "A run that was stopped, saved and continued, to the bit", resume, REPEATS),
    Check("speed_small", "Speed of the small model, compiled", speed_of(0), SMALLER, 150),
    Check("speed_large", "Speed of the large model, compiled", speed_of(1), SMALLER, 180),
    Check(
        "peer",
        "nanochat's speed at the same depths and rows",
        peer,
        "the checkout of nanochat or its dependencies: nothing of ours is wrong",
        300,
    ),
    Check(
        "memory",
        "The most memory of a step beside the plan, over depths and rows",
        memory,
        "pretrain.device_batch_size: smaller than `paribus plan` says",
    ),
    Check(
        "device_batch",
        "Whether the largest device batch that the plan promises fits, and the speed of smaller ones",
        device_batch,
        "pretrain.device_batch_size: smaller",
    ),
    Check(
        "sampling",
        "Speed of answers decoded side by side, and by CUDA graphs, which must give the same ones",
        sampling,
        "train.decode_graphs: false; rl.rollout_rows and eval.gsm8k.rows: smaller",
    ),
    Check(
        "saving",
        "How long a save holds training up, and how long it takes to be on disk",
        saving,
        "train.save_seconds: larger",
    ),
    Check(
        "determinism_cost",
        "Speed of the small model with deterministic kernels, compiled, and whether steps repeat",
        determinism_cost,
        "train.deterministic: false",
        150,
    ),
    Check("speed_fp8", "Speed of the large model in fp8, compiled", speed_in_fp8, NO_FP8, 150),
    Check(
        "update",
        "The optimiser's step, compiled beside uncompiled, of the small model",
        update,
        "train.compile: false",
        90,
    ),
)

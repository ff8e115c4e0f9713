"""Memory of every stage from the config alone, and the largest device batch that fits a budget.

Each layer's tensors are counted in `model/footprint.py` and `model/backward_footprint.py`; here they are put together along a
step's timeline: the end of the forward pass, the loss, each block's backward pass, the last gradient, the optimiser. The peak
is the largest of them. What no tensor accounts for (the CUDA context, the allocator's rounding, the process itself) is the
reserve.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from paribus.config import Architecture, Conversations, Optimizer
from paribus.curriculum import TRAINING_STAGES
from paribus.errors import UserError
from paribus.model import accounting, backward_footprint, footprint, optimizer_footprint
from paribus.model.footprint import Batch
from paribus.model.shapes import applied_blocks, has_value_embedding, logit_rows
from paribus.plan import library
from paribus.recipe import Recipe

PROMPT_TOKENS = 256  # of a word problem with the chat format: GSM8K's longest is 240 with a 65,536-word vocabulary
# Context, cuBLAS workspaces, kernels' code: 450 to 600 MiB as nvidia-smi shows it idle.
CUDA_CONTEXT = 600 * 2**20
CUDA_ROUNDING = 0.03  # of the tensors: the caching allocator's blocks that nothing fits
# On a CPU, measured of pretraining stages (benchmarks/plan_memory.py --only cpu): what a stage holds before it trains (Python,
# torch, the sources it has read, the memory it has timed copies in); and what glibc's malloc holds besides living tensors, in
# shares of them: blocks freed between two that live are of no use to a larger tensor.
CPU_PROCESS = 350 * 2**20
CPU_HEAP = 0.45
STAGES = (*TRAINING_STAGES, "evaluation")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a stage, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int  # the loss's workspace, or the sampled tokens' logits
    cache: int  # keys and values of rollouts
    update: int  # temporaries of the optimiser, where its step is the peak
    reserve: int

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return sum(dataclasses.astuple(self))

    @property
    def tensors(self) -> int:
        """Without the reserve: what `tracker.track_step` counts."""
        return self.total - self.reserve


def training_step(
    config: Architecture,
    vocab_size: int,
    optimizer: Optimizer,
    batch: Batch,
    *,
    accumulate: bool,
    checkpointing: bool,
) -> Memory:
    """The peak of one optimiser step, without reserve.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
        optimizer: its settings.
        batch: the rows of one forward pass.
        accumulate: the step has several forward passes, so that gradients are there during a forward pass.
        checkpointing: blocks are computed again in the backward pass.
    """
    counts = accounting.parameters(config, vocab_size)
    weights = 4 * counts["total"] + 4 * config.seq_len * config.head_dim  # and the rotary table
    foreign = library.memory_of(config, optimizer)
    state = optimizer_footprint.optimizer_state(config, vocab_size, optimizer) + foreign.state
    update = optimizer_footprint.optimizer_update(config, vocab_size, optimizer, batch)
    kept = _kept(config, batch, checkpointing)
    chunk = logit_rows(vocab_size, "cuda" if batch.cuda else "cpu")
    predicted = dataclasses.replace(batch, rows=batch.rows * (1 + config.future_tokens))
    loss, loss_backward = footprint.cross_entropy(config, vocab_size, predicted, chunk)
    kept_of_future = footprint.future(config, batch)
    gradients = 4 * counts["total"]
    present = gradients if accumulate else 0
    given = 16 * batch.tokens  # tokens and targets
    of_embedding = 4 * config.width * (vocab_size * accumulate + batch.tokens)
    if footprint.attends_by_bands(config, batch):
        of_embedding += footprint.masks(config, batch)
    last_block = footprint.block_forward(config, batch)
    if not footprint.block_keeps_input(config, batch):
        last_block += footprint.stream(config, batch)
    moments = [
        Memory(weights, present, state, kept + last_block, 0, 0, 0, 0),
        Memory(weights, present, state, kept, loss + kept_of_future, 0, 0, 0),
        Memory(weights, present, state, kept, loss_backward + kept_of_future, 0, 0, 0),
        *(
            Memory(weights, made, state, left, 0, 0, 0, 0)
            for made, left in _backward(config, counts, batch, accumulate, checkpointing)
        ),
        Memory(weights, gradients, state, of_embedding + given, 0, 0, 0, 0),
        Memory(weights, gradients, state, given, 0, 0, max(update, foreign.update), 0),
    ]
    return max(moments, key=lambda moment: moment.total)


def _kept(config: Architecture, batch: Batch, checkpointing: bool) -> int:
    """At the end of the forward pass: with checkpointing of each block its input alone."""
    if checkpointing:
        blocks = footprint.block_inputs(config, batch, applied_blocks(config))
    else:
        blocks = sum(footprint.block(config, layer, batch) for layer in range(config.depth))
        blocks *= config.recurrence
    return footprint.outside_blocks(config, batch) + blocks


def _backward(
    config: Architecture,
    counts: dict[str, int],
    batch: Batch,
    accumulate: bool,
    checkpointing: bool,
) -> Iterator[tuple[int, int]]:
    """(gradients, activations) inside each block's backward pass, the last block first.

    With checkpointing a block is there as after its second forward pass, at whose end the gradient of its output waits, and of
    those before it their inputs are. From the second one on, blocks have left a gradient for x0.
    """
    stream = footprint.stream(config, batch)
    blocks = [footprint.block(config, layer, batch) for layer in range(config.depth)]
    blocks *= config.recurrence
    again = stream + footprint.block_forward(config, batch) if checkpointing else 0
    for applied in reversed(range(len(blocks))):
        left = footprint.outside_blocks(config, batch)
        if checkpointing:
            inputs = applied if footprint.block_keeps_input(config, batch) else applied + 1
            left += footprint.block_inputs(config, batch, inputs) + blocks[applied]
        else:
            left += sum(blocks[: applied + 1])
        if config.x0_scalars and applied < len(blocks) - 1:
            left += stream
        inside = backward_footprint.block_backward(
            config, applied % config.depth, batch, accumulate
        )
        yield _gradients(config, counts, applied, accumulate), left + max(inside, again)


def _gradients(config: Architecture, counts: dict[str, int], applied: int, accumulate: bool) -> int:
    """Gradients when the backward pass reaches block `applied`: those of earlier passes, or those made so far.

    Where blocks are applied several times, their gradients wait for the first application, beside those of earlier passes.
    """
    valued = [has_value_embedding(config, layer) for layer in range(config.depth)]
    numbers = counts["total"] if accumulate else counts["head"]
    for layer in range(config.depth):
        begun = applied < applied_blocks(config) - config.depth + layer
        settled = applied < layer
        if begun and not (accumulate and settled):
            numbers += counts["matrices"] // config.depth
            numbers += valued[layer] * counts["value_embeddings"] // max(sum(valued), 1)
    return 4 * numbers


def inference(
    config: Architecture, vocab_size: int, rows: int, length: int, itemsize: int
) -> tuple[int, int]:
    """(activations, logits) of a forward pass without gradients.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
        rows: of the batch, in sequences and tokens.
        length: of the batch, in sequences and tokens.
        itemsize: bytes of a number.
    """
    stream = rows * length * config.width * itemsize
    inner = rows * length * itemsize * 2 * int(config.mlp_ratio * config.width)
    chunk = 4 * vocab_size * min(logit_rows(vocab_size, "cuda"), rows * length)
    return 4 * stream + inner, 2 * chunk + (
        vocab_size * config.width * itemsize if itemsize < 4 else 0
    )


# ---------------------------------------------------------------- stages


def stage_memory(
    recipe: Recipe, stage: str, *, device: str, dtype: str, rows: int | None = None
) -> Memory:
    """Peak of a stage on `device` (cuda, mps or cpu) with products in `dtype`.

    rows: in place of the recipe's device batch (of `evaluation`: the answers side by side).
    """
    item = 4 if dtype == "float32" else 2
    if stage == "evaluation":
        memory = _evaluation(recipe, item, rows)
    elif stage == "rl":
        memory = _policy_gradient(recipe, item, device == "cuda", rows)
    else:
        memory = _supervised(recipe, stage, item, device == "cuda", rows)
    return dataclasses.replace(memory, reserve=_reserve(memory.total, device))


def _supervised(recipe: Recipe, stage: str, item: int, cuda: bool, rows: int | None) -> Memory:
    """A step of pretrain, midtrain or sft."""
    schedule = recipe.supervised_schedule(stage)
    rows = rows or schedule.device_batch_size
    step_rows = recipe.rows(stage)
    batch = Batch(
        min(rows, step_rows),
        recipe.architecture.seq_len,
        item,
        packed=isinstance(schedule, Conversations) and not schedule.attend_across,
        cuda=cuda,
    )
    return _step_of(recipe, batch, accumulate=step_rows > rows)


def _policy_gradient(recipe: Recipe, item: int, cuda: bool, rows: int | None) -> Memory:
    """A step of rl: sampling its answers, or learning from them, whichever takes more."""
    rl = recipe.config.rl
    rows = rows or rl.device_batch_size
    length = min(PROMPT_TOKENS + rl.max_new_tokens, recipe.architecture.seq_len)
    samples = rl.questions_per_step * rl.samples_per_question
    step = _step_of(recipe, Batch(rows, length, item, cuda=cuda), accumulate=samples > rows)
    return max(step, _rollout(recipe, item), key=lambda memory: memory.total)


def _step_of(recipe: Recipe, batch: Batch, *, accumulate: bool) -> Memory:
    """One optimiser step of a recipe."""
    return training_step(
        recipe.architecture,
        recipe.vocab_size,
        recipe.config.optimizer,
        batch,
        accumulate=accumulate,
        checkpointing=recipe.config.train.activation_checkpointing,
    )


def _rollout(recipe: Recipe, item: int) -> Memory:
    """Sampling answers, with the optimiser's state waiting."""
    rl, model, vocab = recipe.config.rl, recipe.architecture, recipe.vocab_size
    rows = min(rl.rollout_rows, rl.questions_per_step * rl.samples_per_question)
    optimizer = recipe.config.optimizer
    state = optimizer_footprint.optimizer_state(model, vocab, optimizer)
    state += library.memory_of(model, optimizer).state
    return Memory(
        4 * recipe.parameters["total"],
        0,
        state,
        *_decoding(model, vocab, item, rows, rl.samples_per_question, rl.max_new_tokens),
        0,
        0,
    )


def _decoding(
    model: Architecture, vocab: int, item: int, rows: int, samples: int, new: int
) -> tuple[int, int, int]:
    """(activations, logits, cache): prompts kept once, twice as many as are answered; answers `rows` at a time."""
    slots = 2 * -(-rows // samples) + 16
    prompt, new = min(PROMPT_TOKENS, model.seq_len), min(new, model.seq_len)
    cache = footprint.cache(model, slots, prompt, item) + footprint.cache(model, rows, new, item)
    activations, _ = inference(model, vocab, max(4096 // prompt, 1), prompt, item)  # prefill
    return (
        activations,
        4 * 4 * rows * vocab + footprint.inference_weights(model, vocab, item),
        cache,
    )


def _evaluation(recipe: Recipe, item: int, rows: int | None) -> Memory:
    """CORE, bits per byte and word problems: the largest of them."""
    gsm, core = recipe.config.eval.gsm8k, recipe.config.eval.core
    model, vocab = recipe.architecture, recipe.vocab_size
    weights = 4 * recipe.parameters["total"]
    answers = Memory(
        weights,
        0,
        0,
        *_decoding(model, vocab, item, rows or gsm.rows, gsm.samples, gsm.max_new_tokens),
        0,
        0,
    )
    scored = max(rows or core.batch_size, 1)
    forward = Memory(weights, 0, 0, *inference(model, vocab, scored, model.seq_len, item), 0, 0, 0)
    return max(answers, forward, key=lambda memory: memory.total)


def _reserve(tensors: int, device: str) -> int:
    if device == "cuda":
        return CUDA_CONTEXT + round(CUDA_ROUNDING * tensors)
    return CPU_PROCESS + round(CPU_HEAP * tensors)


def max_device_batch(recipe: Recipe, stage: str, budget: int, *, device: str, dtype: str) -> int:
    """The most rows of a forward pass that stay within `budget` bytes; 0: not even one does.

    No more than the rows of an optimiser step: a larger device batch would not be used.

    recipe: the model and the optimiser. stage: whose rows are meant. dtype: of the forward pass.
    """
    if stage == "evaluation":
        limit = 4096
    elif stage == "rl":
        limit = recipe.config.rl.questions_per_step * recipe.config.rl.samples_per_question
    else:
        limit = recipe.rows(stage)

    def fits(rows: int) -> bool:
        return stage_memory(recipe, stage, device=device, dtype=dtype, rows=rows).total <= budget

    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str, name: str) -> int:
    """Turn a size such as 24GiB into bytes; raises UserError that names the option `name` where `text` is no size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise UserError(
            f"{name}: {text!r} is not a size; expected a number above 0 and a unit, as 24GiB, 16GB or 800MiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])

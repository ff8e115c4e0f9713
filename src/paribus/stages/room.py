"""Whether a training stage fits into this machine's memory, checked before it computes anything.

On a CPU no allocation is refused: the kernel kills a process, this one or another, without a message. A GPU's driver
refuses the allocation, and `errors.memory_fault` explains that.
"""

from __future__ import annotations

from pathlib import Path

from paribus.errors import UserError
from paribus.recipe import Recipe

# Batches in memory at a time: one learned from, two waiting, one being made (`data.loader.Prefetcher`).
BATCHES = 4
TOKEN_BYTES = 16  # of a token in a batch: itself and its target, 64 bits each
ANSWER_TOKEN_BYTES = 16  # of a token in an answer: a place in the list of tokens, another in that of what was sampled
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Bytes available to this process: the machine's, or fewer where its container has a limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def needed(recipe: Recipe, stage: str, dtype: str, processes: int = 1) -> dict[str, int]:
    """Bytes that a training stage holds at its peak on a CPU, by the keys that decide on them.

    Args:
        recipe: of the run.
        stage: a training stage.
        dtype: of the products.
        processes: that train together on this machine.
    """
    from paribus.plan.memory import CPU_PROCESS, stage_memory

    config, model, vocab = recipe.config, recipe.architecture, recipe.vocab_size
    memory = stage_memory(recipe, stage, device="cpu", dtype=dtype)
    whole = memory.weights + memory.gradients + memory.optimizer + memory.update
    copies = 1 if config.train.sharding == "fsdp" else processes
    rows = recipe.schedule(stage).device_batch_size
    passes = f"{stage}.device_batch_size: {rows:,}, of rows of model.seq_len: {model.seq_len:,}"
    parts = {
        f"model.depth: {model.depth}, of width {model.width:,} and {vocab:,} tokens": whole
        * copies,
        passes: processes * (memory.activations + memory.logits),
        f"train.processes: {processes}": processes * CPU_PROCESS,
    }
    if stage == "rl":
        rl = config.rl
        answers = rl.questions_per_step * rl.samples_per_question
        longest = min(rl.max_new_tokens, model.seq_len)
        parts[f"rl.rollout_rows: {rl.rollout_rows:,}"] = processes * memory.cache
        parts[f"rl.questions_per_step x rl.samples_per_question: {answers:,} answers"] = (
            answers * longest * ANSWER_TOKEN_BYTES
        )
        return parts
    batch_tokens = recipe.rows(stage) * model.seq_len
    parts[f"{stage}.batch_tokens: {batch_tokens:,}"] = BATCHES * TOKEN_BYTES * batch_tokens
    return parts


def check(recipe: Recipe, stage: str, dtype: str, processes: int = 1) -> None:
    """Raises UserError where a training stage needs more memory than this machine has, with the keys that need most.

    Args:
        recipe: of the run.
        stage: a training stage.
        dtype: of the products.
        processes: that train together on this machine.
    """
    parts, there = needed(recipe, stage, dtype, processes), machine_memory()
    total = sum(parts.values())
    if total <= there:
        return
    largest = sorted(parts.items(), key=lambda part: -part[1])
    listed = "; ".join(f"{key}: {_size(size)}" for key, size in largest if size > total / 100)
    raise UserError(
        f"{stage}: needs about {_size(total)} of memory and this machine has {_size(there)}: {listed}; lower the "
        "first (`paribus plan` says what fits)"
    )


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"

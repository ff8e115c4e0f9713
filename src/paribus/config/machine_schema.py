"""The keys of what computes a run, and of where its log goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paribus.config import conditions as when
from paribus.config import limits
from paribus.config.keys import key
from paribus.config.limits import Limit


@dataclass(frozen=True)
class Train:
    """How every training stage runs; no key here is meant to change what is learned."""

    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto: cuda, else cpu")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "matrix products; auto: bfloat16 where the hardware is quick at it"
    )
    tf32: bool = key(
        "products of float32 numbers round their factors to 11 bits (TF32): several times as quick on cards that have it",
        acts_when=when.FLOAT32,
    )
    fp8: bool = key(
        "block matrices multiply 8-bit floats in supervised training, e4m3 forward and e5m2 backward "
        "(arXiv:2209.05433), on cards that have them (since Ada and Hopper)",
        acts_when=when.BFLOAT16,
    )
    decode_graphs: bool = key(
        "sampling on a CUDA card queues a step of decoding as one graph, in place of some hundred launches"
    )
    threads: int | None = key(
        "CPU threads of torch; null: the cores this process may use; part of the fingerprint",
        ge=1,
        le=limits.CORES,
    )
    processes: int = key(
        "processes that train together, each on a GPU or on its share of the cores",
        ge=1,
        le=limits.PROCESSES,
    )
    sharding: Literal["ddp", "fsdp"] = key(
        "several processes: ddp copies the model to each; fsdp shards it too, for what does not fit",
        acts_when=when.SEVERAL_PROCESSES,
    )
    compile: bool = key("torch.compile the training step")
    deterministic: bool = key("bit-for-bit repeatable kernels")
    activation_checkpointing: bool = key(
        "recompute block activations in the backward pass: less memory, a third more work"
    )
    session_minutes: float | None = key(
        "save and exit 75 after so long; the next start goes on; null: no limit",
        gt=0,
        le=Limit(525_600.0, "a year"),
    )
    save_seconds: float = key(
        "least time between saves of the training state, seconds, and never under 50 times what a save "
        "costs; 0: after every step",
        ge=0,
        le=Limit(604_800.0, "a week of work lost by a power cut"),
    )
    keep_states: int = key(
        "whole training states kept", ge=1, le=Limit(1_000, "each is three times the model")
    )
    log_every: int = key(
        "steps between logged lines; metrics count all steps, and RL logs every one",
        ge=1,
        le=limits.STEPS,
    )


@dataclass(frozen=True)
class Tracking:
    """MLflow."""

    experiment: str = key("MLflow experiment")
    system_metrics: bool = key("log CPU, memory and GPU use")

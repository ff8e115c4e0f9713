"""Models of paribus on shapes that nanochat has too, for train.py; facts about the machine.

Needs torch, numpy, tokenizers and safetensors only: the configuration is written out here, not read from params.yaml.
relu², QK-norm, untied head, soft-cap, alternate value embeddings, residual and x0 scalars, Muon with AdamW on both sides;
head widths and windows are nanochat's. (Its model also has a smear and a back-out scalar, which cannot be switched off and
cost next to nothing.)
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))  # not installed where there is only torch

from paribus.card.peer import PeerShape, peer_step, random_batches  # noqa: E402
from paribus.config import Model, Optimizer, Train, resolve_model  # noqa: E402
from paribus.machine.hardware import Hardware, available_cores, cpu_name, detect_hardware  # noqa: E402
from paribus.machine.process import set_up_process  # noqa: E402
from paribus.model.gpt import GPT  # noqa: E402

__all__ = ["OPTIMIZER", "Shape", "hardware", "machine", "own_model", "peer_step", "random_batches"]


@dataclass(frozen=True)
class Shape(PeerShape):
    """The same, as ours has it."""

    @property
    def window(self) -> int:
        """As nanochat's model has it."""
        return -(-self.length // 4 // 128) * 128

    def model(self, **changes: Any) -> Model:
        """Ours with nanochat's switches."""
        fields: dict[str, Any] = {
            "depth": self.depth,
            "aspect_ratio": 64,
            "width": self.width,
            "head_dim": self.head_dim,
            "n_heads": None,
            "n_kv_heads": None,
            "seq_len": self.length,
            "mlp": "relu2",
            "mlp_ratio": 4.0,
            "norm": "rms",
            "qk_norm": True,
            "position": "rope",
            "rope_base": 100_000.0,
            "window_pattern": self.window_pattern,
            "window": self.window,
            "value_embeddings": "alternate",
            "x0_scalars": True,
            "residual_scalars": True,
            "tied_head": False,
            "softcap": 15.0,
            "embedding_std": None,
        }
        return Model(**switched_off() | fields | changes)


def switched_off() -> dict[str, Any]:
    """The switches that neither side uses."""
    values = {}
    for field in dataclasses.fields(Model):
        if field.metadata["formerly"] is not None:
            values[field.name] = field.metadata["formerly"]
    return values


OPTIMIZER = Optimizer(
    kind="muon",
    arguments={},
    matrix_lr=0.02,
    adamw_matrix_lr=0.002,
    embedding_lr=0.2,
    head_lr=0.004,
    scalar_lr=0.02,
    lr_reference_width=768,
    lr_width_exponent=-0.5,
    clip_value=0.0,
    weight_decay=0.0,
    weight_decay_of="matrices",
    weight_decay_schedule="rate",
    cautious_weight_decay=False,
    beta1=0.8,
    beta2=0.95,
    eps=1e-10,
    muon_momentum=0.95,
    muon_nesterov=True,
    muon_iterations=5,
    muon_coefficients="jordan",
    muon_scaling="tall",
    muon_normalisation="none",
    muon_beta2=0.95,
    muon_hyperball=False,
    grad_clip=1.0,
    ema_decay=0.0,
    evaluate="weights",
)


def hardware(
    device: str, dtype: str, compiled: bool, deterministic: bool, threads: int | None = None
) -> Hardware:
    """What a stage with these settings would find, and this process set up for it as a stage sets itself up."""
    train: Any = {
        "device": device,
        "dtype": dtype,
        "tf32": False,
        "fp8": False,
        "decode_graphs": False,
        "threads": threads,
        "processes": 1,
        "sharding": "ddp",
        "compile": compiled,
        "deterministic": deterministic,
        "activation_checkpointing": False,
        "session_minutes": None,
        "save_seconds": 1e9,
        "keep_states": 1,
        "log_every": 1,
    }
    found = detect_hardware(Train(**train))
    set_up_process(found, seed=1)
    return found


def own_model(model: Model, vocab: int, found: Hardware) -> GPT:
    """Ours, at its beginning, ready to train."""
    made = GPT(resolve_model(model), vocab, getattr(torch, found.dtype))
    made.initialise(1)
    return made.to(found.device).train()


def machine() -> dict[str, Any]:
    """Processor, cores, how busy they are, versions."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

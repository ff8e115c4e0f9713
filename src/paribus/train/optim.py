"""Muon for the block matrices, AdamW for everything else; one optimiser, its state plain named tensors.

An optimiser of a library may take Muon's place (`optimizer.kind`, library.py). What all rules share is here: groups and
their rates, clipping, weight decay, the average of the weights, and who holds what.

With several ranks each parameter is updated by one owner, which alone holds its state, and then broadcast:
the optimiser state is sharded and the result is that of a single process. What FSDP has sharded is made whole for
that, a group at a time, as Muon needs whole matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from paribus.config import Optimizer as OptimizerConfig
from paribus.config import is_foreign
from paribus.errors import UserError
from paribus.model.gpt import GPT
from paribus.train import adamw, muon, parallel
from paribus.train.library import checked, is_kept_for
from paribus.train.schedule import NOTHING_OWN, OwnFactors
from paribus.train.state import State, move_towards


@dataclass(frozen=True)
class Group:
    """Parameters that share a rule and a learning rate."""

    name: str
    rule: str  # muon | adamw | an optimiser of a library
    lr: float
    weight_decay: float
    parameters: dict[str, Tensor]


def parameter_groups(model: GPT, config: OptimizerConfig) -> list[Group]:
    """Which rule and learning rate each parameter of `model` gets.

    The rates of AdamW's matrices, embeddings and head follow the width. Muon's does not, as its update has a scale of its
    own for each shape; nor does that of the scalars. None follows the batch.

    Args:
        model: whose parameters they are.
        config: section `optimizer` of params.yaml.
    """
    members: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        members[_kind(name, parameter, model.config.tied_head)][name] = parameter
    width_factor = (model.config.width / config.lr_reference_width) ** config.lr_width_exponent
    adamw_matrix_lr = config.adamw_matrix_lr * width_factor
    matrix_lr = adamw_matrix_lr if config.kind == "adamw" else config.matrix_lr
    decay = config.weight_decay
    of_embeddings = decay if config.weight_decay_of != "matrices" else 0.0
    of_scalars = decay if config.weight_decay_of == "all" else 0.0
    rates = {
        "matrix": (config.kind, matrix_lr, decay),
        "embedding": ("adamw", config.embedding_lr * width_factor, of_embeddings),
        "head": ("adamw", config.head_lr * width_factor, of_embeddings),
        "scalar": ("adamw", config.scalar_lr, of_scalars),
    }
    return [Group(kind, *rates[kind], members[kind]) for kind in rates if members[kind]]


def _kind(name: str, parameter: Tensor, tied: bool) -> str:
    """matrix, embedding, head or scalar. tied: whether the token embedding is the head as well."""
    attention_gate = name.endswith("gate.weight") and "attention" in name
    if parameter.dim() < 2 or attention_gate:
        return "scalar"
    if name.startswith("head") or (tied and name.startswith("embedding")):
        return "head"
    if "embedding" in name or name.startswith("positions"):
        return "embedding"
    return "matrix"


class MuonAdamW:
    """One step: clip, then each group by its rule. `state` maps names to tensors, ready to be saved.

    AdamW is torch's fused kernel on CUDA, and on a CPU in bf16.

    on_device: that kernel in any case, and the number of updates kept where the parameters are, so that a step can
    be skipped there without the host's knowledge. By default on CUDA, but with a library's optimiser, which cannot skip.
    compiled: Muon's step by torch.compile (muon.py).
    """

    def __init__(
        self,
        model: GPT,
        config: OptimizerConfig,
        on_device: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.compiled = compiled
        self.groups = parameter_groups(model, config)
        self.state: State = {}
        self.parameters = [p for group in self.groups for p in group.parameters.values()]
        self._owner = _owners(self.groups)
        self._sharded = any(parallel.is_sharded(p) for p in self.parameters)
        # of Muon's products: what they round away is less than what five iterations leave undone
        in_bf16 = self.parameters[0].is_cuda or model.compute_dtype == torch.bfloat16
        self._muon_dtype = torch.bfloat16 if in_bf16 else torch.float32
        self._library = None
        if is_foreign(config.kind):
            if self._sharded:
                raise UserError(f"train.sharding: fsdp does not go with {config.kind}; set ddp")
            self._library = checked(config.kind, config.arguments, self._matrices())
        if on_device is None:
            on_device = self.parameters[0].is_cuda and self._library is None
        self.on_device = on_device
        # On a CPU it takes a third of the time of separate operations (4 x 4,096 x 256: 3.1 against 9.6 ms on AMD Zen 4).
        self._fused = on_device or (in_bf16 and model.device.type == "cpu")
        self.updates = 0

    @property
    def updates(self) -> int:
        """Updates made, not steps passed: what AdamW's bias correction counts. Waits for the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, made: int) -> None:
        self._updates: Tensor | int = made
        if self.on_device:
            self._updates = torch.full((), float(made), device=self.parameters[0].device)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Bound each number by clip_value and the global norm by grad_clip; returns the norm between the two, ()."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.config.clip_value:
            numbers = [parallel.local(gradient) for gradient in gradients]
            torch._foreach_clamp_max_(numbers, self.config.clip_value)
            torch._foreach_clamp_min_(numbers, -self.config.clip_value)
        if self._sharded:
            norm = parallel.norm(gradients)
        else:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.config.grad_clip:
            parts = [parallel.local(g) for g in gradients]
            scale = (self.config.grad_clip / norm.clamp(min=1e-12)).clamp(max=1.0)
            torch._foreach_mul_(parts, scale)
        return norm

    @torch.no_grad()
    def step(
        self, lr_factor: float, finite: Tensor | None = None, own: OwnFactors = NOTHING_OWN
    ) -> None:
        """Update every parameter.

        Args:
            lr_factor: what learning rates are multiplied by.
            finite: () bool, where the parameters are: if False everything stays as it is, to the bit. Needs `on_device`.
            own: factors of groups with a schedule of their own, and of the weight decay.
        """
        if finite is not None and not self.on_device:
            raise ValueError("finite: only an optimizer that is on_device can skip a step there")
        gate = None if finite is None else finite.float()
        self._updates = self._updates + (1 if gate is None else gate)
        for group in self.groups:
            mine = self._mine(group)
            if mine:
                self._update(group, mine, own.rates.get(group.name, lr_factor), own.decay, gate)
            self._share(group, mine)

    def _update(
        self,
        group: Group,
        mine: dict[str, Tensor],
        lr_factor: float,
        decay_factor: float,
        gate: Tensor | None,
    ) -> None:
        """Decay and step of the parameters of a group that this rank owns. gate (): 1, or 0 to change nothing."""
        decay: Tensor | float = 0.0
        if group.weight_decay:
            decay = self._decay(group, lr_factor, decay_factor, gate)
        averages = self._averages(mine) if self.config.ema_decay else []
        cautious = self.config.cautious_weight_decay and group.weight_decay > 0
        before = [parameter.clone() for parameter in mine.values()] if cautious else []
        if group.weight_decay and not cautious:
            torch._foreach_mul_(list(mine.values()), 1 - decay)
        self._apply(group.rule, mine, group.lr * lr_factor, gate)
        for old, parameter in zip(before, mine.values(), strict=False):
            shrinks = (parameter - old) * old <= 0
            parameter.sub_(decay * shrinks * old)
        if averages:
            move_towards(averages, list(mine.values()), 1 - self.config.ema_decay, gate)

    def _apply(self, rule: str, mine: dict[str, Tensor], lr: float, gate: Tensor | None) -> None:
        """The step of a rule."""
        if rule == "muon":
            muon.update(mine, self.state, self.config, lr, gate, self._muon_dtype, self.compiled)
        elif self._library is not None and rule == self.config.kind:
            self._library.update(lr)
        elif self._fused:
            made = self._updates
            updates = made if isinstance(made, Tensor) else torch.full((), float(made))
            adamw.fused_update(mine, self.state, self.config, lr, updates, gate)
        else:
            adamw.update(mine, self.state, self.config, lr, self.updates)

    def _decay(
        self, group: Group, lr_factor: float, decay_factor: float, gate: Tensor | None
    ) -> Tensor | float:
        """The share of each number that a step takes off."""
        follows = self.config.weight_decay_schedule in ("rate", "rate_linear")
        decay = group.lr * (lr_factor if follows else 1.0) * decay_factor * group.weight_decay
        return decay if gate is None else decay * gate

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    # ------------------------------------------------------------ the average of the weights

    def _averages(self, mine: dict[str, Tensor]) -> list[Tensor]:
        """The exponential moving averages of these weights; they begin at the weights themselves."""
        for name, parameter in mine.items():
            self.state.setdefault(f"ema.{name}", parameter.detach().clone())
        return [self.state[f"ema.{name}"] for name in mine]

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within, the model has the weights that `optimizer.evaluate` names; all ranks enter and leave.

        An error within ends the run, on one rank perhaps: the weights are then left as they are.
        """
        averaged = self.config.ema_decay > 0 and self.config.evaluate == "ema"
        if averaged:
            self.swap()
        yield
        if averaged:
            self.swap()

    @torch.no_grad()
    def settle(self) -> dict[str, Tensor]:
        """Leave the model, for good, with the weights that `optimizer.evaluate` names; all ranks call it.

        Returns, on rank 0, the others by name; nothing where no average was kept.
        """
        if not self.config.ema_decay:
            return {}
        if self.config.evaluate == "ema":
            self.swap()
        averages = {key: kept for key, kept in self.state.items() if key.startswith("ema.")}
        others = parallel.to_first(averages, self.parameters[0].device)
        return {key.removeprefix("ema."): tensor for key, tensor in others.items()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and their averages. What has no average yet stays as it is."""
        for group in self.groups:
            mine = {}
            for name, parameter in group.parameters.items():
                whole = parallel.full(parameter.detach())
                average = self.state.get(f"ema.{name}")
                if self._is_mine(name) and average is not None:
                    weights = whole.clone()
                    whole.copy_(average)
                    average.copy_(weights)
                mine[name] = whole
            self._broadcast(group.parameters, mine)

    # ------------------------------------------------------------ the state, and who holds it

    def full_state(self) -> State:
        """The state of all parameters, on rank 0, to be saved. The other ranks get their own part."""
        state = self.state | self._library.state() if self._library else self.state
        return parallel.to_first(state, self.parameters[0].device)

    def load_state(self, state: State, updates: int) -> None:
        """Restore a state from `full_state`; each rank keeps its own part.

        Args:
            state: kind.parameter -> tensor.
            updates: made so far.
        """
        device = self.parameters[0].device
        self.updates = updates
        mine = {}
        for key, tensor in state.items():
            _, _, name = key.partition(".")
            if self._is_mine(name):
                mine[key] = tensor.to(device)
        self.state = {key: mine[key] for key in mine if not is_kept_for(key)}
        if self._library is not None:
            self._library.load(mine)

    def _matrices(self) -> dict[str, Tensor]:
        """The block matrices that this rank updates."""
        [matrices] = [group.parameters for group in self.groups if group.name == "matrix"]
        return {name: matrix for name, matrix in matrices.items() if self._is_mine(name)}

    def _is_mine(self, name: str) -> bool:
        return self._owner[name] == parallel.rank()

    def _mine(self, group: Group) -> dict[str, Tensor]:
        """The parameters of a group that this rank updates, whole, with their gradients."""
        learned = {name: p for name, p in group.parameters.items() if p.grad is not None}
        if not self._sharded:
            return {name: p for name, p in learned.items() if self._is_mine(name)}
        mine = {}
        for name, parameter in learned.items():  # all ranks take part in making each of them whole
            values, gradient = parallel.full(parameter.detach()), parallel.full(parameter.grad)  # type: ignore[arg-type]
            if self._is_mine(name):
                mine[name] = values
                values.grad = gradient
        return mine

    def _share(self, group: Group, mine: dict[str, Tensor]) -> None:
        """Give every rank what each owner has updated."""
        shared = {}
        for name, parameter in group.parameters.items():
            if parameter.grad is not None or not parallel.is_sharded(parameter):
                shared[name] = parameter
        self._broadcast(shared, mine)

    def _broadcast(self, parameters: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
        """Set parameters on every rank to what their owners have in `mine`, whole where they are sharded."""
        if parallel.ranks() == 1:
            return
        for name, parameter in parameters.items():
            if not parallel.is_sharded(parameter):
                dist.broadcast(parameter, self._owner[name])
                continue
            values = mine.get(name)
            if values is None:
                values = torch.empty(parameter.shape, device=parameter.device)
            dist.broadcast(values, self._owner[name])
            parallel.assign(parameter, values)


def _owners(groups: list[Group]) -> dict[str, int]:
    """The rank that updates each parameter: largest first, each to the rank with the least so far."""
    load = [0] * parallel.ranks()
    owners = {}
    named = {name: p for group in groups for name, p in group.parameters.items()}
    for name in sorted(named, key=lambda n: (-named[n].numel(), n)):
        owners[name] = load.index(min(load))
        load[owners[name]] += named[name].numel()
    return owners

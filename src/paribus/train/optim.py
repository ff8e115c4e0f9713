"""Muon for the block matrices, AdamW for everything else; one optimiser, its state plain named tensors.

With several ranks each parameter is updated by one owner, which alone holds its state, and then broadcast:
the optimiser state is sharded and the result is that of a single process. What FSDP has sharded is made whole for
that, a group at a time, as Muon needs whole matrices.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from paribus.config import Optimizer as OptimizerConfig
from paribus.model.gpt import GPT
from paribus.train import parallel

# Coefficients of the quintic iteration that drives singular values to about 1 (Keller Jordan, "Muon", 2024,
# https://kellerjordan.github.io/posts/muon): tuned for slope at zero, so they end in [0.7, 1.2], not at 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Group:
    """Parameters that share a rule and a learning rate."""

    name: str
    rule: str  # muon | adamw
    lr: float
    weight_decay: float
    parameters: dict[str, Tensor]


def parameter_groups(model: GPT, config: OptimizerConfig) -> list[Group]:
    """Which rule and learning rate each parameter of `model` gets.

    The rates of AdamW's matrices, embeddings and head follow the width. Muon's does not, as its update has a scale of its
    own for each shape; nor does that of the scalars. None follows the batch.
    """
    members: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        members[_kind(name, parameter, model.config.tied_head)][name] = parameter
    width_factor = (model.config.width / config.lr_reference_width) ** config.lr_width_exponent
    adamw_matrix_lr = config.adamw_matrix_lr * width_factor
    matrix_lr = config.matrix_lr if config.kind == "muon" else adamw_matrix_lr
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

    on_device: AdamW by torch's fused kernel, and the number of updates kept where the parameters are, so that a step can
    be skipped there without the host's knowledge. By default on CUDA.
    """

    def __init__(self, model: GPT, config: OptimizerConfig, on_device: bool | None = None) -> None:
        self.config = config
        self.groups = parameter_groups(model, config)
        self.state: dict[str, Tensor] = {}
        self.parameters = [p for group in self.groups for p in group.parameters.values()]
        self.on_device = self.parameters[0].is_cuda if on_device is None else on_device
        self.updates = 0
        self._owner = _owners(self.groups)
        self._sharded = any(parallel.is_sharded(p) for p in self.parameters)

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
    def step(self, lr_factor: float, finite: Tensor | None = None) -> None:
        """Update every parameter; learning rates are multiplied by `lr_factor`.

        finite () bool, where the parameters are: if False everything stays as it is, to the bit. Needs `on_device`.
        """
        if finite is not None and not self.on_device:
            raise ValueError("finite: only an optimizer that is on_device can skip a step there")
        gate = None if finite is None else finite.float()
        self._updates = self._updates + (1 if gate is None else gate)
        for group in self.groups:
            mine = self._mine(group)
            if mine:
                self._update(group, mine, lr_factor, gate)
            self._share(group, mine)

    def _update(
        self, group: Group, mine: dict[str, Tensor], lr_factor: float, gate: Tensor | None
    ) -> None:
        """Decay and step of the parameters of a group that this rank owns. gate (): 1, or 0 to change nothing."""
        cautious = self.config.cautious_weight_decay and group.weight_decay > 0
        before = [parameter.clone() for parameter in mine.values()] if cautious else []
        if group.weight_decay and not cautious:
            decay = self._decay(group, lr_factor, gate)
            torch._foreach_mul_(list(mine.values()), 1 - decay)
        lr = group.lr * lr_factor
        if group.rule == "muon":
            self._muon(mine, lr, gate)
        elif self.on_device:
            self._fused_adamw(mine, lr, gate)
        else:
            self._adamw(mine, lr)
        for old, parameter in zip(before, mine.values(), strict=False):
            shrinks = (parameter - old) * old <= 0
            parameter.sub_(self._decay(group, lr_factor, gate) * shrinks * old)

    def _decay(self, group: Group, lr_factor: float, gate: Tensor | None) -> Tensor | float:
        """The share of each number that a step takes off."""
        factor = 1.0 if self.config.weight_decay_schedule == "constant" else lr_factor
        decay = group.lr * factor * group.weight_decay
        return decay if gate is None else decay * gate

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def full_state(self) -> dict[str, Tensor]:
        """The state of all parameters, on rank 0, to be saved. The other ranks get their own part."""
        if parallel.ranks() == 1:
            return self.state
        full = {}
        for group in self.groups:
            kinds = ("momentum",) if group.rule == "muon" else ("first", "second")
            for name, parameter in group.parameters.items():
                for kind in kinds:
                    full[f"{kind}.{name}"] = self._to_first(f"{kind}.{name}", name, parameter)
        return full

    def _to_first(self, key: str, name: str, parameter: Tensor) -> Tensor:
        """A tensor of the state, brought from its owner to rank 0."""
        owner = self._owner[name]
        tensor = self.state.get(key)
        if tensor is None:
            tensor = torch.zeros(parameter.shape, device=parameter.device)
        if owner and parallel.rank() == owner:
            dist.send(tensor, 0)
        elif owner and parallel.rank() == 0:
            dist.recv(tensor, owner)
        return tensor

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore a state from `full_state`; each rank keeps its own part.

        state: kind.parameter -> tensor. updates: made so far.
        """
        device = self.parameters[0].device
        self.updates = updates
        self.state = {}
        for key, tensor in state.items():
            _, _, name = key.partition(".")
            if self._is_mine(name):
                self.state[key] = tensor.to(device)

    def _buffer(self, kind: str, name: str, like: Tensor) -> Tensor:
        return self.state.setdefault(f"{kind}.{name}", torch.zeros_like(like))

    def _muon(self, parameters: dict[str, Tensor], lr: float, gate: Tensor | None) -> None:
        """Nesterov momentum, orthogonalised; matrices of one shape go through the iteration together.

        gate (): 1, or 0 to change nothing, whatever the gradients are.
        """
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in parameters.items():
            by_shape[parameter.shape].append(name)
        for shape, names in by_shape.items():
            gradients = _gradients({name: parameters[name] for name in names})
            momenta = [self._buffer("momentum", name, parameters[name]) for name in names]
            weight = 1 - self.config.muon_momentum
            if gate is None:
                torch._foreach_lerp_(momenta, gradients, weight)
            else:
                closed = gate == 0
                for gradient in gradients:
                    gradient.masked_fill_(closed, 0.0)  # 0 times a NaN were a NaN
                torch._foreach_lerp_(momenta, gradients, [weight * gate] * len(names))
            directions = torch._foreach_lerp(gradients, momenta, self.config.muon_momentum)
            updates = orthogonalise(torch.stack(directions), self.config.muon_iterations)
            if gate is not None:
                updates.mul_(gate)
            # A tall matrix (more outputs than inputs) takes larger steps: equal change of the output's RMS.
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(
                [parameters[name] for name in names], list(updates.unbind()), alpha=-lr * scale
            )

    def _fused_adamw(self, parameters: dict[str, Tensor], lr: float, gate: Tensor | None) -> None:
        """`_adamw` as one kernel; gate as for `_muon`."""
        first = [self._buffer("first", name, p) for name, p in parameters.items()]
        second = [self._buffer("second", name, p) for name, p in parameters.items()]
        assert isinstance(self._updates, Tensor)
        torch._fused_adamw_(
            list(parameters.values()),
            _gradients(parameters),
            first,
            second,
            [],
            [self._updates] * len(first),
            lr=lr,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            weight_decay=0.0,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
            found_inf=None if gate is None else 1 - gate,
        )

    def _adamw(self, parameters: dict[str, Tensor], lr: float) -> None:
        """arXiv:1711.05101, without weight decay of its own (done in `step`)."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        gradients = _gradients(parameters)
        first = [self._buffer("first", name, p) for name, p in parameters.items()]
        second = [self._buffer("second", name, p) for name, p in parameters.items()]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1 - beta2**self.updates) ** 0.5)
        torch._foreach_add_(denominators, self.config.eps)
        torch._foreach_addcdiv_(
            list(parameters.values()), first, denominators, -lr / (1 - beta1**self.updates)
        )

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
        if parallel.ranks() == 1:
            return
        for name, parameter in group.parameters.items():
            if not parallel.is_sharded(parameter):
                dist.broadcast(parameter, self._owner[name])
            elif parameter.grad is not None:
                values = mine.get(name)
                if values is None:
                    values = torch.empty(parameter.shape, device=parameter.device)
                dist.broadcast(values, self._owner[name])
                parallel.assign(parameter, values)


def _gradients(parameters: dict[str, Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def _owners(groups: list[Group]) -> dict[str, int]:
    """The rank that updates each parameter: largest first, each to the rank with the least so far."""
    load = [0] * parallel.ranks()
    owners = {}
    named = {name: p for group in groups for name, p in group.parameters.items()}
    for name in sorted(named, key=lambda n: (-named[n].numel(), n)):
        owners[name] = load.index(min(load))
        load[owners[name]] += named[name].numel()
    return owners


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: (N, rows, columns) -> same, in bf16 on CUDA, else fp32.

    iterations: of Newton-Schulz (`optimizer.muon_iterations`).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)

"""Several processes that train as one: their group, DDP or FSDP2 around the model, and agreements between them.

torch.distributed does the work; torchrun or `stages/launch.py` starts the processes. A process on its own needs
none of it, and every function here then only does what its name says.

DDP keeps the whole model on every rank. FSDP2 shards parameters and gradients over them; single numbers, which it
does not take, stay whole on every rank. The optimiser's state is sharded either way (optim.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paribus.errors import UserError, explained
from paribus.launched import launched
from paribus.model import kernels
from paribus.train.checkpoint import State, StateStore

if TYPE_CHECKING:
    from paribus.model.gpt import GPT

# Ranks wait for rank 0's evaluations this long; their launcher notices at once when a rank has died.
TIMEOUT = timedelta(hours=24)
PEER_LOST = ("closed by peer", "reset by peer")  # of gloo, which raises plain RuntimeError


def rank() -> int:
    """This process's number among those that train together, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: str) -> Iterator[None]:
    """Join the other processes of this run, if torchrun started several.

    NCCL serves tensors on CUDA and gloo the rest, so that agreeing on a number does not make the host wait for its GPU.
    """
    place = launched()
    if place.processes == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Go on alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """What ranks do in step. Raises UserError when a rank has died, or when the machine refuses something.

    Any other error is shown at once: the launcher stops the rest half a minute after the first has ended, which may be
    before this one has closed its log.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if kernels.too_many_variants(error):
            raise UserError(
                "training: a compiled function was compiled anew too often, for too many sizes of its inputs, and torch "
                f"would go on without compiling it; with train.compile: true, set it to false ({_first_line(error)})"
            ) from error
        if ranks() == 1:
            raise
        refusal = explained(error)
        if refusal is not None:
            raise refusal from error
        if isinstance(error, dist.DistError) or any(words in str(error) for words in PEER_LOST):
            raise UserError(
                f"another of the {ranks()} processes has died; start again, and training goes on from the last "
                "saved state"
            ) from error
        traceback.print_exc()
        raise SystemExit(1) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


# ---------------------------------------------------------------- agreements between ranks


def sums(*values: float) -> list[float]:
    """Each value, added up over ranks; on every rank."""
    if ranks() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def add_up(tensor: Tensor) -> Tensor:
    """A tensor, added up over ranks where it is: on a GPU the host goes on at once."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_rank(*flags: bool) -> list[bool]:
    """Each flag: whether any rank has it set. Clocks and signals differ between ranks; what follows must not."""
    return [count > 0 for count in sums(*map(float, flags))]


def of_each(value: float) -> list[float]:
    """The value of each rank, by rank."""
    values = [0.0] * ranks()
    values[rank()] = value
    return sums(*values)


def newest(store: StateStore) -> State | None:
    """The newest whole state, as rank 0 finds it; the others read the same one."""
    if ranks() == 1:
        return store.load()
    state = store.load() if rank() == 0 else None
    step = int(sums(state.step + 1 if state else 0)[0]) - 1
    if step < 0 or state:
        return state
    state = store.read(step)
    if state is None:
        raise UserError(
            f"{store.folder}: this process cannot read the state of step {step} that rank 0 reads; "
            "all processes need the same folder"
        )
    return state


# ---------------------------------------------------------------- the model


def wrap(model: GPT, sharding: str, compiled: bool, ragged: bool = False) -> Callable[..., Tensor]:
    """The callable for a training forward pass; FSDP shards `model` itself, so create the optimiser afterwards.

    sharding: "ddp" or "fsdp" (`train.sharding`). compiled: whether to compile (`train.compile`).
    ragged: whether the micro-batches differ in size, as in RL; compiled, the model is then one graph of open sizes.
    """
    forward: nn.Module = model
    if compiled:
        forward = model.compiled(dynamic=True if ragged else None)
    if ranks() == 1:
        return forward
    if sharding == "ddp":
        return nn.parallel.DistributedDataParallel(forward, forward_sync_buffers=False)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (ranks(),))
    scalars = {p for p in model.parameters() if p.dim() == 0}
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, ignored_params=scalars)
    with (
        torch.no_grad()
    ):  # FSDP takes the first module that runs for the root, and evaluation runs blocks
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        model(token, token)
    gather(model, False)
    return forward


@contextmanager
def whole(model: GPT) -> Iterator[None]:
    """Within, every rank has the whole model, free to run it as it likes; all ranks enter and leave."""
    gather(model, True)
    yield
    gather(model, False)


def gather(model: GPT, on: bool = True) -> None:
    """Make the parameters whole on every rank, until called again with `on` False, which shards them.

    Args:
        model: sharded by `wrap`.
        on: whether to gather.
    """
    if ranks() == 1:
        return
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    for module in modules:
        module.set_reshard_after_forward(not on, recurse=False)
        if on:
            module.unshard()
    if modules and not on:
        # shards again, and forgets what ran here, which differs between ranks
        modules[0].reset_iter_state()


def leads(model: GPT, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What rank 0 measures on the whole model, while the others wait; {} on those. All ranks call it.

    measure: called on rank 0 alone; its result is returned there.
    """
    with whole(model):
        return measure() if rank() == 0 else {}


def to_first(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The named tensors of all ranks, on rank 0; the other ranks get their own. Names do not repeat between ranks.

    device: of the tensors.
    """
    if ranks() == 1:
        return tensors
    own = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    listed: list[Any] = [None] * ranks()
    dist.all_gather_object(listed, own)
    if rank() > 0:
        for tensor in tensors.values():
            dist.send(tensor.contiguous().to(device), 0)
        return tensors
    found = dict(tensors)
    for owner in range(1, ranks()):
        for name, shape, dtype in listed[owner]:
            found[name] = torch.empty(shape, dtype=dtype, device=device)
            dist.recv(found[name], owner)
    return found


# ---------------------------------------------------------------- tensors of FSDP


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP holds a part of it on each rank."""
    return hasattr(tensor, "device_mesh")


def full(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank; a plain tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def assign(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter, sharded or not, to `values`, which every rank has in full."""
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        values = distribute_tensor(
            values.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        ).to_local()
    local(parameter).copy_(values)


def norm(gradients: list[Tensor]) -> Tensor:
    """The global norm () of gradients of which some are sharded; those that are not are averaged over ranks first."""
    plain = [gradient for gradient in gradients if not is_sharded(gradient)]
    for gradient in plain:
        dist.all_reduce(gradient)
        gradient /= ranks()
    square = _sum_of_squares([local(gradient) for gradient in gradients if is_sharded(gradient)])
    dist.all_reduce(square)
    if plain:
        square += _sum_of_squares(plain)
    return square.sqrt()


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).square().sum()

"""A module that several processes train as one, by DDP or by FSDP2. It knows no task in particular."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from decentral.errors import ConfigError
from decentral.ports.trainer import Seat


def spread(model: nn.Module, blocks: Iterable[nn.Module], seat: Seat) -> nn.Module:
    """What to call in the place of ``model``, so that its gradients are the mean over all ranks.

    With FSDP its parameters are shards afterwards: take their names, and make the optimizer, from then on.

    Args:
        model: alike on all ranks, wherever it is; on the seat's device afterwards. With FSDP no more than one layer
            of it is there whole at a time.
        blocks: its layers; with FSDP the values of one at a time are gathered for a pass.
        seat: how many ranks there are, and how they train.
    """
    if seat.num_ranks == 1:
        return model.to(seat.device)
    if seat.inner == "ddp":
        model = model.to(seat.device)
        device, ddp = torch.device(seat.device), nn.parallel.DistributedDataParallel
        ids = [device.index or 0] if device.type == "cuda" else None
        # Buffers need not be sent round at every pass; torch has renamed how to say so.
        new_name = "forward_sync_buffers" in inspect.signature(ddp).parameters
        sync: dict[str, Any] = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
        return ddp(model, device_ids=ids, **sync)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(seat.device).type, (seat.num_ranks,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Else what is gathered for the last layer stays, and would hide the values that a sync loads.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def part_of(batch: Tensor, seat: Seat) -> Tensor:
    """The sequences of a worker's batch that are this rank's: see ``share_of``."""
    share_of(len(batch), seat)
    return batch[seat.rank :: seat.num_ranks]


def share_of(batch_sequences: int, seat: Seat) -> int:
    """How many sequences of a batch are each rank's.

    Raises:
        ConfigError: they cannot be dealt out evenly.
    """
    if batch_sequences % seat.num_ranks:
        raise ConfigError(
            f"batch_sequences is {batch_sequences}, which {seat.num_ranks} processes cannot deal out evenly.",
            hint=f"Take a multiple of {seat.num_ranks}, or another number of processes.",
        )
    return batch_sequences // seat.num_ranks


def dealt(batch: Tensor | None, into: Tensor) -> Tensor:
    """This rank's part of a batch that rank 0 alone has, and gives out in turns; all ranks call it at once.

    Args:
        batch: as many sequences for each rank; ``None`` on the others.
        into: is overwritten by the part, and on the CPU.
    """
    size = dist.get_world_size()
    parts = None if batch is None else [batch[rank::size].contiguous() for rank in range(size)]
    dist.scatter(into, parts, src=0)
    return into


def summed(values: Sequence[float], seat: Seat) -> list[float]:
    """The sums over all ranks, which call it at once."""
    if seat.num_ranks == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return list(sums.tolist())


def least(value: int, seat: Seat) -> int:
    """The smallest of what all ranks have, which call it at once."""
    if seat.num_ranks == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def can_try(module: nn.Module) -> bool:
    """Whether of what ``spread`` has returned a pass can be tried without the other ranks: ``alone``."""
    return isinstance(module, nn.parallel.DistributedDataParallel) or hasattr(module, "reset_iter_state")


@contextlib.contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Inside of it a pass takes as much memory as ever and waits for no other rank; its gradients are of no use.

    Under FSDP a rank puts its own shards in the place of those that the others have.
    """
    shards: list[Any] = [each for each in module.modules() if hasattr(each, "set_custom_all_gather")]
    try:
        for each in shards:
            each.set_custom_all_gather(_Gather(alone=True))
            each.set_custom_reduce_scatter(_ReduceScatter(alone=True))
        with apart(module):
            yield
    finally:
        for each in shards:
            each.set_custom_all_gather(_Gather(alone=False))
            each.set_custom_reduce_scatter(_ReduceScatter(alone=False))


def forget(module: nn.Module) -> None:
    """Let go of all gradients, also of a pass that has failed midway ``alone``."""
    for parameter in module.parameters():
        parameter.grad = None
    if (reset := getattr(module, "reset_iter_state", None)) is not None:
        reset()  # shards again, whose gradients are others
        for parameter in module.parameters():
            parameter.grad = None


def apart(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside of it a backward pass of a module under DDP keeps its gradients to this rank."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


class _Comm:
    """How FSDP2 is to exchange values: with the other ranks, or each with itself."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what is to come."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Comm):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        if not self._alone:
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
            return gather(output_tensor, input_tensor, group=group, async_op=async_op)
        for place in output_tensor.chunk(group.size()):
            if place.data_ptr() != input_tensor.data_ptr():  # its own is there already
                place.copy_(input_tensor)
        return None


class _ReduceScatter(_Comm):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        if not self._alone:
            scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            return scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        output_tensor.zero_()
        return None

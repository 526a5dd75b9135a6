"""A module that several processes train as one, by DDP or by FSDP2. It knows no task in particular."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from decentral.errors import ConfigError
from decentral.ports.trainer import Seat


def spread(model: nn.Module, blocks: Iterable[nn.Module], seat: Seat) -> nn.Module:
    """What to call in the place of ``model``, so that its gradients are the mean over all ranks.

    With FSDP its parameters are shards afterwards: take their names, and make the optimizer, from then on.

    Args:
        model: on the seat's device, alike on all ranks.
        blocks: its layers; with FSDP the values of one at a time are gathered for a pass.
        seat: how many ranks there are, and how they train.
    """
    if seat.num_ranks == 1:
        return model
    if seat.inner == "ddp":
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


def part_of(batch: torch.Tensor, seat: Seat) -> torch.Tensor:
    """The sequences of a worker's batch that are this rank's: as many for each.

    Raises:
        ConfigError: they cannot be dealt out evenly.
    """
    if len(batch) % seat.num_ranks:
        raise ConfigError(
            f"batch_sequences is {len(batch)}, which {seat.num_ranks} processes cannot deal out evenly.",
            hint=f"Take a multiple of {seat.num_ranks}, or another number of processes.",
        )
    return batch[seat.rank :: seat.num_ranks]

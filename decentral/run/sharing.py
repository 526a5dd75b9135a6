"""What of somebody's model a swarm shares, how it is read and written, and what is kept beside it. Decides it once.

Shared are the parameters that require a gradient, each once however many names it has; frozen ones never are. Float
buffers (running means and variances) are shared or left alone by choice; whole numbers never are.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decentral.errors import ConfigError
from decentral.ports.trainer import Stateful
from decentral.tensors.nested import here

_log = logging.getLogger(__name__)
Buffers = Literal["average", "local"]


@dataclass(frozen=True, slots=True)
class Shared:
    """Names and tensors that a swarm shares, and what is to be said of the choice."""

    tensors: dict[str, Tensor]
    """Live: they share memory with the model."""
    text: str
    """One line for people."""
    reshard: Callable[[], None] = lambda: None
    """Has FSDP let go of values that it has gathered for a pass, which would hide those that are loaded."""


def shared_of(model: nn.Module | Mapping[str, Tensor], buffers: Buffers = "local") -> Shared:
    """What a swarm shares of ``model``.

    Args:
        model: a module, or named tensors, all of which are shared.
        buffers: whether float buffers are averaged or stay each worker's own.

    Raises:
        ConfigError: there is nothing to share, or a tensor that is no floating point number.
    """
    if buffers not in ("average", "local"):
        raise ConfigError(
            f'buffers is {buffers!r}; it must be "average" or "local".',
            hint='"average" shares running statistics as if they were parameters, "local" leaves each worker its own.',
        )
    if not isinstance(model, nn.Module):
        given = {str(name): tensor for name, tensor in model.items()}
        _check(given)
        return Shared(given, f"shares {_amount(given)}")
    model, reshard = _inside(model), _resharding(model)
    reshard()
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    floats = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    tied = len(list(model.named_parameters(remove_duplicate=False))) - len(list(model.named_parameters()))
    parts = [f"shares {_amount(tensors)}"]
    if tied:
        parts.append(f"{tied} tied {'name' if tied == 1 else 'names'} counted once")
    if frozen:
        parts.append(f"{sum(p.numel() for p in frozen):,} frozen values stay here")
    if floats:
        kept = "are averaged as well" if buffers == "average" else "stay each worker's own"
        parts.append(f'{len(floats)} float buffers {kept} (buffers="{buffers}")')
        if buffers == "average":
            tensors |= floats
    _check(tensors)
    return Shared(tensors, "; ".join(parts), reshard)


def _inside(model: nn.Module) -> nn.Module:
    """The module that DDP or ``torch.compile`` has been put around, whose names are the same on all workers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            return model
        model = inner


def _resharding(model: nn.Module) -> Callable[[], None]:
    """See ``Shared.reshard``."""
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "set_reshard_after_backward")]  # FSDPModule

    def reshard() -> None:
        for part in parts:
            part.reshard()

    return reshard


def _amount(tensors: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors.values()):,} values in {len(tensors)} parameters"


def _check(tensors: Mapping[str, Tensor]) -> None:
    if not any(tensor.numel() for tensor in tensors.values()):
        raise ConfigError(
            "The model has nothing to share.",
            hint="Shared are the parameters with requires_grad=True; frozen ones stay where they are.",
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConfigError(
                f"{name!r} is {tensor.dtype}; only floating point values can be averaged.", hint="Leave it out."
            )


def check_optimizer(optimizer: torch.optim.Optimizer, shared: Mapping[str, Tensor]) -> None:
    """Refuse an optimizer that trains none of what is shared, as when the model was moved or copied after it was made.

    Raises:
        ConfigError: it trains none of these tensors.
    """
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    # Of a small shard this process may have no value: then it is known by being the very same.
    known, places = set(map(id, trained)), {here(tensor).data_ptr() for tensor in trained if here(tensor).numel()}
    if not any(id(tensor) in known or here(tensor).data_ptr() in places for tensor in shared.values()):
        raise ConfigError(
            "The optimizer trains none of the model's shared parameters.",
            hint="Was the model copied or made anew? Share the one that is trained, and make its optimizer last.",
        )


def check_processes(world_size: int, num_ranks: int) -> None:
    """Refuse a training loop that is spread over other processes or devices than the swarm was told.

    Args:
        world_size: over how many it is.
        num_ranks: of the swarm (``Swarm.num_ranks``).

    Raises:
        ConfigError: they differ.
    """
    if world_size != num_ranks:
        raise ConfigError(
            f"{world_size} processes or devices train this model together, but the swarm knows of {num_ranks}.",
            hint="Call torch.distributed.init_process_group before found or join, on all ranks of a torchrun; or start "
            "a worker for each device (CUDA_VISIBLE_DEVICES=0, 1 and so on).",
        )


class SharedModel:
    """Implements the port ``Model`` on a module or on named tensors.

    Args:
        shared: what is shared.
        validate: the user's own, called with the swarm's weights in place; mean loss. ``None`` if there is none.
    """

    def __init__(self, shared: Shared, validate: Callable[[], float] | None = None) -> None:
        self.text = shared.text
        """What is shared, in one line for people."""
        self._tensors = shared.tensors
        self._reshard = shared.reshard
        self._validate = validate

    def parameters(self) -> Mapping[str, Tensor]:
        """The shared tensors, as they are; found anew each time, for a model may be moved."""
        return {name: tensor.detach() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named tensors in place, whatever device and float type they have."""
        for name, value in parameters.items():
            self._tensors[name].copy_(value)
        self._reshard()

    def validate(self) -> float:
        """What the user's function says; NaN without one."""
        return float("nan") if self._validate is None else float(self._validate())


class StatefulModel(SharedModel):
    """A model in whose training other things have a state as well: its optimizer, a schedule, a loader of data.

    Args:
        shared: what is shared.
        validate: see ``SharedModel``.
        kept: what has a state, by any name.
    """

    def __init__(self, shared: Shared, validate: Callable[[], float] | None, kept: Mapping[str, Stateful]) -> None:
        super().__init__(shared, validate)
        self._kept = dict(kept)

    def state_dict(self) -> Mapping[str, Any]:
        """The state of each, by its name."""
        return {name: one.state_dict() for name, one in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each its state back; one that the checkpoint does not have starts anew, which is logged."""
        for name, one in self._kept.items():
            if name in state:
                one.load_state_dict(state[name])
            else:
                _log.warning("the checkpoint has no state of %r, which starts anew", name)


def model_of(
    model: nn.Module | Mapping[str, Tensor],
    buffers: Buffers,
    validate: Callable[[], float] | None,
    optimizer: torch.optim.Optimizer | None,
    stateful: Mapping[str, Stateful] | None,
) -> SharedModel:
    """The port of somebody's model, with all of its training's state that is known.

    Args:
        model: see ``shared_of``, as for ``buffers``.
        buffers: see there.
        validate: see ``SharedModel``.
        optimizer: the inner one, if it is known.
        stateful: what else has a state, by any name.

    Raises:
        ConfigError: see ``shared_of``; the optimizer trains none of what is shared; or
            something in ``stateful`` has no state.
    """
    shared = shared_of(model, buffers)
    kept: dict[str, Stateful] = dict(stateful or {})
    for name, one in kept.items():
        if not isinstance(one, Stateful):
            raise ConfigError(
                f"stateful[{name!r}] is a {type(one).__name__}, which has no state_dict and load_state_dict.",
                hint="Leave it out, or give it both.",
            )
    if optimizer is not None:
        check_optimizer(optimizer, shared.tensors)
        if "optimizer" in kept:
            raise ConfigError('stateful has an "optimizer", and there is optimizer=.', hint="Give it once.")
        kept["optimizer"] = optimizer
    return StatefulModel(shared, validate, kept) if kept else SharedModel(shared, validate)

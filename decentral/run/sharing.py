"""What of somebody's model a swarm shares, and how it is read and written. Decides it once, in one place.

Shared are the parameters that require a gradient, each once however many names it has; frozen ones never are. Float
buffers (running means and variances) are shared or left alone by choice; whole numbers never are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from decentral.errors import ConfigError

Buffers = Literal["average", "local"]


@dataclass(frozen=True, slots=True)
class Shared:
    """Names and tensors that a swarm shares, and what is to be said of the choice."""

    tensors: dict[str, Tensor]
    """Live: they share memory with the model."""
    text: str
    """One line for people."""


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
    return Shared(tensors, "; ".join(parts))


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
    places = {tensor.data_ptr() for group in optimizer.param_groups for tensor in group["params"] if tensor.numel()}
    if not any(tensor.data_ptr() in places for tensor in shared.values() if tensor.numel()):
        raise ConfigError(
            "The optimizer trains none of the model's shared parameters.",
            hint="Was the model copied or made anew? Share the one that is trained, and make its optimizer last.",
        )


def refuse_processes(world_size: int) -> None:
    """Refuse a training loop that is spread over several processes or devices.

    Args:
        world_size: over how many.

    Raises:
        ConfigError: over more than one.
    """
    if world_size > 1:
        raise ConfigError(
            f"{world_size} processes or devices train this model together; in a swarm each worker has one.",
            hint="Start a process for each device (CUDA_VISIBLE_DEVICES=0, 1 and so on), and let each join the swarm.",
        )


class SharedModel:
    """Implements the port ``Model`` on a module or on named tensors.

    Args:
        shared: what is shared.
        validate: the user's own, called with the swarm's weights in place; mean loss. ``None`` if there is none.
    """

    def __init__(self, shared: Shared, validate: Callable[[], float] | None = None) -> None:
        self._tensors = shared.tensors
        self._validate = validate

    def parameters(self) -> Mapping[str, Tensor]:
        """The shared tensors, as they are; found anew each time, for a model may be moved."""
        return {name: tensor.detach() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named tensors in place, whatever device and float type they have."""
        for name, value in parameters.items():
            self._tensors[name].copy_(value)

    def validate(self) -> float:
        """What the user's function says; NaN without one."""
        return float("nan") if self._validate is None else float(self._validate())

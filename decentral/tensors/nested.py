"""Tensors in nested states (dicts, lists, tuples), as torch's ``state_dict`` has them, and whole values of shards.

Knows nothing of what a state means, and imports no distributed torch: a shard is known by what it can do.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

#: The keys and indices that lead to a tensor.
Path = tuple[Any, ...]
#: Far beyond what moments of gradients are, and far below what a flipped bit of an exponent makes of them.
_ABSURD: Final = 1e12


def mapped(value: Any, work: Callable[[Path, Tensor], Any], path: Path = ()) -> Any:
    """The same nested value with every tensor replaced by what ``work`` makes of it, in order; the rest is copied."""
    match value:
        case Tensor():
            return work(path, value)
        case Mapping():
            return {key: mapped(each, work, (*path, key)) for key, each in value.items()}
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*[mapped(each, work, (*path, index)) for index, each in enumerate(value)])
        case list() | tuple():
            return type(value)([mapped(each, work, (*path, index)) for index, each in enumerate(value)])
        case _:
            return copy.deepcopy(value)


def begun_anew(state: Any) -> Any | None:
    """The same nested state with 0 for all values of tensors that hold an absurd one; ``None`` if none does.

    Absurd is what is not finite, or beyond 10^12. For inner optimizers: their moments are 0 at the start as well.
    """
    found = False

    def sound(path: Path, tensor: Tensor) -> Tensor:
        nonlocal found
        if not tensor.is_floating_point() or not tensor.numel() or bool((tensor.abs() <= _ABSURD).all()):
            return tensor
        found = True
        return torch.zeros_like(tensor)

    anew = mapped(state, sound)
    return anew if found else None


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``: of its values this process may have a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All its values; of a shard only if all processes that have some call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def here(tensor: Tensor) -> Tensor:
    """The values that are in this process, which it shares memory with."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

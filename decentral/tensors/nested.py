"""Tensors in nested states (dicts, lists, tuples), as torch's ``state_dict`` has them, and whole values of shards.

Knows nothing of what a state means, and imports no distributed torch: a shard is known by what it can do.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

#: The keys and indices that lead to a tensor.
Path = tuple[Any, ...]


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


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``: of its values this process may have a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All its values; of a shard only if all processes that have some call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def here(tensor: Tensor) -> Tensor:
    """The values that are in this process, which it shares memory with."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

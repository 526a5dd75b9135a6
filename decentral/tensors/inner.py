"""A model's parameters, or those of a part of it, with the inner optimizers that step them.

Knows nothing of data, rounds or stages: whoever has run a graph backwards asks for a step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from decentral.tensors.nested import whole

#: In a parameter's state: the class of the optimizer that made it.
_KIND: Final = "class"


class InnerModel:
    """Named parameters that are loaded as a whole or not at all, and stepped only along finite gradients.

    Args:
        named: the parameters; those that take no gradient are neither stepped nor shared.
        optimizer: makes the inner optimizer of them, or several, each of some of them.
        learning_rate: by the global step; written to all groups of an optimizer before a step.
        clip_norm: largest norm of the gradient; a larger one is scaled down to it.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        optimizer: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer | Sequence[torch.optim.Optimizer]],
        learning_rate: Callable[[int], float],
        clip_norm: float,
    ) -> None:
        self._named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self._trained = list(self._named.values())
        made = optimizer(self._named)
        self._optimizers = (made,) if isinstance(made, torch.optim.Optimizer) else tuple(made)
        self._learning_rate = learning_rate
        self._clip_norm = clip_norm

    def parameters(self) -> Mapping[str, Tensor]:
        """Names and values in order, sharing memory with the modules; tied weights appear once."""
        return {name: parameter.detach() for name, parameter in self._named.items()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters and keep the rest, with the state of the optimizers as it is.

        Raises:
            ValueError: a name is unknown or a shape differs; nothing was changed then.
        """
        for name, value in parameters.items():
            if name not in self._named:
                raise ValueError(f"there is no parameter {name!r}")
            if value.shape != self._named[name].shape:
                raise ValueError(f"{name!r} has shape {list(self._named[name].shape)}, not {list(value.shape)}")
        for name, value in parameters.items():
            self._named[name].copy_(value)

    def state_dict(self) -> Mapping[str, Any]:
        """What the optimizers keep of every parameter that has been stepped, by its name; rates follow the step."""
        kept: dict[str, Any] = {}
        for optimizer in self._optimizers:
            names = self._names(optimizer)
            by_index, kind = optimizer.state_dict()["state"], type(optimizer).__name__
            kept |= {names[index]: {**entry, _KIND: kind} for index, entry in by_index.items()}
        return {"optimizer": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what optimizers kept of these parameters, on whatever device and in whatever order they are now.

        Parameters that are not among them start anew, also those that another optimizer stepped; what is said of others
        is left out: a model may have been cut otherwise.

        Raises:
            ValueError: the state of a parameter has another shape; nothing was changed then.
        """
        given = {name: entry for name, entry in state["optimizer"].items() if name in self._named}
        for name, entry in given.items():
            for key, value in entry.items():
                if isinstance(value, Tensor) and value.ndim and not _spans(value.shape, self._named[name].shape):
                    raise ValueError(
                        f"{key!r} of {name!r} has shape {list(value.shape)}, not {list(self._named[name].shape)}"
                    )
        for optimizer in self._optimizers:
            kind = type(optimizer).__name__
            kept = {
                index: {key: value for key, value in given[name].items() if key != _KIND}
                for index, name in enumerate(self._names(optimizer))
                if name in given and given[name].get(_KIND, kind) == kind
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """The names of an optimizer's parameters in the order in which it numbers them."""
        names = {id(parameter): name for name, parameter in self._named.items()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def step(self, step: int, *, loss: Tensor | float = 0.0, lr_scale: float = 1.0) -> float:
        """Clip the gradients, take a step of the optimizers along them, and forget them.

        Args:
            step: global step, for the learning rate.
            loss: what the gradients are of, where it is known; read after the clipping was queued.
            lr_scale: factor on the learning rate.

        Returns:
            Norm of the gradient before clipping. If it or the loss is not finite, parameters and optimizers are as
            they were.
        """
        norm = whole(torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)).item()
        if math.isfinite(norm) and math.isfinite(float(loss)):
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self._learning_rate(step) * lr_scale
                optimizer.step()
        for parameter in self._trained:
            parameter.grad = None
        return norm


def _spans(state: torch.Size, parameter: torch.Size) -> bool:
    """Whether a state is of such a parameter: of its shape, or one number for each of its rows or columns."""
    return len(state) == len(parameter) and all(own in (1, whole) for own, whole in zip(state, parameter, strict=True))

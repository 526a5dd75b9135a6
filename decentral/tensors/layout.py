"""Which parameter lives where: named parameters of a model <-> flat float32 fragments on the CPU.

A fragment is what is exchanged in one go. Everybody in a swarm must cut the same model in the same way, so a layout
depends on nothing but the names, the shapes and the order of the parameters, and ``Layout.signature`` tells whether
two workers agree. This module must not know of peers, rounds or outer rules.

Legend: N = values in the fragment.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from decentral.errors import ConfigError, MismatchError
from decentral.tensors.blank import blank
from decentral.tensors.partition import Pattern as Pattern
from decentral.tensors.partition import assign, layer_number, most_fragments, paper_fragments

#: A number of fragments; as many as there can be; or those of Streaming DiLoCo, of three layers each.
Wanted = int | Literal["auto", "paper"]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one parameter in its fragment."""

    name: str
    """Name of the parameter in the model."""
    shape: tuple[int, ...]
    """Its shape."""
    start: int
    """Index of its first value in the fragment."""
    stop: int
    """Index one past its last value in the fragment."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The cut of a model into fragments. Make one with ``Layout.of``."""

    fragments: tuple[tuple[Slot, ...], ...]
    """The slots of each fragment, in the order of the model's parameters."""

    @staticmethod
    def of(parameters: Mapping[str, Tensor], num_fragments: int = 1, pattern: Pattern = "strided") -> "Layout":
        """Cut a model into fragments by layer.

        The layer of a parameter is the first integer in its dotted name (3 in ``blocks.3.attn.weight``). Parameters
        without one (embedding, head, last norm) are the last fragment, layers are dealt out to the others so that
        these have about equally many bytes; with P = 1 everything is in one.

        * ``strided``: layers in order, each to the fragment with the fewest bytes so far. Of equal layers fragment p
          gets p, p + P', p + 2P', ..., P' being the fragments that hold layers. None has more than the lightest
          and its own last layer.
        * ``sequential``: neighbours stay together, and the largest fragment is as small as it can be.

        Args:
            parameters: names and values, in the model's order. Only names and shapes are read.
            num_fragments: P, from 1 to the number of layers, and one more if there are parameters without (any model
                can be one fragment).
            pattern: how layers are dealt out.

        Raises:
            ConfigError: no parameters, one that is not floating point, or a number of fragments that the layers
                cannot fill.

        Source: Streaming DiLoCo (arXiv 2501.18512), fragment patterns. Differences: any number of layers in a
        fragment and not three (``num_fragments_of`` tells the paper's); balanced where layers differ in size; norm and
        head are with the embeddings.
        """
        if not parameters:
            raise ConfigError("the model has no parameters to share", hint="Trainer.parameters() returned nothing.")
        for name, value in parameters.items():
            if not value.is_floating_point():
                raise ConfigError(
                    f"parameter {name!r} is {value.dtype}; only floating point values can be averaged",
                    hint="Leave it out of Trainer.parameters().",
                )
        # All travel as float32, so that values count as bytes do.
        assignment = assign({name: value.numel() for name, value in parameters.items()}, num_fragments, pattern)
        fragments = (
            _slots((name, tuple(value.shape)) for name, value in parameters.items() if assignment[name] == fragment)
            for fragment in range(num_fragments)
        )
        return Layout(tuple(fragments))

    @staticmethod
    def cut_as(parameters: Mapping[str, Tensor], names: Sequence[Sequence[str]]) -> "Layout":
        """A cut that is known already.

        Args:
            parameters: names and values, of which only shapes are read.
            names: of the parameters of each fragment, in order.

        Raises:
            MismatchError: these are not the parameters' names.
        """
        if sorted(name for fragment in names for name in fragment) != sorted(parameters) or not all(names):
            raise MismatchError(
                "the parameters are not those of this model",
                hint="A worker goes on with the model with which it began: the same names and shapes.",
            )
        return Layout(tuple([_slots((name, tuple(parameters[name].shape)) for name in each) for each in names]))

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Of the parameters of each fragment, in order."""
        return tuple([tuple([slot.name for slot in slots]) for slots in self.fragments])

    @property
    def num_fragments(self) -> int:
        """P, the number of fragments."""
        return len(self.fragments)

    @property
    def total_numel(self) -> int:
        """Values in all fragments."""
        return sum(self.numel(fragment) for fragment in range(self.num_fragments))

    @property
    def signature(self) -> str:
        """16 hex characters that are equal if and only if names, shapes, order and fragments are (up to collisions)."""
        cut = [[(slot.name, slot.shape) for slot in slots] for slots in self.fragments]
        return hashlib.blake2b(json.dumps(cut).encode(), digest_size=8).hexdigest()

    def numel(self, fragment: int) -> int:
        """N, the number of values in ``fragment``."""
        return self.fragments[fragment][-1].stop

    def layered(self, fragment: int) -> tuple[tuple[int, int], ...]:
        """Where each parameter of ``fragment`` that belongs to a layer is, as [start, stop), in order."""
        return tuple([(s.start, s.stop) for s in self.fragments[fragment] if layer_number(s.name) is not None])

    def gather(self, parameters: Mapping[str, Tensor], fragment: int, device: torch.device | None = None) -> Tensor:
        """Copy the values of one fragment out of a model.

        Args:
            parameters: names and values of (at least) this fragment; any floating dtype, any device, any strides.
            fragment: which one, from 0.
            device: where to; the CPU if not given.

        Returns:
            A fresh float32 tensor [N] on ``device``.

        Raises:
            MismatchError: a parameter is missing or its shape is not that of the layout.
        """
        numel, on_cpu = self.numel(fragment), device is None or device.type == "cpu"
        flat_N = blank(numel) if on_cpu else torch.empty(numel, dtype=torch.float32, device=device)
        for slot, part in zip(self.fragments[fragment], self._parts(flat_N, fragment), strict=True):
            value = parameters.get(slot.name)
            if value is None:
                raise MismatchError(
                    f"parameter {slot.name!r} is missing from the model",
                    hint="Trainer.parameters() must return the same names for the whole run.",
                )
            if value.shape != slot.shape:
                raise MismatchError(
                    f"parameter {slot.name!r} has shape {list(value.shape)}, the layout has {list(slot.shape)}",
                    hint="Trainer.parameters() must return the same shapes for the whole run.",
                )
            part.view(slot.shape).copy_(value.detach())
        return flat_N

    def scatter(self, flat_N: Tensor, fragment: int) -> dict[str, Tensor]:
        """Name and reshape the values of one fragment.

        Args:
            flat_N: float32 values [N] on the CPU.
            fragment: which one, from 0.

        Returns:
            Views into ``flat_N`` by parameter name: writing to one writes to the other.

        Raises:
            MismatchError: ``flat_N`` has not the shape [N] of the fragment.
        """
        if flat_N.shape != (self.numel(fragment),):
            raise MismatchError(
                f"fragment {fragment} has {self.numel(fragment)} values, got a tensor of shape {list(flat_N.shape)}"
            )
        slots = self.fragments[fragment]
        return {
            slot.name: part.view(slot.shape) for slot, part in zip(slots, self._parts(flat_N, fragment), strict=True)
        }

    def _parts(self, flat_N: Tensor, fragment: int) -> tuple[Tensor, ...]:
        """The values of each parameter, cut all at once."""
        return flat_N.split_with_sizes([slot.stop - slot.start for slot in self.fragments[fragment]])


def num_fragments_of(parameters: Mapping[str, Tensor], wanted: Wanted, max_fragments: int) -> int:
    """P, the number of fragments of a model.

    Args:
        parameters: of the model; only names are read.
        wanted: a number, which stands as it is (``Layout.of`` checks it); ``auto``: every layer is a fragment;
            ``paper``: three layers are. What has no layer is one more.
        max_fragments: the most that ``auto`` and ``paper`` may give, H: one is sent after an inner step; >= 1.
    """
    if isinstance(wanted, int):
        return wanted
    return min(most_fragments(parameters) if wanted == "auto" else paper_fragments(parameters), max_fragments)


def _slots(named_shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Slot, ...]:
    """Slots one behind the other."""
    slots: list[Slot] = []
    for name, shape in named_shapes:
        start = slots[-1].stop if slots else 0
        slots.append(Slot(name, shape, start, start + math.prod(shape)))
    return tuple(slots)

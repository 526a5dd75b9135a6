"""Which parameter goes into which fragment, from names and sizes alone: by layer, balanced, what has no layer apart.

Pure, and the same on every machine: whole numbers only, ties go to the first. Knows no tensors.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from decentral.errors import ConfigError

#: ``strided``: layers in order, each into the lightest fragment so far; ``sequential``: neighbours stay together.
Pattern = Literal["strided", "sequential"]

#: Layers in a fragment of Streaming DiLoCo (arXiv 2501.18512), at every size of model.
_LAYERS_OF_PAPER = 3


def assign(numels: Mapping[str, int], num_fragments: int, pattern: Pattern) -> dict[str, int]:
    """The fragment of every parameter.

    Args:
        numels: values by name of parameter, in the model's order.
        num_fragments: P, at least 1 and at most ``most_fragments``.
        pattern: how layers are dealt out; those without a layer are the last fragment, unless there is but one.

    Raises:
        ConfigError: a number of fragments that the layers cannot fill.
    """
    most = most_fragments(numels)
    if not 1 <= num_fragments <= most:
        message, hint = _refusal(numels, num_fragments, most)
        raise ConfigError(message, hint=hint)
    if num_fragments == 1:
        return dict.fromkeys(numels, 0)
    layer_of = {name: layer_number(name) for name in numels}
    sizes = dict.fromkeys(_layers(numels), 0)
    for name, layer in layer_of.items():
        if layer is not None:
            sizes[layer] += numels[name]
    num_for_layers = num_fragments - _has_apart(numels)
    deal = _stride if pattern == "strided" else _runs
    fragment_of = dict(zip(sizes, deal(list(sizes.values()), num_for_layers), strict=True))
    return {name: num_fragments - 1 if layer is None else fragment_of[layer] for name, layer in layer_of.items()}


def most_fragments(names: Iterable[str]) -> int:
    """One for each layer, and one for what has none, if there is any."""
    return len(_layers(names)) + _has_apart(names)


def paper_fragments(names: Iterable[str]) -> int:
    """One for each three layers, and one for what has none, if there is any."""
    return math.ceil(len(_layers(names)) / _LAYERS_OF_PAPER) + _has_apart(names)


def _refusal(names: Iterable[str], asked: int, most: int) -> tuple[str, str]:
    """What is wrong with a number of fragments, and what to do about it."""
    num_layers = len(_layers(names))
    found = "A layer is found by the first number in a parameter's name, as in 'blocks.3.attn.weight'"
    if not num_layers:
        message = f"{asked} fragments asked for, but the model has no layers: it is one fragment"
        return message, f"{found}. Set method.fragments=1, or name the parameters by layer."
    beyond = " and parameters without one, which are a fragment of their own" if most > num_layers else ""
    message = f"{asked} fragments asked for, but the model has {num_layers} layers{beyond}"
    return message, f"{found}. Set method.fragments between 1 and {most}."


def _stride(sizes: Sequence[int], num_fragments: int) -> list[int]:
    """The fragment of each layer: the lightest so far. Of equal layers p, p + P, p + 2P, ... go together."""
    # A layer may be empty; then the one with fewer layers comes first, so that no fragment stays without.
    loads = [(0, 0, fragment) for fragment in range(num_fragments)]
    fragments = []
    for size in sizes:
        load, num_layers, fragment = min(loads)
        loads[fragment] = (load + size, num_layers + 1, fragment)
        fragments.append(fragment)
    return fragments


def _runs(sizes: Sequence[int], num_runs: int) -> list[int]:
    """The run of each layer: contiguous, the largest as small as can be, then the sum of squares."""
    starts = list(accumulate(sizes, initial=0))
    largest = _least_largest(starts, num_runs)
    # By the layer at which the runs so far end: the least sum of squares with which that can be, and where each ends.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(num_runs):
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for begin, (cost, stops) in best.items():
            for stop in range(begin + 1, len(starts)):
                size = starts[stop] - starts[begin]
                if size > largest:
                    break
                option = (cost + size**2, (*stops, stop))
                longer[stop] = min(option, longer.get(stop, option))
        best = longer
    _, stops = best[len(sizes)]
    return [run for run, (begin, stop) in enumerate(zip((0, *stops), stops, strict=False)) for _ in range(begin, stop)]


def _least_largest(starts: Sequence[int], num_runs: int) -> int:
    """The size of the largest of so many contiguous runs where it is smallest; ``starts`` are sums of sizes from 0."""

    def is_enough(largest: int) -> bool:
        begin = runs = 0
        while begin < len(starts) - 1:
            stop = begin + 1
            while stop < len(starts) and starts[stop] - starts[begin] <= largest:
                stop += 1
            if stop == begin + 1:
                return False
            begin, runs = stop - 1, runs + 1
        return runs <= num_runs

    return bisect_left(range(starts[-1] + 1), True, key=is_enough)


def _layers(names: Iterable[str]) -> list[int]:
    """The numbers of the layers, in order."""
    return sorted({layer for name in names if (layer := layer_number(name)) is not None})


def _has_apart(names: Iterable[str]) -> bool:
    """Whether a parameter belongs to no layer: an embedding, a head, the last norm."""
    return any(layer_number(name) is None for name in names)


def layer_number(name: str) -> int | None:
    """The first integer component of a dotted name, if there is one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)

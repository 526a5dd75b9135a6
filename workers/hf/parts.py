"""First weights of a model's pieces: drawn from the run's seed, or read from where the model lies. It cuts nothing.

Each piece is drawn from a seed of its own, so that a machine has the same blocks whether it holds these or all of them.
Of files only the tensors of the pieces that are wanted are read.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig

from decentral.workers.hf import sources
from decentral.workers.hf.cutting import Cut, empty
from decentral.workers.seeds import seed_of


def drawn(config: PretrainedConfig, cut: Cut, seed: int, wanted: Collection[int], *, ends: bool) -> nn.Module:
    """A model of which some pieces have values, drawn from ``seed``; the others are gone.

    Args:
        config: of the model.
        cut: where its blocks are.
        seed: the run's.
        wanted: numbers of blocks.
        ends: whether all beside the blocks is wanted.
    """
    model = _only(empty(config), cut, wanted, ends=ends)
    layers = cut.list_in(model)
    blocks = {number: layers[number] for number in wanted}
    for number in blocks:
        layers[number] = nn.Identity()
    # What has its values is left alone by transformers from then on.
    if ends:
        _draw(model, model, seed_of(seed, cut.num_blocks))
    for number, block in blocks.items():
        layers[number] = block
        _draw(model, block, seed_of(seed, number))
    if ends:
        cast(Any, model).tie_weights()
    return model


def loaded(
    name: str, config: PretrainedConfig, cut: Cut, wanted: Collection[int], *, ends: bool, download: bool
) -> nn.Module:
    """The same with values of a folder or of the hub, in float32 on the CPU.

    Raises:
        ConfigError: they cannot be read, or are of another architecture.
    """
    kind: Any = type(empty(config))

    def begin(self: Any, config: PretrainedConfig) -> None:
        kind.__init__(self, config)
        _only(self, cut, wanted, ends=ends)

    # Of transformers in name as well, or it takes the class for code of the hub.
    some = type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})
    some._keys_to_ignore_on_load_unexpected = [".*"]  # type: ignore[attr-defined]
    return sources.load_weights(name, config, download=download, kind=some)


def _draw(model: nn.Module, piece: nn.Module, seed: int) -> None:
    piece.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cast(Any, model).initialize_weights()


def _only(model: nn.Module, cut: Cut, wanted: Collection[int], *, ends: bool) -> nn.Module:
    """Take out of a model what is not wanted."""
    layers = cut.list_in(model)
    for number in range(len(layers)):
        if number not in wanted:
            layers[number] = nn.Identity()
    if not ends:
        inside = model
        for step in cut.path.split("."):
            for name, _ in list(inside.named_children()):
                if name != step:
                    setattr(inside, name, nn.Identity())
            inside = inside.get_submodule(step)
        cast(Any, model).all_tied_weights_keys = {}
    return model

"""A byte-level language model on text files: the task ``decentral.workers.lm:build``.

Beside ``build`` the module offers what the command line asks of a task (see ``docs/tasks.md``): ``defaults``,
``resolve``, ``check`` and ``size``, and ``blocks``, the same model in pieces for a pipeline.
"""

from collections.abc import Mapping
from typing import Any

from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Publisher, Seat, Size
from decentral.workers.lm.blocks import make_blocks
from decentral.workers.lm.corpus import load_corpus
from decentral.workers.lm.publish import LlamaFolder
from decentral.workers.lm.settings import check_machine, read_settings
from decentral.workers.lm.trainer import LmTrainer
from decentral.workers.settings import write

#: How several processes can train one model (``--inner``).
inner = ("ddp", "fsdp")

__all__ = ["blocks", "build", "check", "defaults", "inner", "publisher", "resolve", "size"]


def build(settings: Mapping[str, Any], seat: Seat) -> LmTrainer:
    """Make the trainer of one worker.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: the text under ``seat.data`` is missing, unreadable or too small.
    """
    read = read_settings(settings)
    return LmTrainer(read, seat, load_corpus(seat.data, read.window))


def blocks(settings: Mapping[str, Any], seat: Seat, num_microbatches: int) -> ModelBlocks:
    """The model in pieces, for a pipeline whose batches have ``num_microbatches`` equal parts.

    Raises:
        ConfigError: a setting is unknown or out of range, or the sequences of a batch cannot be dealt out evenly.
    """
    return make_blocks(read_settings(settings), seat, num_microbatches)


def defaults() -> dict[str, Any]:
    """All settings with their defaults, in plain nested values."""
    return resolve({})


def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with every default filled in. Raises ``ConfigError`` as ``build`` does."""
    return write(read_settings(settings))


def check(settings: Mapping[str, Any], device: str, shards: int = 1) -> None:
    """Raise ``IncapableError`` if this machine cannot train with ``settings`` on ``device``, one of so many."""
    check_machine(read_settings(settings), device, shards)


def size(settings: Mapping[str, Any]) -> Size:
    """How large the model and a worker's batch are. Raises ``ConfigError`` as ``build`` does."""
    read = read_settings(settings)
    return Size(read.model.num_parameters, read.model.num_layers, read.batch_sequences * read.model.context)


def publisher(settings: Mapping[str, Any], seat: Seat) -> Publisher:
    """What makes of a run's weights a folder that transformers reads."""
    return LlamaFolder(read_settings(settings))

"""Causal language models of transformers on the user's own data: the task ``decentral.workers.hf:build``.

The founder loads the weights, or draws them; the others build the model from its configuration, which the swarm's
carries as text, and get the weights from the swarm. Of an adapter's base every worker has its own copy.

Beside ``build`` the module offers what the command line asks of a task (see ``docs/tasks.md``).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from decentral.errors import ConfigError
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Publisher, Seat, Size
from decentral.run.rows import Alone
from decentral.workers.hf import lora, sources
from decentral.workers.hf.blocks import make_blocks
from decentral.workers.hf.cutting import empty
from decentral.workers.hf.data import DealtData, TrainingData, names_of, open_data
from decentral.workers.hf.model import (
    architecture_of,
    build_model,
    check_machine,
    config_from,
    num_parameters,
    sequence_length,
)
from decentral.workers.hf.publish import Folder
from decentral.workers.hf.settings import HfSettings, read_settings
from decentral.workers.hf.trainer import HfTrainer
from decentral.workers.seeds import seed_of
from decentral.workers.settings import write

#: How several processes can train one model (``--inner``).
inner = ("ddp", "fsdp")

__all__ = ["blocks", "build", "check", "inner", "publisher", "resolve", "size"]

_log = logging.getLogger(__name__)


def build(settings: Mapping[str, Any], seat: Seat) -> HfTrainer:
    """Make the trainer of one worker.

    Raises:
        ConfigError: a setting, the model, the tokenizer or the adapter cannot be used.
        MismatchError: this machine's tokenizer or base weights are not the swarm's.
        DataError: there is no data.
    """
    read = read_settings(settings)
    config = config_from(read.model.config)
    tokenizer = _tokenizer(read, seat)
    data = _data_of_rank(read, config, seat, tokenizer)
    model, name = _model(read, config, seat)
    if read.lora.rank:
        lora.ensure_same_base(model, read.lora.base_digest, name)
        model = lora.with_adapter(model, read.lora, seat.run_seed)
        return HfTrainer(read, seat, model, lora.adapter_values, tokenizer, data)
    return HfTrainer(read, seat, model, lambda whole: dict(whole.named_parameters()), tokenizer, data)


def blocks(settings: Mapping[str, Any], seat: Seat, num_microbatches: int) -> ModelBlocks:
    """The model in pieces, for a pipeline whose batches have ``num_microbatches`` equal parts.

    Raises:
        ConfigError: as ``build`` does; or the model's blocks cannot be found.
        MismatchError: the weights on this machine are not the swarm's.
    """
    read = read_settings(settings)
    config = config_from(read.model.config)

    def open_slot(slot: int) -> TrainingData:
        # Heads that were expected share the rows out in one order; others read on in orders of their own.
        turn, part = divmod(slot, seat.num_heads)
        seed = seed_of(seat.run_seed, turn) if turn else seat.run_seed
        own = replace(seat, run_seed=seed, claims=Alone(part, seat.num_heads))
        return _data(read, config, own, _tokenizer(read, seat))

    if read.model.digest:
        sources.ensure_same_weights(_weights(read, seat), read.model.digest, download=seat.allow_download)
    return make_blocks(read, config, seat, num_microbatches, lambda: _weights(read, seat), open_slot)


def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with every default filled in, and with what a founder reads of model and tokenizer.

    What is there already is not read again, so that the configuration of a run needs no model to be resolved.

    Raises:
        ConfigError: as ``build`` does.
        IncapableError: an adapter's base does not fit into the memory.
    """
    read = read_settings(settings)
    if not read.model.config and not read.model.name:
        raise ConfigError("There is no model to train.", hint="Name one with --model: a folder, or a name on the hub.")
    found = write(read)
    config = config_from(read.model.config) if read.model.config else None
    if config is None:
        found["model"]["config"] = architecture_of(sources.read_config(read.model.name, download=True))
        config = config_from(found["model"]["config"])
    found["seq_len"] = sequence_length(read, config)
    if not read.tokenizer.digest:
        tokenizer = sources.read_tokenizer(read.tokenizer_name, download=True)
        sources.ensure_vocabulary_fits(tokenizer, config)
        found["tokenizer"]["digest"] = sources.vocabulary_digest(tokenizer)
    if read.lora.rank and not read.lora.base_digest:
        check_machine(read, config, _num_trained(read, config), "cpu")
        base = sources.load_weights(read.model.name, config, download=True)
        found["lora"]["base_digest"] = lora.base_digest(base)
    return found


def check(settings: Mapping[str, Any], device: str, shards: int = 1) -> None:
    """Raise ``IncapableError`` if this machine cannot train with ``settings`` on ``device``, one of so many."""
    read = read_settings(settings)
    config = config_from(read.model.config)
    check_machine(read, config, _num_trained(read, config), device, shards)


def size(settings: Mapping[str, Any]) -> Size:
    """How large what is trained and a worker's batch are, by the model's configuration alone.

    Raises:
        ConfigError: a setting, or the model's configuration, cannot be used.
    """
    read = read_settings(settings)
    if read.model.config:
        config = config_from(read.model.config)
    else:
        config = config_from(architecture_of(sources.read_config(read.model.name, download=False)))
    tokens = read.batch_sequences * sequence_length(read, config)
    return Size(_num_trained(read, config), config.get_text_config().num_hidden_layers, tokens)


def publisher(settings: Mapping[str, Any], seat: Seat) -> Publisher:
    """What makes of a run's weights a folder that transformers, or peft, reads."""
    read = read_settings(settings)
    try:
        tokenizer = _tokenizer(read, seat)
    except ConfigError as err:
        _log.warning("leaves the tokenizer out: %s", err.message)
        tokenizer = None
    return Folder(read, config_from(read.model.config), tokenizer, seat.model)


def _model(read: HfSettings, config: PretrainedConfig, seat: Seat) -> tuple[nn.Module, str]:
    """The model on the CPU, with the weights that this worker has to have of its own, and where they are from."""
    if read.lora.rank or (seat.founding and not read.model.from_scratch):
        name = _weights(read, seat)
        return sources.load_weights(name, config, download=seat.founding or seat.allow_download), name
    return build_model(config, seat.run_seed), ""


def _weights(read: HfSettings, seat: Seat) -> str:
    """Where this machine has the weights that the run begins with."""
    return seat.model or _not_a_path("model", read.model.name)


def _data(read: HfSettings, config: PretrainedConfig, seat: Seat, tokenizer: Tokenizer) -> TrainingData:
    return open_data(
        read.data,
        tokenizer,
        seat=seat,
        run_seed=seat.run_seed,
        seq_len=sequence_length(read, config),
        batch_rows=read.batch_sequences,
    )


def _data_of_rank(
    read: HfSettings, config: PretrainedConfig, seat: Seat, tokenizer: Tokenizer
) -> TrainingData | DealtData:
    """This worker's data, or of several ranks each one's part: rank 0 reads for all."""
    if seat.num_ranks == 1:
        return _data(read, config, seat, tokenizer)
    return DealtData(
        None if seat.rank else _data(read, config, seat, tokenizer),
        seat,
        batch_rows=read.batch_sequences,
        seq_len=sequence_length(read, config),
        names=names_of(document_mask=read.data.document_mask),
    )


def _tokenizer(read: HfSettings, seat: Seat) -> Tokenizer:
    """The swarm's tokenizer, as it is on this machine."""
    name = seat.tokenizer or ("" if read.tokenizer.name else seat.model)
    name = name or _not_a_path("tokenizer", read.tokenizer_name)
    tokenizer = sources.read_tokenizer(name, download=seat.founding or seat.allow_download)
    sources.ensure_same_tokenizer(tokenizer, read.tokenizer.digest, name)
    return tokenizer


def _not_a_path(what: str, name: str) -> str:
    """A name on the hub that others have stated. Paths of theirs are not opened.

    Raises:
        ConfigError: it is a path.
    """
    if name.startswith((".", "~", "/")) or Path(name).exists():
        raise ConfigError(
            f"The swarm has its {what} in {name}, which is a path of another machine and is not opened on this one.",
            hint=f"Copy that folder here, and say where it is with --{what} DIR.",
        )
    return name


def _num_trained(read: HfSettings, config: PretrainedConfig) -> int:
    if not read.lora.rank:
        return num_parameters(config)
    return lora.num_adapter_values(empty(config), read.lora)

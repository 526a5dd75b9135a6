"""A model of transformers in pieces, for a pipeline. It knows nothing of stages: only what a piece computes.

Parameters have the names that they have in the whole model, so that the weights of all stages together are a file that
transformers reads.

Legend: B = sequences of a micro-batch, T = tokens of a sequence, D = width of the model.
"""

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from decentral.errors import ConfigError, DataError
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers.hf import parts
from decentral.workers.hf.cutting import Call, Skeleton, empty, find, hollow
from decentral.workers.hf.data import TrainingData
from decentral.workers.hf.data.packing import IGNORED, Batch
from decentral.workers.hf.model import check_part, ends_of, sequence_length
from decentral.workers.hf.settings import HfSettings
from decentral.workers.hf.sources import weights_digest
from decentral.workers.optimizer import make_optimizers
from decentral.workers.settings import per_microbatch


def make_blocks(
    settings: HfSettings,
    config: PretrainedConfig,
    seat: Seat,
    num_microbatches: int,
    source: Callable[[], str],
    data: Callable[[int], TrainingData],
) -> ModelBlocks:
    """The model of ``settings`` in pieces.

    Args:
        settings: of the task.
        config: of its model.
        seat: the run's seed and length; its stream's seed is not used.
        num_microbatches: equal parts of a batch.
        source: says where the weights lie, on a machine that is to load some.
        data: opens the stream of a slot.

    Raises:
        ConfigError: the model or the data cannot be cut, or the sequences of a batch cannot be dealt out evenly.
    """
    _refuse(settings)
    num_sequences = per_microbatch(settings.batch_sequences, num_microbatches)
    cut, optimizer = find(config), settings.optimizer
    seq_len, whole = sequence_length(settings, config), empty(config)
    layers, ends = cut.list_in(whole), ends_of(whole, dict(whole.named_parameters()))
    largest = max(_num_values(layer) for layer in layers)
    beside = _num_values(whole) - _num_values(layers)
    skeleton = functools.lru_cache(functools.partial(hollow, config, cut))
    calls = _Calls(lambda x: skeleton(str(x.device)).calls(x))

    def piece(*wanted: int, is_end: bool = False) -> nn.Module:
        if settings.model.from_scratch:
            return parts.drawn(config, cut, seat.run_seed, wanted, ends=is_end)
        return parts.loaded(source(), config, cut, wanted, ends=is_end, download=seat.allow_download)

    def block(number: int) -> nn.Module:
        if torch.get_default_device().type == "meta":  # only its shapes are wanted
            return layers[number]
        return _Block(cut.list_in(piece(number))[number], number, calls, settings)

    def output(below: nn.Module) -> nn.Module:
        assert isinstance(below, _Ends)
        return _Output(below)

    def found() -> dict[str, str]:
        if settings.model.from_scratch or settings.model.digest:
            return {}
        check(0, is_head=True, device=seat.device)  # before anything is downloaded
        return {"model.digest": weights_digest(source(), download=seat.founding or seat.allow_download)}

    def check(num_blocks: int, is_head: bool, device: str) -> None:
        num_trained = num_blocks * largest + (beside if is_head else 0)
        check_part(settings, config, num_trained, num_blocks, num_sequences if is_head else 0, device)

    return ModelBlocks(
        num_blocks=cut.num_blocks,
        activation_shape=(num_sequences, seq_len, cut.width),
        num_tokens=num_sequences * (seq_len - 1),
        embedding=lambda: _Ends(Skeleton(piece(is_end=True), cut, layers), settings),
        block=block,
        output=output,
        optimizer=lambda named: make_optimizers(named, optimizer, ends),
        learning_rate=lambda step: optimizer.learning_rate_at(step, seat.total_steps),
        clip_norm=optimizer.clip_norm,
        data=lambda: Packed(data, num_microbatches),
        check=check,
        settings=found,
        path=cut.path,
    )


def _refuse(settings: HfSettings) -> None:
    """Raises ``ConfigError`` for what a model in stages cannot do."""
    if settings.lora.rank:
        raise ConfigError(
            "An adapter is not trained in stages, but beside a whole model.",
            hint="Leave --stages or --lora out.",
        )
    if settings.data.document_mask:
        raise ConfigError(
            "data.document_mask is set, and the stages of a pipeline do not hear where documents begin: nothing of the "
            "text leaves its head.",
            hint="Leave it or --stages out.",
        )


class Packed:
    """Batches of a head's data, micro-batch by micro-batch. Implements the port ``BatchSource``.

    A stream of data is read in its order. What is behind the batch that is asked for, after a resume or when a head
    has died, is read up to it once more.

    Args:
        open_slot: opens the data as it is read by the head of a slot, always the same.
        num_microbatches: equal parts of a batch.

    Raises:
        DataError: there is no data.
    """

    def __init__(self, open_slot: Callable[[int], TrainingData], num_microbatches: int) -> None:
        self._open = open_slot
        self._num_microbatches = num_microbatches
        self._slot, self._data = 0, open_slot(0)
        self._start = self._data.state_dict()
        self._number, self._batch = -1, Batch()
        """Of the batch that was given last, and that itself."""
        self._held_out = self._full_parts()

    @property
    def num_held_out(self) -> int:
        """Micro-batches of held-out text."""
        return len(self._held_out)

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        """Tokens, and labels where their tokens are, int64 [B, T] each."""
        if slot != self._slot:
            self._data.close()
            self._slot, self._data, self._number = slot, self._open(slot), -1
            self._start = self._data.state_dict()
        elif batch < self._number:
            self._data.load_state_dict(self._start)
            self._number = -1
        while self._number < batch:
            self._number, self._batch = self._number + 1, next(self._data)
        return self._parts(self._batch)[index]

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens and labels, int64 [B, T] each."""
        return self._held_out[index]

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        pairs = [batch[name].chunk(self._num_microbatches) for name in ("input_ids", "labels")]
        return list(zip(*pairs, strict=True))

    def _full_parts(self) -> list[tuple[Tensor, Tensor]]:
        """Held-out micro-batches, each of equally many tokens, so that means of means are means.

        Raises:
            DataError: not even one is full, though something is held out.
        """
        every = [part for batch in self._data.validation() for part in self._parts(batch)]
        full = [part for part in every if bool((part[1] != IGNORED).all())]
        if every and not full:
            raise DataError(
                "what is held out does not fill one micro-batch",
                hint="Give more rows, set task.settings.data.held_out higher, or to 0 to validate on nothing.",
            )
        return full


class _Calls:
    """How blocks are called, asked once for each shape and device."""

    def __init__(self, ask: Callable[[Tensor], list[Call]]) -> None:
        self._ask = ask
        self._known: dict[tuple[torch.Size, torch.device], list[Call]] = {}

    def of(self, x: Tensor, number: int) -> Call:
        """That of a block for hidden states like these."""
        key = x.shape, x.device
        if key not in self._known:
            self._known[key] = self._ask(x)
        return self._known[key][number]


class _Block(nn.Module):
    """A block, with the names of its own parameters."""

    def __init__(self, block: nn.Module, number: int, calls: _Calls, settings: HfSettings) -> None:
        super().__init__()
        _be_named_like(self, block)
        self._block = (block,)
        if settings.compile:
            block.compile()
        self._number, self._calls, self._settings = number, calls, settings

    def forward(self, x_BTD: Tensor) -> Tensor:
        (block,) = self._block
        call = self._calls.of(x_BTD, self._number)
        trains = torch.is_grad_enabled()
        block.train(trains)
        with _autocast(x_BTD, self._settings):
            if trains and self._settings.activation_checkpointing:
                found = checkpoint(call.of, block, x_BTD, use_reentrant=False)
            else:
                found = call.of(block, x_BTD)
        return cast(Tensor, found).to(x_BTD.dtype)


class _Ends(nn.Module):
    """All that a model has beside its blocks; its forward pass is the embedding."""

    def __init__(self, skeleton: Skeleton, settings: HfSettings) -> None:
        super().__init__()
        _be_named_like(self, skeleton.model)
        self.skeleton, self.settings = skeleton, settings

    def forward(self, ids_BT: Tensor) -> Tensor:
        self.skeleton.model.train(torch.is_grad_enabled())
        with _autocast(ids_BT, self.settings):
            return self.skeleton.embed(ids_BT).float()


class _Output(nn.Module):
    """What is behind the blocks; its parameters are those of the ends."""

    def __init__(self, ends: _Ends) -> None:
        super().__init__()
        self._ends = (ends,)

    def forward(self, x_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        (ends,) = self._ends
        ends.skeleton.model.train(torch.is_grad_enabled())
        with _autocast(x_BTD, ends.settings):
            return ends.skeleton.loss(x_BTD, labels_BT)


def _be_named_like(wrapper: nn.Module, module: nn.Module) -> None:
    """Let a module have all that another one has, by the same names."""
    wrapper._modules, wrapper._parameters, wrapper._buffers = module._modules, module._parameters, module._buffers


def _num_values(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _autocast(x: Tensor, settings: HfSettings) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")

"""A model of transformers in pieces, for a pipeline. It knows nothing of stages: only what a piece computes.

Parameters have the names that they have in the whole model, so that the weights of all stages together are a file that
transformers reads.

Legend: B = sequences of a micro-batch, T = tokens of a sequence, D = width of the model.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from decentral.errors import ConfigError
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

#: Ways of calling that are kept: of micro-batches with a document mask, each of which has its own.
_NUM_KNOWN = 4


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
    calls = _Calls(lambda x, marks: skeleton(str(x.device)).calls(x, marked(marks, x)))

    def piece(*wanted: int, is_end: bool = False) -> nn.Module:
        if settings.model.from_scratch:
            return parts.drawn(config, cut, seat.run_seed, wanted, ends=is_end)
        return parts.loaded(source(), config, cut, wanted, ends=is_end, download=seat.allow_download)

    def block(number: int) -> nn.Module:
        if torch.get_default_device().type == "meta":  # only its shapes are wanted
            return layers[number]
        return _Block(cut.list_in(piece(number))[number], number, calls, settings)

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
        output=lambda below: _Output(cast(_Ends, below)),
        optimizer=lambda named: make_optimizers(named, optimizer, ends),
        learning_rate=lambda step: optimizer.learning_rate_at(step, seat.total_steps),
        clip_norm=optimizer.clip_norm,
        data=lambda: Packed(data, num_microbatches),
        check=check,
        settings=found,
        path=cut.path,
        **(_marks(num_sequences * seq_len) if settings.data.document_mask else {}),
    )


def _refuse(settings: HfSettings) -> None:
    """Raises ``ConfigError`` for what a model in stages cannot do."""
    if settings.lora.rank:
        raise ConfigError(
            "An adapter is not trained in stages: the head, whose weights are frozen, would have nothing to share.",
            hint="Leave --stages out: frozen weights need no gradients and no optimizer state. Or leave --lora out.",
        )


def _marks(num_tokens: int) -> dict[str, Any]:
    """What blocks are told of documents: a bit for each token, set where one begins. Of the text it says no more."""

    def marks(inputs_2BT: Tensor) -> bytes:
        return np.packbits((inputs_2BT[1] == 0).numpy()).tobytes()

    return {"marks": marks, "marks_bytes": -(-num_tokens // 8)}


def marked(marks: bytes, x_BTD: Tensor) -> Tensor | None:
    """The positions of tokens in their documents, int64 [B, T], of what ``ModelBlocks.marks`` said of these."""
    if not marks:
        return None
    shape = x_BTD.shape[:2]
    bits = np.unpackbits(np.frombuffer(marks, dtype=np.uint8), count=math.prod(shape)).reshape(shape)
    places_BT = np.arange(shape[1]) * np.ones_like(bits, dtype=np.int64)
    starts_BT = np.maximum.accumulate(places_BT * bits, axis=1)
    return torch.from_numpy(places_BT - starts_BT).to(x_BTD.device)


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
        every = [part for each in self._data.validation() for part in self._parts(each)]
        counted = [part for part in every if _num_counted(part[1])]
        self._held_out = _weighed(counted) if counted else []

    @property
    def num_held_out(self) -> int:
        """Micro-batches of held-out text."""
        return len(self._held_out)

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a micro-batch.

        Inputs are tokens, int64 [B, T], with a document mask tokens and positions, [2, B, T]. Targets are labels where
        their tokens are and a row more, int64 [B + 1, T]: see ``_weighed``.
        """
        if slot != self._slot:
            self._data.close()
            self._slot, self._data, self._number = slot, self._open(slot), -1
            self._start = self._data.state_dict()
        elif batch < self._number:
            self._data.load_state_dict(self._start)
            self._number = -1
        while self._number < batch:
            self._number, self._batch = self._number + 1, next(self._data)
        return _weighed(self._parts(self._batch))[index]

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        """See ``batch``."""
        return self._held_out[index]

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        names = [name for name in batch if name != "labels"]
        inputs = batch[names[0]] if len(names) == 1 else torch.stack([batch[name] for name in names])
        pairs = inputs.chunk(self._num_microbatches, dim=-2), batch["labels"].chunk(self._num_microbatches)
        return list(zip(*pairs, strict=True))


def _weighed(parts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The targets of micro-batches: their labels, and what makes a mean of their losses that of all tokens.

    That is a row which begins with the tokens that are predicted in all of them, and with how many these are.
    """
    total = sum(_num_counted(labels_BT).item() for _, labels_BT in parts)
    row_1T = torch.zeros_like(parts[0][1][:1])
    row_1T[0, 0], row_1T[0, 1] = total, len(parts)
    return [(inputs, torch.cat((labels_BT, row_1T))) for inputs, labels_BT in parts]


def _num_counted(labels_BT: Tensor) -> Tensor:
    """Tokens that are predicted; the first of a sequence never is."""
    return (labels_BT[:, 1:] != IGNORED).sum()


class _Calls:
    """How blocks are called, asked once for each shape, device and marks; the last ones are kept."""

    def __init__(self, ask: Callable[[Tensor, bytes], list[Call]]) -> None:
        self._ask = ask
        self._known: dict[tuple[torch.Size, torch.device, bytes], list[Call]] = {}

    def of(self, x: Tensor, marks: bytes, number: int) -> Call:
        """That of a block for hidden states like these."""
        key = x.shape, x.device, marks
        if key not in self._known:
            while len(self._known) >= _NUM_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._ask(x, marks)
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

    def forward(self, x_BTD: Tensor, marks: bytes = b"") -> Tensor:
        (block,) = self._block
        call = self._calls.of(x_BTD, marks, self._number)
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

    def forward(self, inputs: Tensor) -> Tensor:
        ids_BT, positions_BT = inputs if inputs.ndim == 3 else (inputs, None)
        self.skeleton.model.train(torch.is_grad_enabled())
        with _autocast(ids_BT, self.settings):
            return self.skeleton.embed(ids_BT, positions_BT).float()


class _Output(nn.Module):
    """What is behind the blocks; its parameters are those of the ends."""

    def __init__(self, ends: _Ends) -> None:
        super().__init__()
        self._ends = (ends,)

    def forward(self, x_BTD: Tensor, targets: Tensor) -> Tensor:
        (ends,) = self._ends
        labels_BT, (total, num_microbatches) = targets[:-1], targets[-1, :2]
        counted = _num_counted(labels_BT)
        # The mean of no tokens is none; it counts for nothing.
        labels_BT = torch.where(counted == 0, labels_BT.clamp(min=0), labels_BT)
        ends.skeleton.model.train(torch.is_grad_enabled())
        with _autocast(x_BTD, ends.settings):
            loss = ends.skeleton.loss(x_BTD, labels_BT)
        return loss.mul(counted * num_microbatches / total)


def _be_named_like(wrapper: nn.Module, module: nn.Module) -> None:
    """Let a module have all that another one has, by the same names."""
    wrapper._modules, wrapper._parameters, wrapper._buffers = module._modules, module._parameters, module._buffers


def _num_values(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _autocast(x: Tensor, settings: HfSettings) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")

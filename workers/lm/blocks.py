"""The language model in pieces, for a pipeline. It knows nothing of stages: only what a piece computes.

The pieces are those of ``decentral.workers.lm.model``, and their parameters have the names they have in ``GPT``, so
that the weights of all stages together are a file that ``LmTrainer`` loads. Each is drawn from a generator of its own.

Legend: B = sequences of a micro-batch, T = positions, D = width of the model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers.lm.corpus import Corpus, load_corpus
from decentral.workers.lm.model import ENDS, NUM_BYTES, Block, Cache, ModelConfig, cross_entropy, initialise, logits
from decentral.workers.lm.settings import LmSettings, check_part
from decentral.workers.optimizer import make_optimizers
from decentral.workers.seeds import seed_of
from decentral.workers.settings import per_microbatch


def make_blocks(settings: LmSettings, seat: Seat, num_microbatches: int) -> ModelBlocks:
    """The model of ``settings`` in pieces.

    Args:
        settings: of the task.
        seat: the run's seed and length, and the files of this machine; its stream's seed is not used.
        num_microbatches: equal parts of a batch.

    Raises:
        ConfigError: the sequences of a batch cannot be dealt out evenly.
    """
    config, optimizer = settings.model, settings.optimizer
    bf16 = settings.precision == "bf16"
    num_sequences = per_microbatch(settings.batch_sequences, num_microbatches)

    def embedding() -> nn.Module:
        return _drawn(_Embedding(config), seat.run_seed, config.num_layers)

    def block(number: int) -> nn.Module:
        return _drawn(_Block(config, bf16=bf16), seat.run_seed, number)

    def output(below: nn.Module) -> nn.Module:
        drawn = _drawn(_Output(config, bf16=bf16), seat.run_seed, config.num_layers + 1)
        if config.tie_embeddings:
            drawn.head = below.embedding
        return drawn

    def check(num_blocks: int, is_head: bool, device: str) -> None:
        check_part(settings, num_blocks, ends=is_head, device=device)

    return ModelBlocks(
        num_blocks=config.num_layers,
        activation_shape=(num_sequences, config.context, config.d_model),
        num_tokens=num_sequences * config.context,
        embedding=embedding,
        block=block,
        output=output,
        optimizer=lambda named: make_optimizers(named, optimizer, ENDS),
        learning_rate=lambda step: optimizer.learning_rate_at(step, seat.total_steps),
        clip_norm=optimizer.clip_norm,
        data=lambda: Windows(load_corpus(seat.data, settings.window), settings, seat.run_seed, num_microbatches),
        check=check,
    )


class Windows:
    """Windows of a corpus, micro-batch by micro-batch.

    All micro-batches of a batch together are one ``Corpus.batch``, the held-out ones together are those of
    ``LmTrainer.validate``: equally many bytes, so that means of means are means.

    Args:
        corpus: text; heads with the same files draw the same windows.
        settings: size of windows and batches.
        run_seed: equal on all heads.
        num_microbatches: equal parts of a batch.
    """

    def __init__(self, corpus: Corpus, settings: LmSettings, run_seed: int, num_microbatches: int) -> None:
        self._corpus = corpus
        self._settings = settings
        self._run_seed = run_seed
        self._num_sequences = settings.batch_sequences // num_microbatches
        self._last: tuple[tuple[int, int], Tensor] | None = None

    @property
    def num_held_out(self) -> int:
        """Micro-batches of held-out text."""
        return self._settings.val_batches * self._settings.batch_sequences // self._num_sequences

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        """Bytes and those that follow them, int64 [B, T] each; drawn from the run's seed, the slot and the batch."""
        if self._last is None or self._last[0] != (slot, batch):
            settings, stream_seed = self._settings, seed_of(self._run_seed, slot)
            drawn = self._corpus.batch(stream_seed, batch, settings.batch_sequences, settings.window)
            self._last = (slot, batch), drawn
        window_BT = self._last[1][index * self._num_sequences :][: self._num_sequences]
        return window_BT[:, :-1], window_BT[:, 1:]

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        """Bytes and those that follow them, int64 [B, T] each."""
        window_BT = self._corpus.held_out_batch(index, self.num_held_out, self._num_sequences, self._settings.window)
        return window_BT[:, :-1], window_BT[:, 1:]


class _Embedding(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(NUM_BYTES, config.d_model))

    def forward(self, bytes_BT: Tensor) -> Tensor:
        return functional.embedding(bytes_BT, self.embedding)


class _Block(Block):
    def __init__(self, config: ModelConfig, *, bf16: bool) -> None:
        super().__init__(config)
        self._bf16 = bf16

    def forward(self, x_BTD: Tensor, turn_TK: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        with _autocast(x_BTD, self._bf16):
            return super().forward(x_BTD, turn_TK, cache)


class _Output(nn.Module):
    def __init__(self, config: ModelConfig, *, bf16: bool) -> None:
        super().__init__()
        self.final_norm = nn.Parameter(torch.empty(config.d_model))
        self.head = nn.Parameter(torch.empty(NUM_BYTES, config.d_model))
        self._bf16 = bf16

    def forward(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        with _autocast(x_BTD, self._bf16):
            return cross_entropy(logits(x_BTD, self.final_norm, self.head), targets_BT)


def _autocast(x: Tensor, bf16: bool) -> torch.autocast:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16)


def _drawn(module: nn.Module, run_seed: int, place: int) -> nn.Module:
    """``module`` with initial weights; ``place`` tells the pieces of a model apart."""
    initialise(module, torch.Generator().manual_seed(seed_of(run_seed, place)))
    return module

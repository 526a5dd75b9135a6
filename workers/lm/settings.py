"""Settings of the language model task, their limits, and whether a machine can carry them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decentral.workers.lm.model import NUM_BYTES, ModelConfig
from decentral.workers.machine import PRECISIONS, VALUES_PER_PARAMETER, check_device, check_memory
from decentral.workers.optimizer import OptimizerConfig
from decentral.workers.settings import read, require


@dataclass(frozen=True, slots=True)
class LmSettings:
    """Everything a run says about its language model task."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_sequences: int = 16
    """Sequences of one inner step of one worker."""
    precision: str = "fp32"
    """``fp32``, or ``bf16`` for autocast: weights and optimizer stay in fp32."""
    val_batches: int = 8
    """Held-out batches of ``batch_sequences`` behind every validation loss."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        require(self.batch_sequences >= 1, "batch_sequences", self.batch_sequences, "at least 1")
        require(self.val_batches >= 1, "val_batches", self.val_batches, "at least 1")
        require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))

    @property
    def window(self) -> int:
        """Bytes of one sequence: its inputs and, one further, its targets."""
        return self.model.context + 1

    @property
    def required_bytes(self) -> int:
        """Rough upper estimate of the memory that training takes, without the interpreter and the corpus."""
        return self.required_bytes_of(self.model.num_layers, ends=True)

    def required_bytes_of(self, num_layers: int, *, ends: bool) -> int:
        """The same for some layers, and embedding and output layer with ``ends``, with all of a batch in flight."""
        model = self.model
        positions = self.batch_sequences * model.context
        # What autograd keeps of a layer (about ten tensors of the width, four of the hidden layer), and the logits.
        activations = num_layers * (10 * model.d_model + 4 * model.hidden) + (3 * NUM_BYTES if ends else 0)
        return 4 * (VALUES_PER_PARAMETER * model.num_parameters_of(num_layers, ends=ends) + positions * activations)


def read_settings(settings: Mapping[str, Any]) -> LmSettings:
    """Settings with defaults filled in. Raises ``ConfigError`` naming the key, its value and what it may be."""
    return read(LmSettings, settings)


def check_machine(settings: LmSettings, device: str, shards: int = 1) -> None:
    """Make sure that this machine can train the whole model with ``settings``. Raises as ``check_part`` does."""
    check_part(settings, settings.model.num_layers, ends=True, device=device, shards=shards)


def check_part(settings: LmSettings, num_layers: int, *, ends: bool, device: str, shards: int = 1) -> None:
    """Make sure that this machine can train some layers with ``settings``, and embedding and output with ``ends``.

    On a GPU that is one of so many ``shards``, it has as much of everything; the CPU beside it has what all share.

    Raises:
        ConfigError: ``device`` is not a device's name.
        IncapableError: the device is absent, lacks bf16, or has not enough memory.
    """
    check_device(device, bf16=settings.precision == "bf16")
    whole = ends and num_layers == settings.model.num_layers
    check_memory(
        settings.required_bytes_of(num_layers, ends=ends) // (1 if device == "cpu" else shards),
        f"training {settings.model.num_parameters_of(num_layers, ends=ends):,} parameters",
        device,
        hint="Lower batch_sequences or the size of the model, or use a machine with more memory."
        if whole
        else "Give this machine fewer layers: more stages have fewer each.",
    )

"""Settings of the task that trains models of transformers, and their limits. It opens nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decentral.errors import ConfigError
from decentral.workers.hf.data import DataSettings
from decentral.workers.machine import PRECISIONS
from decentral.workers.optimizer import OptimizerConfig
from decentral.workers.settings import read, require


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model."""

    name: str = ""
    """Folder, ``config.json`` or name on the hub, as its founder sees it."""
    config: str = ""
    """The architecture as JSON, which ``resolve`` reads: from it every worker builds the model."""
    digest: str = ""
    """Of the weights that a run in stages begins with, as no worker has all of them; read by its founder."""
    from_scratch: bool = False
    """Whether the founder draws its weights in place of loading them."""


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Which tokenizer."""

    name: str = ""
    """Folder or name on the hub; empty for that of the model."""
    digest: str = ""
    """Of its vocabulary, which ``resolve`` reads: that of every worker must be the same."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A low-rank adapter (LoRA, arXiv 2106.09685) beside frozen weights; none with rank 0."""

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    target: str = ""
    """Names of linear layers, with commas between; empty for all but the output layer."""
    base_digest: str = ""
    """Of the frozen weights, which ``resolve`` reads: those of every worker must be the same."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        require(self.rank >= 0, "lora.rank", self.rank, "at least 0")
        require(self.alpha > 0, "lora.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "in [0, 1)")

    @property
    def targets(self) -> list[str]:
        """The names of ``target``."""
        return [name.strip() for name in self.target.split(",") if name.strip()]


@dataclass(frozen=True, slots=True)
class HfSettings:
    """Everything a run says about its task."""

    model: ModelSource = field(default_factory=ModelSource)
    tokenizer: TokenizerSource = field(default_factory=TokenizerSource)
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=2e-5, betas=(0.9, 0.95), clip_norm=1.0)
    )
    seq_len: int = 0
    """Tokens of a sequence; 0 for what the model sees at once, 1024 at most."""
    batch_sequences: int = 8
    """Sequences of one inner step of one worker, however many go through the model at a time."""
    micro_batch: int = 0
    """Sequences that go through the model at a time; 0 for all of a batch. Halved where memory does not suffice."""
    precision: str = "fp32"
    """``fp32``, or ``bf16`` for autocast: weights and optimizer stay in fp32."""
    activation_checkpointing: bool = False
    """Compute activations anew in the backward pass, for less memory and a third more time."""
    compile: bool = False
    """Run the model through ``torch.compile``."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        require(self.seq_len >= 0 and self.seq_len != 1, "seq_len", self.seq_len, "at least 2, or 0")
        require(self.batch_sequences >= 1, "batch_sequences", self.batch_sequences, "at least 1")
        require(
            0 <= self.micro_batch <= self.batch_sequences, "micro_batch", self.micro_batch, "from 0 to batch_sequences"
        )
        require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        if self.lora.rank and self.model.from_scratch:
            raise ConfigError(
                "An adapter is trained beside weights that are known, and these are drawn from scratch.",
                hint="Leave --lora or --from-scratch out.",
            )

    @property
    def tokenizer_name(self) -> str:
        """Where the swarm has its tokenizer from."""
        return self.tokenizer.name or self.model.name


def read_settings(settings: Mapping[str, Any]) -> HfSettings:
    """Settings with defaults filled in. Raises ``ConfigError`` naming the key, its value and what it may be."""
    return read(HfSettings, settings)

"""What is the same for all members of a pipeline."""

from dataclasses import dataclass
from typing import Literal

from decentral.codecs.codec import Codec
from decentral.pipeline.cut import Healing
from decentral.pipeline.recovery import Norm
from decentral.pipeline.routing import Permutation, Router, Wiring
from decentral.pipeline.stored import Span

Routing = Literal["permutation", "speed"]


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Equal on all workers of a run."""

    spans: tuple[Span, ...]
    """Blocks [first, stop) of every stage; empty in a run whose cut changes: its head makes the first one."""
    healing: Healing
    codec: Codec
    """Of activations and their gradients."""
    seed: int
    """The run's."""
    num_microbatches: int = 8
    """M, in a head's batch."""
    in_flight: int = 0
    """Most micro-batches of a head that are under way; 0 for a whole batch."""
    routing: Routing = "permutation"
    norm: Norm = "l2"
    num_replicas: int = 0
    """Of every stage; more joiners wait as spares. 0 for no limit."""
    lr_boost: float = 1.1
    """On the learning rate of a stage that was healed from others ..."""
    lr_boost_steps: int = 100
    """... for so many steps."""
    inner_steps: int = 1
    """H, of every stage's swarm."""
    eval_every_rounds: int = 0
    """Rounds between two validations by the head of the lowest slot; 0 for none."""
    min_machines: int = 0
    """Of a run whose cut changes: so many are waited for with the first one, beside the head."""

    @property
    def moves(self) -> bool:
        """Whether the cut changes while the run goes on."""
        return not self.spans

    @property
    def swap(self) -> bool:
        """Whether every second micro-batch goes through the first two and the last two stages in the other order."""
        return self.healing == "checkfree+"

    @property
    def window(self) -> int:
        """Most micro-batches of a head that are under way."""
        return self.in_flight or self.num_microbatches

    def router(self) -> Router:
        """A fresh one."""
        return Permutation(self.seed) if self.routing == "permutation" else Wiring(self.seed)

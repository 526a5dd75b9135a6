"""What the composition root hands to a worker."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.feedback import Feedback
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.merge import WeightBy
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.journal import Journal
from decentral.outer.eager import Eager
from decentral.outer.rule import OuterRule
from decentral.ports.clock import Clock
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.ports.trainer import InnerLoop, Model
from decentral.ports.transport import Transport
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.state.worker_state import WorkerState, Written
from decentral.swarm.timing import Timing
from decentral.tensors.layout import Pattern

#: One for each way of mixing.
Mixing = AllReduceOptions | GossipOptions | ServerOptions


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Equal on all workers of a run."""

    run_id: str
    config: bytes
    """The swarm's configuration as it is handed to joiners; the engine does not look into it."""
    rounds: int
    """Outer rounds until the run is done."""
    plan: SyncPlan
    rule: OuterRule
    codec: Codec
    """For contributions."""
    mean_codec: Codec
    """For the mean that a reducer sends back."""
    feedback: Callable[[int], Feedback] = Feedback
    """Makes what becomes of the error of ``codec``, for so many fragments."""
    mixing: Mixing = field(default_factory=AllReduceOptions)
    """How workers mix; of a parameter server ``rule`` is ``Follow``."""
    weight_by: WeightBy = "tokens"
    """What a contribution weighs."""
    pattern: Pattern = "strided"
    """How the model's layers are dealt out to fragments."""
    auto_delay: bool = False
    """Whether each worker gives its transfers as many inner steps as it measures that they take; else the plan says."""
    auto_groups: bool = False
    """Whether fragments are launched together in as many groups as the slowest link asks for."""
    mix_alpha: float = 0.0
    """Share of the local parameters kept when a new anchor is taken in (0: replaced)."""
    eager: Eager | None = None
    """Overlap an exchange with the whole next round, going on from the own fresh work."""
    min_workers: int = 1
    """The first inner step waits for so many workers, for two minutes at most (``company``)."""
    eval_every_rounds: int = 0
    """Validate the anchor after every so many rounds (0: never)."""
    rolls_back: bool = False
    """Whether a ruined run goes back to its last good anchor, which all must have in common; else it ends."""
    timing: Timing = field(default_factory=Timing)
    own_steps: bool = True
    """Whether every worker counts its inner steps itself, and can leave some out to make up for a round that it was
    late for; else somebody else counts them, the same for all (the heads of a pipeline)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a worker is: the anchors it holds and how it came to them."""

    done: bool
    """Whether the run is finished."""
    round: int
    tokens: int
    """Tokens this worker trained on."""
    digest: str
    anchors: dict[str, Tensor]
    """Named parameters, float32 on CPU."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports and the user's model, this worker's own."""

    transport: Transport
    directory: Directory
    clock: Clock
    identity: Identity
    model: Model
    inner: InnerLoop
    """Takes the model's inner steps."""
    journal: Journal
    look_s: float = 1.0
    """So often it looks for a signal to stop: inner steps are asked for in chunks of about this time."""
    restored: WorkerState | None = None
    """Of this worker's earlier life in the same run."""
    save: Callable[[WorkerState], Written | None] | None = None
    """Keeps a state; called on the clock's second thread, must not raise. Says what was written, if it was."""
    save_every: Every = field(default_factory=Every)
    protect: int = 0
    """So many others keep in memory what this worker alone has."""
    guard_bytes: int = 0
    """Of memory, for what it keeps for others."""
    note: Callable[[], str] = lambda: ""
    """What others are told that is wrong here though this worker takes part, such as a full disk; 200 characters."""
    device: str = "cpu"

"""What the composition root hands to a worker."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.feedback import Feedback
from decentral.exchange.allreduce.participants import Quorum
from decentral.exchange.gossip.pairing import Pairing
from decentral.exchange.merge import Merge, WeightBy
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.journal import Journal
from decentral.outer.eager import Eager
from decentral.outer.rule import OuterRule
from decentral.ports.clock import Clock
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.ports.trainer import InnerLoop, Model
from decentral.ports.transport import Transport
from decentral.schedule.plan import SyncPlan
from decentral.swarm.timing import Timing
from decentral.tensors.layout import Pattern


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
    keep_rest: bool = True
    """Whether a reducer adds what ``mean_codec`` left out of a mean to its next one."""
    over_senders: bool = False
    """Whether a value's mean is over those who sent it (see ``Ledger.mean``)."""
    merge: Merge = "mean"
    """What the all-reduce makes of the contributions."""
    weight_by: WeightBy = "tokens"
    """What a contribution weighs."""
    quorum: Quorum | None = None
    """How many members make a round of the all-reduce; ``None`` for everybody worth waiting for."""
    pairing: Pairing | None = None
    """Gossip in small groups; ``None`` for the all-reduce."""
    server: ServerOptions | None = None
    """No rounds, but servers that count pseudo-gradients as they come; ``rule`` is ``Follow`` then."""
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
    """The first inner step waits for so many workers, for at most ``_GATHER_S`` (see ``worker``)."""
    eval_every_rounds: int = 0
    """Validate the anchor after every so many rounds (0: never)."""
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
    residuals: dict[str, Tensor]
    """What error feedback still has to send, named and shaped as the parameters; empty for nothing."""


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
    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    """Of this worker's earlier life in the same run; a founder has none."""
    save: Callable[[Outcome], None] | None = None
    """Keeps the anchors now and then; called on the clock's thread, must not raise."""
    save_every_s: float = 60.0
    device: str = "cpu"

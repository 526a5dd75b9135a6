"""The events of a worker's life, one frozen dataclass each. Adding a field is compatible, renaming one is not.

An event carries what happened, never when: the journal adds the time. Floats may be NaN (a loss that was not
measured); bytes and seconds say so in their names.
"""

import math
from dataclasses import dataclass

from decentral.types import PeerId

#: Peers that were known but not in a round, each with the reason.
Absent = tuple[tuple[PeerId, str], ...]


@dataclass(frozen=True, slots=True)
class Started:
    """The worker is up and has its configuration."""

    run: str
    peer: PeerId
    version: str
    device: str
    config_digest: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The current weights were downloaded from ``donor``; the first round to take part in is ``round``."""

    donor: PeerId
    round: int
    downloaded_bytes: int
    seconds: float
    residual_norm: float
    """L2 norm of what it still had to send when it left this run before; 0 for a newcomer."""


@dataclass(frozen=True, slots=True)
class Downloading:
    """A download of weights is under way."""

    received_bytes: int
    total_bytes: int
    """That are fetched in all."""
    num_donors: int
    """That are giving."""
    left_s: float
    """Until all is here, about; NaN if nothing came lately."""


@dataclass(frozen=True, slots=True)
class StretchDone:
    """A stretch of inner steps ended at global step ``step``."""

    round: int
    step: int
    tokens: int
    """Tokens of this stretch."""
    loss: float
    """Mean training loss of the stretch, nats per token."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Launched:
    """A fragment was sent on its way to ``round``.

    It ends with a ``RoundMixed`` or ``RoundAborted`` of that round, or of a later one if it was over by then.
    """

    round: int
    fragment: int
    step: int
    """Inner steps taken."""


@dataclass(frozen=True, slots=True)
class RoundMixed:
    """A fragment was mixed and its new anchor applied."""

    round: int
    fragment: int
    members: tuple[PeerId, ...]
    absent: Absent
    delta_norm: float
    """L2 norm of the mean that came; with EF21 the mean of changes."""
    residual_norm: float
    """L2 norm of what this worker's codec has left out and it still has to send."""
    sent_bytes: int
    """By this worker since it started, as is ``received_bytes``."""
    received_bytes: int
    waiting_s: float
    """The exchange's own, as is ``transfer_s``: both pass during inner steps where those overlap."""
    transfer_s: float
    digest: str
    """Of the new anchor and outer state: equal on all members, except in gossip."""
    spread: float = math.nan
    """Gossip: RMS of the difference between this worker's anchor and a partner's over the RMS of the anchor, before
    the pull; NaN without a partner."""
    deadline_s: float = math.nan
    """Gossip in rounds: the longest wait for partners that this worker had set itself; else NaN."""
    held_s: float = 0.0
    """How long training stood still for this round."""
    held_waiting_s: float = 0.0
    """So much of ``held_s`` was spent on waiting for others."""
    delay_steps: int = 0
    """Inner steps between launch and application."""


@dataclass(frozen=True, slots=True)
class RoundAborted:
    """A fragment was not mixed; anchor and residual are as before."""

    round: int
    fragment: int
    reason: str
    detail: str
    absent: Absent
    waiting_s: float
    held_s: float = 0.0
    """As in ``RoundMixed``, as is ``held_waiting_s``."""
    held_waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Paced:
    """From now on exchanges overlap ``delay_steps`` inner steps, and there are ``num_groups`` launches a round."""

    delay_steps: int
    num_groups: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """Gossip at random moments: this worker and ``partner`` moved their anchors towards each other in ``round``."""

    round: int
    fragment: int
    partner: PeerId
    spread: float
    """As in ``RoundMixed``."""


@dataclass(frozen=True, slots=True)
class OneSided:
    """Gossip: this worker applied its half of a swap, and ``peer`` did not confirm that it applied the other."""

    round: int
    fragment: int
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Avoided:
    """Gossip: ``peer`` failed this worker, which will not choose it as a partner for ``seconds``."""

    peer: PeerId
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Restrained:
    """What ``peer`` brought did not count as it was brought: weight or values were cut down, or left out."""

    round: int
    fragment: int
    peer: PeerId
    kind: str
    """Such as ``length``; of a reducer that answered with no mean ``mean``. See ``exchange.bounds.Kind``."""
    ratio: float
    """Weight or norm over the median of the members'; of ``against`` the median cosine with the others. Of gossip
    the distance from this worker's own values over the radius."""
    share: float
    """Of the fragment's values, that were in shards in which this was so."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """The anchor differed from the swarm's and was replaced by that of ``donor``."""

    donor: PeerId
    round: int
    downloaded_bytes: int
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Validated:
    """Validation loss (nats per token) of the anchor at the start of ``round``."""

    round: int
    val_loss: float


@dataclass(frozen=True, slots=True)
class SatOut:
    """The worker kept its contribution to itself or lost it, for instance because it was not finite."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class StagePlaced:
    """Pipeline: this worker holds ``stage`` from global step ``step`` on (0 is the head)."""

    stage: int
    slot: int
    """Of a head: which part of the data it draws."""
    source: str
    """Where the weights came from, a ``pipeline.recovery.Source``."""
    donors: tuple[PeerId, ...]
    step: int
    downloaded_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Recut:
    """Pipeline whose cut changes: a head has moved blocks, or has tried to, between two batches."""

    number: int
    """Of the cut that is in force now."""
    step: int
    """The next one."""
    spans: tuple[tuple[int, int], ...]
    """Blocks [first, stop) of every stage."""
    num_moved: int
    """Blocks that another machine has now."""
    seconds: float
    """For which no batch was under way."""
    problem: str
    """Why the cut is the old one; empty if it is not."""


@dataclass(frozen=True, slots=True)
class StageLost:
    """Pipeline: a head sees that nobody holds ``stage`` any more; the batch under way waits."""

    stage: int
    step: int
    loss: float
    """Of the last batch."""


@dataclass(frozen=True, slots=True)
class StageRecovered:
    """Pipeline: the first batch has passed a stage that this worker brought back."""

    stage: int
    source: str
    donors: tuple[PeerId, ...]
    step: int
    loss_before: float
    """Of the last batch before the loss of the stage, as far as this worker knows; nats per token."""
    loss_after: float
    """Of the first batch after it."""
    seconds: float
    """Since this worker began to take the stage over."""


@dataclass(frozen=True, slots=True)
class BatchCounted:
    """Pipeline: at ``stage``, this worker's step ``step`` counted these micro-batches of a batch."""

    stage: int
    step: int
    slot: int
    batch: int
    indices: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Resent:
    """Pipeline: a head sends a micro-batch again."""

    batch: int
    index: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer entered the roster."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A peer left the roster."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Saved:
    """What this worker goes on from was written to ``path``, with the anchor at the start of ``round``."""

    path: str
    round: int
    step: int = 0
    held_s: float = 0.0
    """For so long training stood still for it."""
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Resumed:
    """The worker goes on from a state of its earlier life: on its own, or beside a downloaded one."""

    step: int
    """At which the state was saved."""
    round: int
    """In which the worker goes on."""
    tokens: int
    """Trained on before."""
    work_steps: int
    """Inner steps of local work that no round has counted and that go on."""
    dropped_steps: int
    """Of those that were saved, the inner steps that a round may have counted since."""
    kept: tuple[str, ...]
    """What carries over, in words."""
    anew: tuple[str, ...]
    """What starts anew."""


@dataclass(frozen=True, slots=True)
class Protected:
    """What this worker alone has at ``step`` was given to others to keep in memory."""

    step: int
    nbytes: int
    """Of one copy."""
    seconds: float
    guards: tuple[PeerId, ...]
    """Who has it; fewer than asked for if others had no room or are not there."""


@dataclass(frozen=True, slots=True)
class TookUp:
    """This worker, which came without a state of its own, was given what a lost one left."""

    owner: PeerId
    """Who was lost."""
    guard: PeerId
    """Who had kept it."""
    step: int
    nbytes: int
    problem: str
    """Why it is of no use; empty if the trainer goes on from it."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker's last event."""

    reason: str
    round: int
    tokens: int
    """Tokens this worker has trained on, in all its lives."""


Event = (
    Started
    | Downloading
    | Joined
    | StretchDone
    | Launched
    | RoundMixed
    | RoundAborted
    | Paced
    | Pulled
    | OneSided
    | Avoided
    | Restrained
    | Repaired
    | Validated
    | SatOut
    | StagePlaced
    | Recut
    | StageLost
    | StageRecovered
    | BatchCounted
    | Resent
    | PeerSeen
    | PeerLost
    | Saved
    | Protected
    | TookUp
    | Resumed
    | Stopped
)

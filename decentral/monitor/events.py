"""The events of a worker's life, one frozen record each. Adding a field is compatible, renaming one is not.

An event carries what happened, never when: the journal adds the time. Floats may be NaN (a loss that was not
measured); bytes and seconds say so in their names.
"""

import math

import msgspec

from decentral.types import PeerId

#: Peers that were known but not in a round, each with the reason.
Absent = tuple[tuple[PeerId, str], ...]


class Event(msgspec.Struct, frozen=True):
    """What all of them are."""


class Started(Event, frozen=True):
    """The worker is up and has its configuration."""

    run: str
    peer: PeerId
    version: str
    device: str
    config_digest: str


class Joined(Event, frozen=True):
    """The current weights were downloaded from ``donor``; the first round to take part in is ``round``."""

    donor: PeerId
    round: int
    downloaded_bytes: int
    seconds: float
    residual_norm: float
    """L2 norm of what it still had to send when it left this run before; 0 for a newcomer."""
    num_compared: int | None = None
    """With the states of so many others it was compared, where every worker has an anchor of its own."""
    passed_by: tuple[PeerId, ...] = ()
    """Donors that it was not taken from, as theirs were far from most others'."""


class Downloading(Event, frozen=True):
    """A download of weights is under way."""

    received_bytes: int
    total_bytes: int
    """That are fetched in all."""
    num_donors: int
    """That are giving."""
    left_s: float
    """Until all is here, about; NaN if nothing came lately."""


class StretchDone(Event, frozen=True):
    """A stretch of inner steps ended at global step ``step``."""

    round: int
    step: int
    tokens: int
    """Tokens of this stretch."""
    loss: float
    """Mean training loss of the stretch, nats per token."""
    seconds: float


class Launched(Event, frozen=True):
    """A fragment was sent on its way to ``round``.

    It ends with a ``RoundMixed`` or ``RoundAborted`` of that round, or of a later one if it was over by then.
    """

    round: int
    fragment: int
    step: int
    """Inner steps taken."""


class RoundMixed(Event, frozen=True):
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


class RoundAborted(Event, frozen=True):
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


class Paced(Event, frozen=True):
    """From now on exchanges overlap ``delay_steps`` inner steps, and there are ``num_groups`` launches a round."""

    delay_steps: int
    num_groups: int


class Pulled(Event, frozen=True):
    """Gossip at random moments: this worker and ``partner`` moved their anchors towards each other in ``round``."""

    round: int
    fragment: int
    partner: PeerId
    spread: float
    """As in ``RoundMixed``."""


class OneSided(Event, frozen=True):
    """Gossip: this worker applied its half of a swap, and ``peer`` did not confirm that it applied the other."""

    round: int
    fragment: int
    peer: PeerId


class Avoided(Event, frozen=True):
    """Gossip: ``peer`` failed this worker, which will not choose it as a partner for ``seconds``."""

    peer: PeerId
    reason: str
    seconds: float


class Restrained(Event, frozen=True):
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


class Repaired(Event, frozen=True):
    """The anchor differed from the swarm's and was replaced by that of ``donor``."""

    donor: PeerId
    round: int
    downloaded_bytes: int
    seconds: float
    reason: str


class Validated(Event, frozen=True):
    """Validation loss (nats per token) of the anchor at the start of ``round``."""

    round: int
    val_loss: float


class RolledBack(Event, frozen=True):
    """All that was learnt was lost, and ``round`` begins with the anchor that ``to_round`` had begun with."""

    round: int
    to_round: int
    val_loss: float
    """Of that anchor, as this worker measured it."""
    reason: str


class SatOut(Event, frozen=True):
    """The worker kept its contribution to itself or lost it, for instance because it was not finite."""

    round: int
    reason: str


class StagePlaced(Event, frozen=True):
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


class Recut(Event, frozen=True):
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


class StageLost(Event, frozen=True):
    """Pipeline: a head sees that nobody holds ``stage`` any more; the batch under way waits."""

    stage: int
    step: int
    loss: float
    """Of the last batch."""


class StageRecovered(Event, frozen=True):
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


class BatchCounted(Event, frozen=True):
    """Pipeline: at ``stage``, this worker's step ``step`` counted these micro-batches of a batch."""

    stage: int
    step: int
    slot: int
    batch: int
    indices: tuple[int, ...]
    tokens: int


class Resent(Event, frozen=True):
    """Pipeline: a head sends a micro-batch again."""

    batch: int
    index: int
    attempt: int
    reason: str


class PeerSeen(Event, frozen=True):
    """A peer entered the roster."""

    peer: PeerId


class PeerLost(Event, frozen=True):
    """A peer left the roster."""

    peer: PeerId
    reason: str


class Saved(Event, frozen=True):
    """What this worker goes on from was written to ``path``, with the anchor at the start of ``round``."""

    path: str
    round: int
    step: int = 0
    held_s: float = 0.0
    """For so long training stood still for it."""
    nbytes: int = 0


class Resumed(Event, frozen=True):
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


class Protected(Event, frozen=True):
    """What this worker alone has at ``step`` was given to others to keep in memory."""

    step: int
    nbytes: int
    """Of one copy."""
    seconds: float
    guards: tuple[PeerId, ...]
    """Who has it; fewer than asked for if others had no room or are not there."""


class TookUp(Event, frozen=True):
    """This worker, which came without a state of its own, was given what a lost one left."""

    owner: PeerId
    """Who was lost."""
    guard: PeerId
    """Who had kept it."""
    step: int
    nbytes: int
    problem: str
    """Why it is of no use; empty if the trainer goes on from it."""


class Stopped(Event, frozen=True):
    """The worker's last event."""

    reason: str
    round: int
    tokens: int
    """Tokens this worker has trained on, in all its lives."""

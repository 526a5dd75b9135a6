"""What ``status`` answers: the fields of a report and what they mean. Pure; must not import torch."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum

from decentral.monitor.journal import finite
from decentral.types import PeerId

#: Of ``StatusReport.to_json``, described in docs/status-schema.md. Raised when a field changes meaning or goes away.
SCHEMA_VERSION = 2

#: ``WorkerRow.state`` of a worker that is gone without a word: no worker says that of itself.
LOST = "lost"


class Health(StrEnum):
    """The swarm in one word."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """At least one worker does not contribute as it should, or a stage has no holder; its row says why."""
    EMPTY = "empty"
    """Nobody has been seen within the time to live."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is the same for all workers of a run."""

    run_id: str
    method: str
    codec: str
    rounds: int
    """Planned rounds."""
    protocol: int
    version: str
    """Release of decentral that answered."""
    config_digest: str
    gossip: bool = False
    """Whether each worker has an anchor of its own, mixed with few others' at a time."""
    num_stages: int = 0
    """Of a pipeline, beside the head; 0 if every worker has the whole model."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums and means over the workers listed. Counters are since each worker started.

    In a pipeline tokens and losses are those of the heads: every stage has to do with the same tokens.
    """

    round: int
    """The newest round that a worker is in."""
    tokens: int
    loss: float
    """Training loss (nats per token), weighted by the tokens of each worker's last round; NaN if unknown."""
    val_loss: float
    """Last validation loss, from the worker that is furthest; NaN if unknown."""
    tokens_per_s: float
    sent_bytes: int
    dp_bytes: int
    """What data-parallel training would have sent for the same steps."""
    dp_ratio: float
    """``dp_bytes / sent_bytes``; NaN before anything was sent."""
    contributing: int
    """Workers that take part in rounds."""
    spread: float
    """Gossip: median over the active workers of each one's ``spread``; NaN if unknown."""
    activation_bytes: int
    """Pipeline: activations and their gradients that were sent; part of ``sent_bytes``."""
    resent: int
    """Pipeline: micro-batches that heads had to send again."""


@dataclass(frozen=True, slots=True)
class LinkRow:
    """What a worker says of its link to another one."""

    id: str
    """Short id of the other one."""
    round_trip_s: float
    """The quickest of its last signs of life, there and back; NaN if unknown."""
    sent_bytes: int
    """Requests and replies of calls that have ended, as are ``received_bytes``."""
    received_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker."""

    id: str
    """Short id, for people."""
    peer: PeerId
    state: str
    """As it said last; ``LOST`` if it has been silent for too long since, and neither left nor finished the run."""
    contributes: bool
    """Whether it takes part in rounds."""
    reason: str
    """Why it does not contribute; empty if it does."""
    note: str
    """What its user should look into although it contributes, such as a full disk; empty if there is nothing."""
    healthy: bool
    """False if there is a note, or the reason is one to look into (joining, leaving and being done are not)."""
    round: int
    step: int
    loss: float
    tokens: int
    tokens_per_s: float
    compute_share: float
    """Of the time since training began, or of what is accounted for if that is more. What is missing to 1 went into
    validating, saving and the like; an exchange that passes during inner steps is not in the other two."""
    data_share: float
    """Part of ``compute_share``: while it waited for data, as far as its trainer tells."""
    waiting_share: float
    """While training stood still for others."""
    transfer_share: float
    """While training stood still for values to be moved."""
    wall_s: float
    """Since training began."""
    sent_bytes: int
    received_bytes: int
    sent_bytes_per_s: float
    """Over ``wall_s``, as is ``received_bytes_per_s``, but never above the peak: before training, bytes are moved that
    no ``wall_s`` accounts for. 0 before training."""
    received_bytes_per_s: float
    peak_sent_bytes_per_s: float
    """The most in any second or two, as is ``peak_received_bytes_per_s``."""
    peak_received_bytes_per_s: float
    rounds_in: int
    """Rounds whose mean included this worker."""
    rounds_out: int
    delay_steps: int
    """Inner steps between the launch of an exchange and its application; 0 without overlap."""
    num_groups: int
    """Launches a round that its link would allow."""
    partners: tuple[str, ...]
    """Gossip: short ids of the other members of its last group."""
    spread: float
    """Gossip: RMS of the difference of two replicas' anchors over the RMS of the anchor, at its last swap; NaN if
    unknown."""
    rounds_alone: int
    """Gossip: rounds in which no partner came in time."""
    one_sided: int
    """Gossip: swaps of which it does not know whether the other side has them too."""
    avoids: tuple[str, ...]
    """Gossip: short ids of the peers that it avoids for a while."""
    restrained: tuple[str, ...]
    """Short ids of the members of its last round whose contributions were cut down or left out."""
    holds: tuple[int, ...]
    """Pipeline: its stages; 0 is the head. Empty for a spare."""
    takes: tuple[int, ...]
    """Pipeline: the stages that it is about to hold."""
    stored: tuple[int, ...]
    """Pipeline: the stages that it has a checkpoint of."""
    slot: int
    """Pipeline: which part of the data a head draws."""
    queue: int
    """Pipeline: micro-batches that wait for it."""
    microbatch_s: float
    """Pipeline: seconds that a micro-batch takes, forward and backward; 0 if unknown."""
    activation_bytes: int
    """Pipeline: activations and their gradients that it sent."""
    resent: int
    """Pipeline: micro-batches that a head had to send again."""
    recoveries: int
    """Pipeline: lost stages that it brought back."""
    recovery: str
    """Pipeline: the last one in words."""
    saved_step: int
    """Global inner step of the newest checkpoint on its disk; 0 before the first."""
    links: tuple[LinkRow, ...]
    """To those with whom it has exchanged most; none in a large swarm."""
    age_s: float
    """Since it was last seen."""
    device: str
    version: str


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of a pipeline; 0 is the head."""

    stage: int
    holders: tuple[str, ...]
    """Short ids of those who hold it now, sorted by peer id."""
    load: float
    """Mean of its holders' shares of time in computing; NaN without a holder."""
    queue: int
    """Micro-batches that wait for its holders."""
    microbatch_s: float
    """Mean over its holders of the seconds that a micro-batch takes, forward and backward; NaN if unknown."""
    failures: int
    """Holders that were lost, as the head saw it that saw most."""
    recoveries: int
    """Times that a worker brought it back. A worker that brought back several stages is counted with its last."""
    recovery: str
    """The last one in words; empty if there was none."""
    reason: str
    """Why nobody computes it; empty if somebody does."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The answer of ``decentral status``."""

    health: Health
    run: RunFacts
    totals: Totals
    workers: tuple[WorkerRow, ...]
    stages: tuple[StageRow, ...] = ()
    """The head and every stage of a pipeline; empty without one."""
    banned: tuple[PeerId, ...] = ()
    """Whom the founder of a private swarm has put out, as far as the asker has been shown."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self, *, indent: int | None = 2) -> str:
        """Strict JSON in the schema of docs/status-schema.md; numbers that are not known are ``null``."""
        return json.dumps(finite(asdict(self)), indent=indent, allow_nan=False)

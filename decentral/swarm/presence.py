"""The presence record: what a worker says of itself, signed, so that strangers may pass it on.

A record carries no wall-clock time. Its ``seq`` only grows, and a reader takes the moment at which it first saw a
``seq`` (on its own monotonic clock) as evidence of life, so clocks may be wrong by any amount. What tells records apart
is ``peer`` and ``seq``, never all of their fields: figures that are not known are NaN, and a NaN is equal to nothing.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from decentral.errors import FrameError
from decentral.ports.identity import Identity
from decentral.swarm.message import Message, Peer, Text, from_wire, to_wire
from decentral.types import PeerId

#: An encoded record is about 700 bytes with its RSA signature, and 27 for each link; what is longer is not read.
MAX_RECORD_BYTES = 4096
#: So many links are told in a record.
MAX_LINKS = 8
#: With more workers than this no links are told: records travel far, and nobody could look at so many.
MAX_LINKED = 128

#: A whole number in a record.
Figure = Annotated[int, Meta(ge=0, lt=1 << 62)]
#: Whether a peer signed exactly these bytes: peer, data, signature.
Verify = Callable[[PeerId, bytes, bytes], bool]


class State(StrEnum):
    """What a worker is doing."""

    JOINING = "joining"
    """Downloads the current weights; not a member yet."""
    CATCHING_UP = "catching up"
    """Has the weights of an earlier round and gets what the swarm has agreed on since; not waited for."""
    TRAINING = "training"
    """Takes inner steps."""
    SYNCING = "syncing"
    """Waits for or exchanges a round."""
    STALLED = "stalled"
    """Lives, but its trainer has not come back with the inner steps it was asked for; not waited for."""
    REPAIRING = "repairing"
    """Found that its anchor differs and downloads the swarm's."""
    LEAVING = "leaving"
    """Has left of its own accord; not waited for."""
    DONE = "done"
    """Has finished the run."""


#: States in which a worker counts as a member of the next round.
ACTIVE = frozenset({State.TRAINING, State.SYNCING})


class Link(Message, frozen=True):
    """What a worker knows of its link to another one."""

    what: ClassVar[str] = "link"
    id: Annotated[str, Meta(max_length=12)]
    """Short id of the other one."""
    round_trip_s: float
    """The least that one of the last signs of life took there and back; NaN if none did."""
    sent_bytes: Figure
    """Of calls that have ended, as are ``received_bytes``; framing is left out."""
    received_bytes: Figure


class Metrics(msgspec.Struct, frozen=True, array_like=True):
    """What ``status`` shows of a worker. All counters are since the worker started."""

    step: Figure = 0
    """Global inner step."""
    tokens: Figure = 0
    """Tokens trained on."""
    tokens_per_s: float = 0.0
    """Tokens trained on over the last round, by wall time."""
    loss: float = math.nan
    """Training loss of the last stretch of inner steps, nats per token."""
    val_loss: float = math.nan
    """Last validation loss of the anchor that this worker measured."""
    val_round: Figure = 0
    """The anchor that ``val_loss`` is of, by the round that began with it."""
    compute_s: float = 0.0
    """Time in inner steps."""
    data_s: float = 0.0
    """Of that, time in which it waited for data, as far as its trainer tells."""
    waiting_s: float = 0.0
    """Time that training stood still for other workers; what passes during inner steps does not count."""
    transfer_s: float = 0.0
    """Time that training stood still while values were moved: exchanged, downloaded, applied."""
    wall_s: float = 0.0
    """Time since training began, whatever it was spent on."""
    sent_bytes: Figure = 0
    """Calls and replies sent to other workers, framing included."""
    received_bytes: Figure = 0
    """Calls and replies received from other workers, framing included."""
    peak_sent_bytes_per_s: float = 0.0
    """The most that was sent in any second or two."""
    peak_received_bytes_per_s: float = 0.0
    """The most that was received in any second or two."""
    dp_bytes: Figure = 0
    """What data-parallel training (fp32 ring all-reduce every step) would have sent for the same steps."""
    rounds_in: Figure = 0
    """Rounds whose mean included this worker."""
    rounds_out: Figure = 0
    """Rounds that ended without it."""
    delay_steps: Figure = 0
    """Inner steps between the launch of an exchange and its application, as planned; 0 without overlap."""
    num_groups: Figure = 1
    """Launches a round that its link would allow."""
    partners: Text = ""
    """Gossip: short ids of the other members of its last group, with commas; empty if it was alone."""
    spread: float = math.nan
    """Gossip: RMS of the difference of two replicas' anchors over the RMS of the anchor, at the last swap."""
    rounds_alone: Figure = 0
    """Gossip: rounds in which no partner came in time."""
    one_sided: Figure = 0
    """Gossip: swaps of which it does not know whether the other side has them too."""
    avoids: Text = ""
    """Gossip: short ids of the peers that it avoids for a while, with commas."""
    restrained: Text = ""
    """Short ids of the members of its last round whose contributions were cut down or left out, with commas."""
    queue: Figure = 0
    """Pipeline: micro-batches that wait for this worker."""
    microbatch_s: float = 0.0
    """Pipeline: seconds that a micro-batch takes, forward and backward, over the last ones."""
    activation_bytes: Figure = 0
    """Pipeline: activations and their gradients that it sent."""
    resent: Figure = 0
    """Pipeline: micro-batches that a head had to send again."""
    failures: Text = ""
    """Pipeline: holders that a head lost, by stage, such as ``2:1,4:1``."""
    recoveries: Figure = 0
    """Pipeline: lost stages that it brought back."""
    recovery: Text = ""
    """Pipeline: the last one in words."""
    reason: Text = ""
    """Why it does not contribute; empty if it does."""
    note: Text = ""
    """What its user should look into although it contributes, such as a full disk; empty if there is nothing."""
    version: Text = ""
    """Release of decentral it runs."""
    device: Text = ""
    """Where it computes."""
    saved_step: Figure = 0
    """Global inner step of the newest checkpoint on its disk; 0 before the first."""
    links: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)] = ()
    """To those with whom it has exchanged most; none in a large swarm (``MAX_LINKED``)."""


class Presence(msgspec.Struct, frozen=True):
    """One worker's record.

    ``round`` is the next round it will take part in and ``digest`` that of the anchor and outer state it holds.
    ``since`` is the first round it was there for from the start: the smaller, the more senior (``swarm.matching``).
    """

    peer: Peer
    run: Text
    seq: Figure
    state: State
    round: Figure
    since: Figure
    digest: Text
    round_s: float = 0.0
    """Seconds its last stretch of inner steps took."""
    metrics: Metrics = Metrics()
    holds: Text = ""
    """Pipeline: the stages it holds, with commas; 0 is the head. Empty for a spare, and without a pipeline."""
    takes: Text = ""
    """Pipeline: the stages it is about to hold, with commas."""
    stored: Text = ""
    """Pipeline: the stages that it has a checkpoint of, with commas."""
    unfit: Text = ""
    """Pipeline: the stages that it found it cannot hold, with commas: it lacks the data or the memory."""
    slot: Figure = 0
    """Pipeline: which part of the data a head draws."""
    cut: Text = ""
    """Pipeline whose cut changes: that which this worker has, as its number and where stages begin, ``3:0,4,8``."""
    room: Figure = 0
    """Pipeline whose cut changes: how many blocks it can hold; 0 for none, or none any more."""


@functools.lru_cache(maxsize=1024)
def stages_of(text: str) -> frozenset[int]:
    """The stages named in a field of a record, such as ``holds``; what is no number there is none of ours."""
    return frozenset(int(part) for part in text.split(",") if len(part) < 7 and part.isascii() and part.isdigit())


def named(stages: Iterable[int]) -> str:
    """The inverse of ``stages_of``."""
    return ",".join(str(stage) for stage in sorted(stages))


def encode(presence: Presence, identity: Identity) -> bytes:
    """Sign and pack a record."""
    body = to_wire(_Body(presence.peer, presence.state, _Fields(*_own(presence)), presence.metrics))
    return to_wire(_Record(body, identity.sign(body)))


@dataclass(frozen=True, slots=True)
class Signed:
    """A verified record and the bytes that its peer signed, to be passed on."""

    presence: Presence
    data: bytes


def decode(data: bytes, verify: Verify) -> Presence:
    """The record in ``data``; see ``read``."""
    return read(data, verify).presence


@functools.lru_cache(maxsize=4096)
def read(data: bytes, verify: Verify) -> Signed:
    """Unpack and verify a record from anywhere.

    Cached: the same bytes arrive by many ways, and those that arrived first stand for all.

    Args:
        data: the record.
        verify: ``Identity.verify``.

    Raises:
        FrameError: too long, malformed, a value out of range, or not signed by the peer it names.
    """
    record = from_wire(_Record, data)
    body = from_wire(_Body, record.body)
    if not verify(body.peer, record.body, record.signature):
        raise FrameError(f"presence record not signed by {body.peer:.60}")
    metrics = Metrics(*msgspec.structs.astuple(body.metrics))
    presence = Presence(peer=body.peer, state=body.state, metrics=metrics, **msgspec.structs.asdict(body.fields))
    return Signed(presence, data)


class _Record(Message, frozen=True):
    what: ClassVar[str] = "presence record"
    max_bytes: ClassVar[int] = MAX_RECORD_BYTES
    body: bytes
    signature: bytes


def _layout(kind: type[msgspec.Struct], *, without: tuple[str, ...] = ()) -> Any:
    """A message with the same fields, none of which may be missing."""
    fields = [(field.name, field.type) for field in msgspec.structs.fields(kind) if field.name not in without]
    return msgspec.defstruct(f"_{kind.__name__}", fields, bases=(Message,), module=__name__)


_Fields = _layout(Presence, without=("peer", "state", "metrics"))
_own = attrgetter(*_Fields.__struct_fields__)
_Body: Any = msgspec.defstruct(
    "_Body",
    [("peer", Peer), ("state", State), ("fields", _Fields), ("metrics", _layout(Metrics))],
    bases=(Message,),
    namespace={"what": _Record.what, "max_bytes": MAX_RECORD_BYTES},
    module=__name__,
)

"""Broken messages of an all-reduce, a gossip, servers, a pipeline and downloads, drawn from a seed.

The frames in them are for ``mutants``.

Half of all mutants stay well-formed msgpack: a field has another message's value, a lie about a length, or nonsense.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from decentral.errors import FrameError
from decentral.exchange.allreduce.messages import (
    Answer,
    Convene,
    ConveneReply,
    Mean,
    Shard,
    Where,
    unpack_mean,
)
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.gossip import messages
from decentral.exchange.gossip.messages import Anchor, Bring, Given, Kind, Plan, Reply, Visit
from decentral.exchange.server import messages as server
from decentral.pipeline import packets
from decentral.pipeline.packets import Commit, Committed, Failed, Hop, Load, Packet, Settle, Settled
from decentral.state.download.pieces import Ask, FragmentHead, Head
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId, SyncKey
from tests.support.address_space import at_most_more
from tests.support.mutants import BREAKS_OF_BYTES, LIES

#: Allowed beyond what the process has when it begins.
EXTRA_BYTES = 4 << 20
_LIMIT, _MAX_MEMBERS, _NUM_STAGES = 4096, 3, 2
_PEERS = (PeerId("a"), PeerId("b"), PeerId("漢" * 40))
_PATH = (Hop(0, _PEERS[2]), Hop(2, _PEERS[0]), Hop(1, _PEERS[1]), Hop(0, _PEERS[2]))
_LOADS = (Load(2, _PEERS[0], 3, 0.25), Load(1, _PEERS[1], 0, 0.5))

Reader = Callable[[bytes], object]
READERS: dict[str, Reader] = {
    "participants": partial(from_wire, Participants),
    "call": partial(from_wire, Convene),
    "answer to a call": partial(from_wire, ConveneReply),
    "where": partial(from_wire, Where),
    "shard": partial(from_wire, Shard, limit=_LIMIT),
    "mean": lambda data: unpack_mean(data, _LIMIT, _MAX_MEMBERS),
    "question": partial(from_wire, messages.Question),
    "plan": partial(from_wire, Plan),
    "anchor": partial(from_wire, Anchor, limit=_LIMIT),
    "bring": partial(from_wire, Bring, limit=_LIMIT),
    "visit": partial(from_wire, Visit),
    "given": partial(from_wire, Given, limit=_LIMIT),
    "reply": lambda data: messages.unpack_reply(data, _LIMIT, _MAX_MEMBERS),
    "server question": partial(from_wire, server.Question),
    "server standing": partial(from_wire, server.Standing),
    "server push": partial(from_wire, server.Push, limit=_LIMIT),
    "server reply": partial(from_wire, server.Reply, limit=_LIMIT),
    "packet": lambda data: packets.unpack_packet(data, num_stages=_NUM_STAGES, frame_bytes=_LIMIT),
    "commit": partial(from_wire, Commit),
    "committed": partial(from_wire, Committed),
    "failed": partial(from_wire, Failed),
    "settle": partial(from_wire, Settle),
    "settled": partial(from_wire, Settled),
    "head": partial(from_wire, Head),
    "piece": partial(from_wire, Ask),
}
_GOOD: tuple[tuple[str, bytes], ...] = (
    (
        "participants",
        to_wire(Participants(SyncKey(1, 0), _PEERS[0], 2, "base", _PEERS[:2], ((_PEERS[2], "why"),), _PEERS[1:2])),
    ),
    ("call", to_wire(Convene(SyncKey(1, 0), "base", 3, _PEERS[1:], 0.5, _PEERS[:1]))),
    ("answer to a call", to_wire(ConveneReply(Answer.PARTICIPANTS, bytes(60), _PEERS[0]))),
    ("where", to_wire(Where(3, "d1gest", bytes(60), True))),
    ("shard", to_wire(Shard(bytes(60), 0, 1.0, bytes(range(200))))),
    ("mean", to_wire(Mean.of((0, 2), bytes(range(200))))),
    ("question", to_wire(messages.Question(1, 5000))),
    ("plan", to_wire(Plan(_PEERS[0], 1500))),
    ("plan", to_wire(Plan(_PEERS[2], None))),
    ("anchor", to_wire(Anchor(0, "d1gest", bytes(range(200))))),
    ("bring", to_wire(Bring(1, "d1gest", 7, 640.0, 2500, bytes(300), bytes(range(200))))),
    ("bring", to_wire(Bring(1, "d1gest", 8, 0.0, 2500, b"", bytes(range(200))))),
    ("visit", to_wire(Visit(1, 8))),
    ("given", to_wire(Given(Kind.DONE, bytes(range(200))))),
    ("reply", to_wire(Reply(Kind.HOLD))),
    ("reply", to_wire(Reply(Kind.NO, 12_000))),
    ("reply", to_wire(Reply(Kind.DONE, None, 500, _PEERS, (0, 2), bytes(300), bytes(100)))),
    ("server question", to_wire(server.Question(1, 70, bytes(8)))),
    ("server question", to_wire(server.Question(3))),
    ("server standing", to_wire(server.Standing(70, _PEERS[0], True))),
    ("server push", to_wire(server.Push(2, "d1gest", bytes(range(200))))),
    ("server reply", to_wire(server.Reply(server.Kind.ELSEWHERE))),
    ("server reply", to_wire(server.Reply(server.Kind.CHANGE, 70, bytes(32), bytes(range(200))))),
    ("packet", to_wire(Packet(1, 70, 3, 0, _PATH, 1, True, (), bytes(range(200))))),
    ("packet", to_wire(Packet(0, 70, 3, 2, _PATH, 3, True, _LOADS, bytes(300)))),
    ("commit", to_wire(Commit(1, 70, 71, (0, 2, 200), 2.5, 8192))),
    ("commit", to_wire(Commit(1, 70, 71, None, 2.5, 8192))),
    ("committed", to_wire(Committed(72, (2, 200)))),
    ("failed", to_wire(Failed(1, 70, 3, 2, _PEERS[1], "out of reach"))),
    ("settle", to_wire(Settle(1))),
    ("settled", to_wire(Settled(0, 72, 5, 0.5, math.nan))),
    ("head", to_wire(Head("layout", 70, (FragmentHead(3, 2, "d1gest", (_PEERS[0],), bytes(range(48))),) * 2))),
    ("piece", to_wire(Ask("d1gest", 7))),
)
#: Announced lengths and numbers far beyond what follows: array, map, text, bytes and extension of 2^32 - 1, and others.
_WRONG_HEADS = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
                b"\xc9\xff\xff\xff\xff\x01", b"\xc7\x0c\xff", b"\xd6\xff", b"\xc1")  # fmt: skip


@dataclass
class Tally:
    """How far the mutants came, by message."""

    tried: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    """Of them, those that still are messages."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By the words before the first value seen."""


def fuzz_messages(num_mutants: int, seed: int) -> Tally:
    """Read mutants of messages of every kind.

    Raises:
        AssertionError: one was neither read nor refused with a FrameError, or more memory was asked for than it has
            any use for; the message says how to make it again.
    """
    tally = Tally()
    with at_most_more(EXTRA_BYTES):
        for number, (kind, data) in zip(range(num_mutants), mutants(seed), strict=False):
            tally.tried[kind] += 1
            try:
                READERS[kind](data)
            except FrameError as refusal:
                tally.refusals[str(refusal).split(":")[0]] += 1
            except Exception as error:
                raise AssertionError(f"mutant {number} of seed {seed} ({kind}): {error!r} from {data!r}") from error
            else:
                tally.read[kind] += 1
    return tally


def mutants(seed: int) -> Iterator[tuple[str, bytes]]:
    """Endless broken messages, each with the kind that it is taken for."""
    rng = random.Random(f"messages {seed}")
    while True:
        kind, good = rng.choice(_GOOD)
        yield kind, broken(rng, good)


def broken(rng: random.Random, good: bytes) -> bytes:
    """A mutant of a message; of one that is no list of fields only the bytes are broken."""
    if rng.random() < 0.5 and (fields := _fields(good)):
        return _with_other_fields(rng, fields)
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(BREAKS_OF_BYTES)(rng, data, rng.choice(_GOOD)[1])
    if rng.random() < 0.1:
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.choice(_WRONG_HEADS)
    return bytes(data)


def _fields(message: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(message)
    except ValueError:
        return []
    return fields if isinstance(fields, list) else []


def _with_other_fields(rng: random.Random, fields: list[Any]) -> bytes:
    for _ in range(rng.choice((1, 1, 2))):
        fields[rng.randrange(len(fields))] = _nonsense(rng)
    match rng.random():
        case draw if draw < 0.05:
            fields.append(_nonsense(rng))
        case draw if draw < 0.1:
            fields.pop()
    return bytes(msgpack.packb(fields))


def _nonsense(rng: random.Random) -> Any:
    """Any value, often one of the right type."""
    theirs: list[Any] = msgpack.unpackb(rng.choice(_GOOD)[1])
    plain = (None, True, -1, 0, 3, 2**53, 0.0, -0.0, float("nan"), float("inf"), 1e308, "", "a", b"", b"\xff" * 9)
    nested: Any = rng.choice(plain)
    for _ in range(rng.choice((1, 2, 300))):
        nested = [nested]
    return rng.choice(
        (
            rng.choice(theirs),
            rng.choice(plain),
            rng.choice(LIES),
            nested,
            {rng.choice(("a", 1)): rng.choice(plain)},
            [rng.choice(plain) for _ in range(rng.randrange(5))],
            [rng.choice(_PEERS) for _ in range(rng.randrange(5))],
            "x" * rng.choice((199, 200, 201)),
            msgpack.ExtType(rng.randrange(128), b"\x00" * rng.randrange(5)),
        )
    )

"""Whether others reach this peer: it asks one of them to dial it back, and how that one sees it.

Who is asked dials at the address from which it sees the asker, and at no other, so that nobody can have it dial third
parties; as far as it takes to see that the asker itself answers (``probe``), for two seconds, and a few at a time.
It works between members of a private swarm alone, as every call does. AutoNAT, which libp2p has for this, takes half a
minute, tells nobody but the daemon, and nothing of addresses that look private.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.adapters.address import Address, parse_address
from decentral.adapters.probe import probe
from decentral.errors import DecentralError, FrameError, TransportError, UsageError, WrongPeerError
from decentral.ports.transport import Transport
from decentral.swarm.message import Message, Text, from_wire, to_wire
from decentral.types import PeerId

REACH = "reach"
_DIAL_S = 2.0
_TIMEOUT_S = 6.0
_MAX_AT_ONCE = 8


class Dialled(StrEnum):
    """What came of dialling a peer back."""

    OPEN = "open"
    CLOSED = "closed"
    OTHER = "other"
    """Another peer answers there: one of the same machine, or behind the same router."""
    RELAYED = "relayed"
    """Nothing: its stream came through a relay, so its own address is not known."""


class _Question(Message, frozen=True):
    what: ClassVar[str] = "question of reach"
    port: Annotated[int, Meta(ge=1, lt=65_536)]


class _Answer(Message, frozen=True):
    what: ClassVar[str] = "answer of reach"
    dialled: Dialled
    why: Text
    place: Text
    clock_s: float


@dataclass(frozen=True, slots=True)
class Sight:
    """How another peer sees this one."""

    by: PeerId
    dialled: Dialled
    why: str
    """Of what is closed, in words."""
    port: int
    """That was dialled."""
    place: Address | None
    """Where this peer's stream came from, as the other one sees it; ``None`` if through a relay."""
    clock_ahead_s: float
    """So far its clock is ahead of this machine's, give or take half of ``took_s``."""
    took_s: float
    """Until the answer was there, the dial included."""


class Way(StrEnum):
    """How others reach a peer."""

    DIRECT = "direct"
    RELAYED = "relayed"
    """Through a place at a worker that relays."""
    INTRODUCED = "introduced"
    """By others that introduce the two: then only if their routers let them meet."""
    NONE = "none"
    UNKNOWN = "unknown"
    """Nobody was asked, or who was could not tell."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How others reach a peer, and how that is known."""

    way: Way
    sight: Sight | None = None
    """Of whoever was asked; of a peer that is not reached directly, why."""


async def serve_reach(transport: Transport, seen_at: Callable[[PeerId], str]) -> None:
    """Dial back whoever asks.

    Args:
        transport: to be asked by.
        seen_at: the multiaddr from which a peer's last stream came.
    """

    async def answer(sender: PeerId, request: bytes) -> bytes:
        port = from_wire(_Question, request).port
        place = _direct(seen_at(sender))
        if place is None:
            return to_wire(_Answer(Dialled.RELAYED, "", "", time.time()))
        try:
            await probe(Address(place.host, port, sender), timeout_s=_DIAL_S)
            dialled, why = Dialled.OPEN, ""
        except WrongPeerError as err:
            dialled, why = Dialled.OTHER, err.message[:200]
        except DecentralError as err:
            dialled, why = Dialled.CLOSED, err.message[:200]
        return to_wire(_Answer(dialled, why, place.multiaddr(), time.time()))

    await transport.serve(REACH, answer, max_request_bytes=_Question.max_bytes, max_concurrent=_MAX_AT_ONCE)


async def ask_reach(transport: Transport, peer: PeerId, port: int) -> Sight | None:
    """Have ``peer`` dial this one back.

    Args:
        transport: of this peer.
        peer: whom to ask.
        port: where this peer listens, as seen from outside.

    Returns:
        What it says; ``None`` if it is not there, or of a release that knows no such question.
    """
    started = asyncio.get_running_loop().time()
    question = to_wire(_Question(port))
    try:
        reply = await transport.call(peer, REACH, question, timeout_s=_TIMEOUT_S, max_reply_bytes=_Answer.max_bytes)
        now_s, took_s = time.time(), asyncio.get_running_loop().time() - started
        found = from_wire(_Answer, reply)
        place = parse_address(found.place) if found.place else None
    except (TransportError, FrameError, UsageError):
        return None
    return Sight(peer, found.dialled, _printable(found.why), port, place, found.clock_s - now_s, took_s)


async def asked_reach(transport: Transport, peers: Sequence[PeerId], port: int) -> Reached:
    """What several others say of it, all asked at once: that one of them reaches this peer is enough."""
    asked = await asyncio.gather(*(ask_reach(transport, peer, port) for peer in peers))
    sights = [sight for sight in asked if sight is not None and sight.place is not None]
    is_open = [sight for sight in sights if sight.dialled is Dialled.OPEN]
    if not sights:
        return Reached(Way.UNKNOWN)
    return Reached(Way.DIRECT, is_open[0]) if is_open else Reached(Way.NONE, sights[0])


def _direct(multiaddr: str) -> Address | None:
    """Where a stream came from, unless that was through a relay or is not known."""
    if "/p2p-circuit" in multiaddr:
        return None
    try:
        return parse_address(multiaddr)
    except UsageError:
        return None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)

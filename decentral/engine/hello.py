"""The first words between strangers: which protocol, which run, its configuration, and who is in it.

``hello`` is the one message whose layout never changes with the protocol, so that peers of different releases can tell
each other so. It asks for nothing: whoever only asks is not counted as a worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from decentral import PROTOCOL, __version__
from decentral.errors import (
    AdmissionError,
    CallRefused,
    FrameError,
    NotAdmitted,
    ProtocolError,
    TransportError,
    UnreachableError,
    WrongPeerError,
)
from decentral.ports.transport import Transport
from decentral.swarm.message import UNREADABLE, Message, Peer, from_wire, to_wire
from decentral.swarm.presence import Presence, Verify, decode
from decentral.types import Count, PeerId

HELLO = "hello"
#: As many as a policy may name.
_MAX_BANNED = 512


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker tells a stranger."""

    peer: PeerId
    protocol: int
    version: str
    run_id: str
    config: bytes
    workers: tuple[tuple[Presence, float], ...]
    """Records of the workers it knows, itself included, with the seconds since each was news."""
    banned: tuple[PeerId, ...] = ()
    """Whom the founder has put out."""


class _Greeting(msgspec.Struct, frozen=True, array_like=True):
    """What every release can read of every other's answer: more may follow."""

    protocol: int
    version: Annotated[str, Meta(max_length=40)]


class _Answer(Message, frozen=True):
    what: ClassVar[str] = "hello"
    max_bytes: ClassVar[int] = 8 << 20
    protocol: int
    version: str
    run_id: str
    config: bytes
    aged: tuple[tuple[bytes, Count], ...]
    """Records, with the milliseconds since each was news."""
    banned: Annotated[tuple[Peer, ...], Meta(max_length=_MAX_BANNED)]


async def serve_hello(
    transport: Transport, run_id: str, config: bytes, records: Callable[[], list[tuple[bytes, float]]]
) -> None:
    """Answer strangers."""

    async def answer(sender: PeerId, request: bytes) -> bytes:
        aged = tuple((record, int(1000 * age_s)) for record, age_s in records())
        return to_wire(_Answer(PROTOCOL, __version__, run_id, config, aged, transport.banned()[:_MAX_BANNED]))

    await transport.serve(HELLO, answer, max_request_bytes=0)


async def ask_hello(transport: Transport, peer: PeerId, verify: Verify, *, timeout_s: float) -> Hello:
    """Ask ``peer`` who it is and what it trains.

    Raises:
        UnreachableError: no answer.
        AdmissionError: one of the two does not let the other in.
        WrongPeerError: it answers, but it is no worker of decentral.
        ProtocolError: it speaks another protocol.
    """
    try:
        reply = await transport.call(peer, HELLO, b"", timeout_s=timeout_s, max_reply_bytes=_Answer.max_bytes)
        greeting = msgspec.msgpack.decode(reply, type=_Greeting)
    except NotAdmitted as err:
        raise AdmissionError(err.by) from err
    except (CallRefused, *UNREADABLE) as err:
        raise WrongPeerError(
            f"{peer} is a libp2p peer, but not a worker of decentral ({err})",
            hint="Ask for the line that `decentral worker` printed on that machine.",
        ) from err
    except TransportError as err:
        raise UnreachableError(
            f"{peer} did not answer: {err}", hint="Is the worker still running? `decentral status ADDR` tells."
        ) from err
    version = greeting.version
    if greeting.protocol != PROTOCOL:
        raise ProtocolError(
            f"the swarm speaks protocol {greeting.protocol} (decentral {version}), this is protocol {PROTOCOL} "
            f"(decentral {__version__})",
            hint=f'Use the swarm\'s release on this machine: pip install "decentral=={version}"',
        )
    try:
        answer = from_wire(_Answer, reply)
        workers = tuple((decode(record, verify), age_ms / 1000) for record, age_ms in answer.aged)
        return Hello(peer, PROTOCOL, version, answer.run_id, answer.config, workers, answer.banned)
    except FrameError as err:
        raise WrongPeerError(f"{peer} answered with a malformed hello: {err}") from err

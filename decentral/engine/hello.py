"""The first words between strangers: which protocol, which run, its configuration, and who is in it.

``hello`` is the one message whose layout never changes with the protocol, so that peers of different releases can tell
each other so. It asks for nothing: whoever only asks is not counted as a worker.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgpack

from decentral import PROTOCOL, __version__
from decentral.errors import CallRefused, FrameError, ProtocolError, TransportError, UnreachableError, WrongPeerError
from decentral.ports.transport import Transport
from decentral.swarm.presence import Presence, Verify, decode
from decentral.types import PeerId

HELLO = "hello"
_MAX_REPLY_BYTES = 8 << 20
_MAX_VERSION = 40


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


async def serve_hello(
    transport: Transport, run_id: str, config: bytes, records: Callable[[], list[tuple[bytes, float]]]
) -> None:
    """Answer strangers."""

    async def answer(sender: PeerId, request: bytes) -> bytes:
        aged = [(record, int(1000 * age_s)) for record, age_s in records()]
        return bytes(msgpack.packb([PROTOCOL, __version__, run_id, config, aged]))

    await transport.serve(HELLO, answer, max_request_bytes=0)


async def ask_hello(transport: Transport, peer: PeerId, verify: Verify, *, timeout_s: float) -> Hello:
    """Ask ``peer`` who it is and what it trains.

    Raises:
        UnreachableError: no answer.
        WrongPeerError: it answers, but it is no worker of decentral.
        ProtocolError: it speaks another protocol.
    """
    try:
        reply = await transport.call(peer, HELLO, b"", timeout_s=timeout_s, max_reply_bytes=_MAX_REPLY_BYTES)
        protocol, version, *rest = msgpack.unpackb(reply)
        if not isinstance(protocol, int) or not isinstance(version, str) or len(version) > _MAX_VERSION:
            raise TypeError("it does not say which release it is")
    except (CallRefused, ValueError, TypeError, msgpack.UnpackException) as err:
        raise WrongPeerError(
            f"{peer} is a libp2p peer, but not a worker of decentral ({err})",
            hint="Ask for the line that `decentral worker` printed on that machine.",
        ) from err
    except TransportError as err:
        raise UnreachableError(
            f"{peer} did not answer: {err}", hint="Is the worker still running? `decentral status ADDR` tells."
        ) from err
    if protocol != PROTOCOL:
        raise ProtocolError(
            f"the swarm speaks protocol {protocol} (decentral {version}), this is protocol {PROTOCOL} "
            f"(decentral {__version__})",
            hint=f'Use the swarm\'s release on this machine: pip install "decentral=={version}"',
        )
    try:
        run_id, config, aged = rest
        if not isinstance(run_id, str) or not isinstance(config, bytes):
            raise TypeError("run and configuration expected")
        workers = tuple((decode(record, verify), age_ms / 1000) for record, age_ms in aged)
        return Hello(peer, protocol, version, run_id, config, workers)
    except (FrameError, ValueError, TypeError) as err:
        raise WrongPeerError(f"{peer} answered with a malformed hello: {err}") from err

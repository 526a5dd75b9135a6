"""How two peers come to let each other in: the streams on which the ``gate``'s proofs travel.

On a stream of its own protocol the caller sends a fresh number; the callee answers whether its swarm is private, and if
it is with a number of its own; then each sends its proof, the caller first. Nothing is kept of a stranger, and whatever
it sends is bounded in bytes, time and number.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from decentral import PROTOCOL, __version__
from decentral.adapters.gate import MAX_PROOF_BYTES, NONCE_BYTES, Gate, Meeting, Role
from decentral.adapters.hivemind_light import P2P, P2PHandlerError, PeerID
from decentral.adapters.wire import MAX_REFUSAL_BYTES, Status, reply_head
from decentral.errors import CallRefused, NotAdmitted, NotAdmittedBy, PeerUnreachable
from decentral.types import PeerId

ADMISSION = "/decentral/admission/1"
#: Opens a stream of a protocol to a peer, and ends it.
Open = Callable[[PeerId, str], AbstractAsyncContextManager[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
#: Runs a task that ends with the node.
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

_OPEN, _PRIVATE = b"\x00", b"\x01"
_LENGTH_BYTES = 4
#: Two round trips on any line that can train.
_TIMEOUT_S = 10.0
#: Streams of strangers at a time, of either kind: more are closed at once.
_MAX_STRANGERS = 64
#: How long one that was turned away may take to notice.
_LINGER_S = 2.0
_NOT_ADMITTED = "not admitted"


class Admission:
    """Lets others in, and has this peer let in.

    Args:
        own: this peer.
        gate: decides.
        open_stream: see ``Open``.
        speaks: the protocol of those who know nothing of admission.
        spawn: see ``Spawn``.
    """

    def __init__(self, own: PeerId, gate: Gate, open_stream: Open, speaks: str, spawn: Spawn) -> None:
        self.gate = gate
        self._own = own
        self._open = open_stream
        self._speaks = speaks
        self._spawn = spawn
        self._introducing: dict[PeerId, asyncio.Task[None]] = {}
        self._num_strangers = 0

    async def introduce(self, peer: PeerId) -> None:
        """Prove to each other who may be called; at once if that has been done before, or nothing is to be proved.

        Raises:
            NotAdmitted: one does not let the other in.
            CallRefused: it is no worker at all.
            PeerUnreachable: it is not there, or does not answer.
        """
        objection = self.gate.objection(peer)
        if objection is None:
            return
        if objection is not NotAdmittedBy.NO_PROOF:
            raise NotAdmitted(objection)
        task = self._introducing.get(peer)
        if task is None:
            task = self._introducing[peer] = self._spawn(self._meet(peer))
            task.add_done_callback(lambda done: self._ended(peer, done))
        await asyncio.wait({task})  # who gives up does not end it for others that wait
        if task.cancelled():
            raise PeerUnreachable("this transport is closed")
        task.result()

    def _ended(self, peer: PeerId, task: "asyncio.Task[None]") -> None:
        self._introducing.pop(peer, None)
        if not task.cancelled():
            task.exception()  # nobody may be left to be told

    async def _meet(self, peer: PeerId) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._stream(peer) as (reader, writer):
                nonce = self.gate.nonce()
                writer.write(nonce)
                if await reader.readexactly(1) == _OPEN:
                    raise NotAdmitted(NotAdmittedBy.OPENNESS)
                meeting = Meeting(self._own, peer, nonce + await reader.readexactly(NONCE_BYTES))
                _write(writer, self.gate.proof(Role.CALLER, meeting))
                objection = self.gate.conclude(await _read(reader), meeting)
        except (OSError, asyncio.IncompleteReadError, ValueError) as err:  # a timeout is an OSError
            raise PeerUnreachable(f"{peer} did not say whether it lets us in") from err
        if objection is not None:
            raise NotAdmitted(objection)

    @contextlib.asynccontextmanager
    async def _stream(self, peer: PeerId) -> Any:
        try:
            async with self._open(peer, ADMISSION) as stream:
                yield stream
        except NotAdmitted:
            raise
        except CallRefused:
            async with self._open(peer, self._speaks):  # it speaks this at least, or the same is raised again
                raise NotAdmitted(NotAdmittedBy.AGE) from None

    async def receive(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one stream of ``ADMISSION``. Nothing that a peer does raises from here."""
        await self._with_stranger(self._answer(sender, reader, writer), writer)

    async def turn_away(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell the caller of another stream that it is not admitted, and read nothing of what it wants."""
        objection = self.gate.objection(sender) or NotAdmittedBy.NO_PROOF
        by = NotAdmittedBy.NO_TOKEN if objection is NotAdmittedBy.NO_PROOF else objection
        # Releases that know nothing of admission show the text.
        text = (
            f"{by}: {_NOT_ADMITTED}; a private swarm takes decentral {__version__} (protocol {PROTOCOL}) and an "
            "address that ends in #TOKEN"
        )
        body = text.encode()[:MAX_REFUSAL_BYTES]
        await self._with_stranger(_say(reader, writer, reply_head(Status.STRANGER, len(body)) + body), writer)

    async def _with_stranger(self, work: Coroutine[Any, Any, None], writer: asyncio.StreamWriter) -> None:
        if self._num_strangers >= _MAX_STRANGERS:
            work.close()
            writer.close()
            return
        self._num_strangers += 1
        try:
            await asyncio.wait({self._spawn(work)})
        finally:
            self._num_strangers -= 1
            writer.close()

    async def _answer(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            async with asyncio.timeout(_TIMEOUT_S):
                nonce = await reader.readexactly(NONCE_BYTES)
                if not self.gate.is_private:
                    await _say(reader, writer, _OPEN)
                    return
                own = self.gate.nonce()
                writer.write(_PRIVATE + own)
                answer = self.gate.answer(await _read(reader), Meeting(sender, self._own, nonce + own))
                _write(writer, answer)
                await _linger(reader)


def refusal_in(text: str) -> NotAdmittedBy:
    """Why a caller was turned away, by what it was told."""
    try:
        return NotAdmittedBy(text.partition(":")[0])
    except ValueError:
        return NotAdmittedBy.NO_PROOF


def guarded(admission: Admission) -> type[P2P]:
    """A P2P object of hivemind's for its DHT, which serves and calls only those who are admitted.

    A namespace of secret name for its handlers would not do: libp2p tells everybody which protocols a peer speaks.
    """

    class GuardedP2P(P2P):  # type: ignore[misc]
        async def add_protobuf_handler(self, name: str, handler: Any, kind: Any, **options: Any) -> None:
            async def answer(request: Any, context: Any) -> Any:
                if admission.gate.objection(PeerId(context.remote_id.to_base58())) is not None:
                    raise PermissionError(_NOT_ADMITTED)
                return await handler(request, context)

            await super().add_protobuf_handler(name, answer, kind, **options)

        async def call_protobuf_handler(self, peer_id: PeerID, name: str, input: Any, kind: Any) -> Any:
            peer = PeerId(peer_id.to_base58())
            await admission.introduce(peer)
            try:
                return await super().call_protobuf_handler(peer_id, name, input, kind)
            except P2PHandlerError as err:
                if _NOT_ADMITTED not in str(err):
                    raise
            admission.gate.forget(peer)  # it was restarted, and knows nobody
            await admission.introduce(peer)
            return await super().call_protobuf_handler(peer_id, name, input, kind)

    return GuardedP2P


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Raises ValueError if it is longer than any proof."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if size > MAX_PROOF_BYTES:
        raise ValueError(f"a proof of {size} bytes")
    return await reader.readexactly(size)


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(OSError):
        writer.write(data)
        await _linger(reader)


async def _linger(reader: asyncio.StreamReader) -> None:
    """Wait until the other side has what was written and closes: closing on unread bytes would take it along."""
    async with asyncio.timeout(_LINGER_S):
        while await reader.read(1 << 16):
            pass

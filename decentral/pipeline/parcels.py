"""A worker's whole state from one peer to another: in pieces, checked by digest, read without running code.

What a state is asked for by is up to both ends: some bytes, which the giver understands. A state is packed once for all
its pieces, and kept as long as somebody asks for them.
"""

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar, Final

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from decentral.errors import CallRefused, CallTimeout, FrameError
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.checkpoints.checkpoint import TrainerStateError, read_trainer, write_trainer
from decentral.state.guard import digest_of
from decentral.state.worker_state import WorkerState
from decentral.swarm.message import Message, Text, from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.tensors.nested import mapped
from decentral.types import Count, PeerId

HEAD, PIECE = "parcel.head", "parcel.piece"
PIECE_BYTES: Final = 1 << 20
#: Pieces that are asked for at a time, and handed out at a time.
_AT_ONCE: Final = 4
_MAX_AT_ONCE: Final = 64
#: Packed states that are kept at a time, and how long after they were asked for last.
_MAX_KEPT: Final = 64
_KEPT_S: Final = 30.0
_MAX_KEY_BYTES: Final = 256
#: A piece that did not come is asked for so often.
_TRIES: Final = 3
#: A state has anchors, outer momentum, local parameters, what was launched and AdamW's moments: 28 bytes a value.
_BYTES_A_VALUE: Final = 64
_BYTES_BESIDES: Final = 64 << 20

_Key = Annotated[bytes, Meta(max_length=_MAX_KEY_BYTES)]


class _Head(Message, frozen=True):
    what: ClassVar[str] = "head of a state"
    size: Count
    """Of all pieces, bytes."""
    digest: Text


class _Wanted(Message, frozen=True):
    what: ClassVar[str] = "question for a piece of a state"
    key: _Key
    digest: Text
    offset: Count


class _Plain(msgspec.Struct, frozen=True):
    """What of a state is no tensor, and no mapping that holds some."""

    step: Count
    round: Count
    tokens: Count
    digest: str
    closed: bool
    facts: dict[str, Any]


class Parcels:
    """Gives states and fetches them.

    Args:
        transport: to the others.
        clock: packs and reads beside the training.
        timing: bounds of calls.
        give: the state that a key stands for; ``None`` if there is none (yet).
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        timing: Timing,
        give: Callable[[bytes], Awaitable[WorkerState | None]],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._timing = timing
        self._give = give
        self._packed: dict[bytes, tuple[_Head, bytes]] = {}
        self._asked_at: dict[bytes, float] = {}
        self._packing = asyncio.Lock()

    async def start(self) -> None:
        """Begin to answer."""
        serve = self._transport.serve
        await serve(HEAD, self._on_head, max_request_bytes=_MAX_KEY_BYTES)
        await serve(PIECE, self._on_piece, max_request_bytes=_Wanted.max_bytes, max_concurrent=_MAX_AT_ONCE)

    def look(self) -> None:
        """Now and then: forget what nobody asks for any more."""
        now = self._clock.monotonic()
        for key in [key for key in self._packed if now - self._asked_at[key] > _KEPT_S]:
            del self._packed[key], self._asked_at[key]

    async def _on_head(self, sender: PeerId, key: bytes) -> bytes:
        """Size and digest of a state; empty if there is none."""
        async with self._packing:
            if key not in self._packed:
                state = await self._give(key)
                if state is None:
                    return b""
                data = await self._clock.run_aside(lambda: packed(state))
                name = await self._clock.run_aside(lambda: digest_of(data))
                while len(self._packed) >= _MAX_KEPT:
                    oldest = min(self._packed, key=lambda each: self._asked_at[each])
                    del self._packed[oldest], self._asked_at[oldest]
                self._packed[key] = _Head(len(data), name), data
            self._asked_at[key] = self._clock.monotonic()
            return to_wire(self._packed[key][0])

    async def _on_piece(self, sender: PeerId, request: bytes) -> bytes:
        wanted = from_wire(_Wanted, request)
        head, data = self._packed.get(wanted.key, (None, b""))
        if head is None or head.digest != wanted.digest:
            raise CallRefused("this state is not kept here any more")
        self._asked_at[wanted.key] = self._clock.monotonic()
        return data[wanted.offset : wanted.offset + PIECE_BYTES]

    async def fetch(self, peer: PeerId, key: bytes, max_bytes: int) -> WorkerState | None:
        """The state that ``key`` stands for at a peer; ``None`` if it has none (yet).

        Args:
            peer: whom to ask.
            key: what for.
            max_bytes: a larger one is not what it should be.

        Raises:
            TransportError: it does not answer; it may be packing, and be asked again.
            FrameError: what came is no state.
        """
        timeout_s, limit = self._timing.call_timeout_s(0), _Head.max_bytes
        reply = await self._transport.call(peer, HEAD, key, timeout_s=timeout_s, max_reply_bytes=limit)
        if not reply:
            return None
        head = from_wire(_Head, reply)
        if head.size > max_bytes:
            raise FrameError(f"state of {head.size} bytes, allowed are {max_bytes}")
        parts: list[bytes] = []
        for begin in range(0, head.size, _AT_ONCE * PIECE_BYTES):
            offsets = range(begin, min(begin + _AT_ONCE * PIECE_BYTES, head.size), PIECE_BYTES)
            parts += await asyncio.gather(*[self._piece(peer, _Wanted(key, head.digest, at)) for at in offsets])
        data = await self._clock.run_aside(lambda: b"".join(parts))
        if len(data) != head.size or await self._clock.run_aside(lambda: digest_of(data)) != head.digest:
            raise FrameError("the state has not the digest that it was announced with")
        return await self._clock.run_aside(lambda: unpacked(data))

    async def _piece(self, peer: PeerId, wanted: _Wanted) -> bytes:
        request, timeout_s = to_wire(wanted), self._timing.call_timeout_s(PIECE_BYTES)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(CallTimeout):
                return await self._call(peer, PIECE, request, timeout_s)
        return await self._call(peer, PIECE, request, timeout_s)

    async def _call(self, peer: PeerId, method: str, request: bytes, timeout_s: float) -> bytes:
        return await self._transport.call(peer, method, request, timeout_s=timeout_s, max_reply_bytes=PIECE_BYTES)


def most_bytes(parameters: Mapping[str, Tensor]) -> int:
    """What the state of a stage with these parameters takes at most; a longer one is none."""
    return _BYTES_A_VALUE * sum(value.numel() for value in parameters.values()) + _BYTES_BESIDES


def packed(state: WorkerState) -> bytes:
    """A state as bytes; tensors that are views of larger ones go without what they do not show.

    Raises:
        FrameError: its trainer's state has objects that nothing reads back without running code.
    """
    plain = _Plain(state.step, state.round, state.tokens, state.digest, state.closed, dict(state.facts))
    tensors = {"anchors": state.anchors, "outer": state.outer, "own": state.own, "trainer": state.trainer}
    file = io.BytesIO()
    try:
        apart = mapped(tensors, lambda _, value: value.clone())
        write_trainer(file, {"plain": msgspec.json.encode(plain).decode(), **apart})
    except TrainerStateError as err:
        raise FrameError(str(err)) from err
    return file.getvalue()


def unpacked(data: bytes) -> WorkerState:
    """The inverse of ``packed``.

    Raises:
        FrameError: it is no state.
    """
    try:
        found = read_trainer(io.BytesIO(data))
        plain = msgspec.json.decode(found["plain"], type=_Plain)
        anchors, outer, own = (_tensors(found[name]) for name in ("anchors", "outer", "own"))
        if not isinstance(found["trainer"], dict):
            raise ValueError("no state of a trainer")
        return WorkerState(
            **msgspec.structs.asdict(plain), anchors=anchors, outer=outer, own=own, trainer=found["trainer"]
        )
    except (OSError, KeyError, TypeError, ValueError, msgspec.MsgspecError) as err:
        raise FrameError(f"what came is no state of a worker: {err}") from err


def _tensors(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise ValueError("tensors without names")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise ValueError(f"{name!r} is no tensor of float32")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name!r} has values that are not finite")
    return found

"""The parameter server of a fragment: it holds the anchor and steps by every pseudo-gradient that comes.

One writer for each fragment: whatever workers hold is what the server told them, and it knows what that is, to the bit,
as it decodes its own answers. So it can answer with the change since then in a coarse codec, and what the codec leaves
out of one answer is in the next.

This module counts; who keeps what is decided in ``succession``. A push is counted once however often it comes: the
bytes name it, and which ones an anchor contains travels with the anchor (``counted``).

Legend: N = values in the fragment.
"""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from torch import Tensor

from decentral.codecs.codec import Codec, make_codec
from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import FrameError
from decentral.exchange.api import Memory, Restrained
from decentral.exchange.bounds import Kind as Bound
from decentral.exchange.server.messages import ENVELOPE_BYTES, Kind, Push, Reply
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.server.pushes import CountedPushes, push_id
from decentral.exchange.server.usual import Usual
from decentral.exchange.wire import Wire, seed_of
from decentral.outer.delayed_nesterov import Delayed
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import below, from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.tensors.digest import digest
from decentral.tensors.finite import all_finite
from decentral.types import PeerId

PUSH = "server.push"
#: Pushes that are read or wait for their turn at a time; others are told to come again.
_MAX_UPLOADS = 16
#: A server remembers what workers hold within so many bytes, but of eight workers at least. Whoever is forgotten gets
#: full values, so beyond it answers grow and nothing else happens.
_MAX_HELD_BYTES, _MIN_HOLDERS = 8 << 30, 8
#: Of two nobody can tell which one is unlike the other.
_FEWEST_TO_BOUND = 3
#: Bounded pushes to tell of.
_MAX_RESTRAINED = 256


@dataclass(frozen=True, slots=True)
class Copy:
    """A server's anchor as somebody holds it."""

    version: int
    """Pushes counted since the run began, along the line of servers."""
    anchor_N: Tensor
    counted: bytes
    """See ``CountedPushes``."""


@dataclass(slots=True)
class _Kept:
    """One fragment."""

    version: int
    anchor_N: Tensor
    state: Delayed
    counted: CountedPushes
    usual: Usual
    holders: OrderedDict[PeerId, tuple[str, Tensor]] = field(default_factory=OrderedDict)
    """What each worker was told last, with its digest; the longest silent one first."""
    restrained: deque[Restrained] = field(default_factory=lambda: deque(maxlen=_MAX_RESTRAINED))
    """Whose pushes did not count as they were brought, since this was last asked for."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Values:
    """How anchors travel between a server and workers: both sides compute the same bits.

    Args:
        wire: sizes and codecs.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._fp32: Codec = make_codec("fp32")

    def limit(self, fragment: int) -> int:
        """The longest answer about a fragment."""
        numel = self._wire.numels[fragment]
        longest = max(framed_nbytes(codec, numel) for codec in (self._fp32, self._wire.mean_codec))
        return longest + ENVELOPE_BYTES

    def answer(self, copy: Copy, held_N: Tensor | None, purpose: str) -> tuple[Reply, Tensor]:
        """The answer that brings a worker from ``held_N`` [N] to ``copy``, and what it will hold then.

        Args:
            copy: the server's.
            held_N: what the worker holds, ``None`` if that is not known.
            purpose: for the seed of the codec's rounding.
        """
        codec = self._wire.mean_codec
        if held_N is None or codec.lossless:
            frame = pack(self._fp32, copy.anchor_N)
            return Reply(Kind.VALUES, copy.version, copy.counted, frame), copy.anchor_N
        frame = pack(codec, copy.anchor_N - held_N, seed_of(purpose))
        told_N = held_N + unpack(frame, codec, held_N.numel())
        return Reply(Kind.CHANGE, copy.version, copy.counted, frame), told_N

    def take(self, fragment: int, reply: Reply, held_N: Tensor | None) -> Copy:
        """The copy that an answer means to a worker that holds ``held_N`` [N].

        Raises:
            FrameError: the answer is malformed.
        """
        CountedPushes(reply.counted)
        numel = self._wire.numels[fragment]
        if reply.kind is Kind.VALUES:
            anchor_N = unpack(reply.frame, self._fp32, numel)
        elif reply.kind is Kind.CHANGE and held_N is not None:
            anchor_N = held_N + unpack(reply.frame, self._wire.mean_codec, numel)
        else:
            raise FrameError(f"an answer of kind {reply.kind.name} does not say where the anchor is")
        if not all_finite(anchor_N.numpy()):
            raise FrameError("the server's anchor is not finite")
        return Copy(reply.version, anchor_N, reply.counted)


class ParameterServer:
    """The fragments that this worker keeps.

    Args:
        transport: to answer through.
        clock: for work off the event loop.
        roster: who is alive: only workers of the run are counted, and N follows their number.
        wire: sizes and codecs.
        options: how to step.
    """

    def __init__(self, transport: Transport, clock: Clock, roster: Roster, wire: Wire, options: ServerOptions) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._options = options
        self._rule = options.rule
        self.values = Values(wire)
        self._kept: dict[int, _Kept] = {}
        self._remembers = not wire.mean_codec.lossless
        self._max_holders = max(_MIN_HOLDERS, _MAX_HELD_BYTES // (4 * max(1, sum(wire.numels))))

    async def start(self) -> None:
        """Begin to serve."""
        limit = framed_nbytes(self._wire.codec, max(self._wire.numels)) + ENVELOPE_BYTES
        await self._transport.serve(PUSH, self._on_push, max_request_bytes=limit, max_concurrent=_MAX_UPLOADS)

    @property
    def fragments(self) -> tuple[int, ...]:
        """Those it keeps."""
        return tuple(self._kept)

    def current(self, fragment: int) -> Copy | None:
        """The fragment as it stands, if it is kept here."""
        kept = self._kept.get(fragment)
        return None if kept is None else Copy(kept.version, kept.anchor_N, kept.counted.pack())

    async def take_over(self, fragment: int, copy: Copy) -> None:
        """Keep a fragment from here on; momentum starts anew."""
        usual = self._usual(fragment)
        kept = _Kept(copy.version, copy.anchor_N, self._rule.init(copy.anchor_N), CountedPushes(copy.counted), usual)
        await self._remember_own(kept)
        self._kept[fragment] = kept

    def _usual(self, fragment: int) -> Usual:
        """What pushes to a fragment are compared with, beginning with none."""
        return Usual(self._options.bound, seed_of(f"look/{self._transport.peer_id}/{fragment}"))

    def memory(self) -> Memory:
        """The fragments as they stand. What others hold of them is forgotten: they get full values once."""
        kept = self._kept.items()
        tensors = {
            "server_anchor": {fragment: each.anchor_N for fragment, each in kept},
            "server_momentum": {fragment: each.state.momentum_N for fragment, each in kept},
            "server_gathered": {fragment: each.state.gathered_N for fragment, each in kept},
        }
        facts = [
            [fragment, each.version, each.state.num_gathered, each.state.spent, each.counted.pack().hex()]
            for fragment, each in kept
        ]
        return Memory(tensors, {"kept": facts})

    def remember(self, memory: Memory) -> None:
        """Keep what was kept in an earlier life."""
        anchor, momentum, gathered = (
            memory.tensors.get(f"server_{of}", {}) for of in ("anchor", "momentum", "gathered")
        )
        for fragment, version, num_gathered, spent, counted in memory.facts["kept"]:
            state = Delayed(momentum[fragment], gathered[fragment], num_gathered, spent)
            names, usual = CountedPushes(bytes.fromhex(counted)), self._usual(fragment)
            self._kept[fragment] = _Kept(version, anchor[fragment], state, names, usual)

    def restrained(self, fragment: int) -> tuple[Restrained, ...]:
        """Whose pushes were bounded here since this was last asked, the worst of each worker and kind."""
        kept = self._kept.get(fragment)
        found: dict[tuple[PeerId, Bound], Restrained] = {}
        while kept is not None and kept.restrained:
            each = kept.restrained.popleft()
            known = found.get((each.peer, each.kind), each)
            found[each.peer, each.kind] = max(known, each, key=lambda one: abs(one.ratio))
        return tuple(found.values())

    def retire(self, fragment: int) -> None:
        """Keep it no longer: somebody else has counted more."""
        self._kept.pop(fragment, None)

    async def push(self, fragment: int, delta_N: Tensor | None, name: bytes, push: bytes = b"") -> Copy | None:
        """Count what this worker itself brings, which no codec spoils.

        Args:
            fragment: where it belongs.
            delta_N: the pseudo-gradient [N]; ``None`` to listen only.
            name: of this push: what was counted before a restart is not counted again after it.
            push: names the same as it was pushed to an earlier server, which may have counted it; empty if it was not.

        Returns:
            The new anchor; ``None`` if this worker is not the server any more.
        """
        kept = self._kept.get(fragment)
        if kept is None:
            return None
        async with kept.turn:
            me = self._transport.peer_id
            if delta_N is not None and not any(kept.counted.has(me, known) for known in (name, push)):
                if self._options.bound:
                    kept.usual.note(me, await self._clock.run_aside(lambda: kept.usual.look(delta_N)))
                await self._step(kept, delta_N, (me, name))
            await self._remember_own(kept)
            return self.current(fragment) if self._kept.get(fragment) is kept else None

    async def _on_push(self, sender: PeerId, request: bytes) -> bytes:
        """A worker brings a pseudo-gradient, or only listens."""
        message = from_wire(Push, request, len(request))
        below(len(self._wire.numels), "fragment", message.fragment)
        if self._roster.get(sender) is None:
            raise ValueError("not heard of yet; come again")
        self._roster.vouch((sender,), self._clock.monotonic())
        fragment, push = message.fragment, push_id(sender, request)
        elsewhere = to_wire(Reply(Kind.ELSEWHERE))
        kept = self._kept.get(fragment)
        if kept is None:
            return elsewhere
        delta_N = None
        if message.frame:
            numel = self._wire.numels[fragment]
            delta_N = await self._clock.run_aside(lambda: unpack(message.frame, self._wire.codec, numel))
        async with kept.turn:
            if delta_N is not None and not kept.counted.has(sender, push):
                within_N = await self._bounded(kept, sender, delta_N)
                if within_N is None:  # it is not to come again
                    kept.counted.note(sender, push)
                else:
                    await self._step(kept, within_N, (sender, push))
            copy = Copy(kept.version, kept.anchor_N, kept.counted.pack())
            held_N = self._held(kept, sender, message.base)
            purpose = f"keep/{self._transport.peer_id}/{fragment}/{copy.version}/{sender}"

            def answer() -> tuple[bytes, str, Tensor]:
                reply, told_N = self.values.answer(copy, held_N, purpose)
                return to_wire(reply), digest(told_N) if self._remembers else "", told_N

            packed, name, told_N = await self._clock.run_aside(answer)
            if self._kept.get(fragment) is not kept:
                # Whoever kept on counting for a line that has ended would have counted for nobody.
                return elsewhere
            if self._remembers:
                self._remember(kept, sender, name, told_N)
        return packed

    async def _bounded(self, kept: _Kept, sender: PeerId, delta_N: Tensor) -> Tensor | None:
        """A push as it may count; ``None`` if it may not.

        Raises:
            ValueError: nobody else has pushed yet, so nobody can tell; it may come again.
        """
        active = self._roster.active(self._clock.monotonic())
        if not self._options.bound or len(active) < _FEWEST_TO_BOUND:
            return delta_N
        living = {presence.peer for presence in active}
        look = await self._clock.run_aside(lambda: kept.usual.look(delta_N))
        judged = await self._clock.run_aside(lambda: kept.usual.judge(sender, look, living))
        if judged is None:
            raise ValueError("nobody else has pushed yet; come again")
        if judged.kind is not None:
            kept.restrained.append(Restrained(sender, judged.kind, judged.ratio, 1.0))
        if judged.share == 1:
            return delta_N
        return delta_N * judged.share if judged.share else None

    async def _step(self, kept: _Kept, delta_N: Tensor, push: tuple[PeerId, bytes]) -> None:
        """Take one pseudo-gradient in.

        Raises:
            FrameError: it is so large that the anchor would not be finite.
        """
        every = self._options.every or max(1, len(self._roster.active(self._clock.monotonic())))
        before_N, before = kept.anchor_N, kept.state

        def step() -> tuple[Tensor, Delayed, bool]:
            anchor_N, state = self._rule.step(before_N, delta_N, before, every)
            tensors = (anchor_N, state.momentum_N, state.gathered_N)
            return anchor_N, state, all(all_finite(values_N.numpy()) for values_N in tensors)

        anchor_N, state, is_finite = await self._clock.run_aside(step)
        if not is_finite:
            raise FrameError("a pseudo-gradient that no anchor survives")
        kept.anchor_N, kept.state = anchor_N, state
        kept.version += 1
        kept.counted.note(*push)

    def _held(self, kept: _Kept, sender: PeerId, name: str) -> Tensor | None:
        """What a worker holds that calls it ``name``: what it was told itself or, as a newcomer, its donor."""
        told = kept.holders.get(sender)
        candidates = (told, *kept.holders.values()) if told is not None else kept.holders.values()
        return next((held_N for known, held_N in candidates if known == name), None)

    async def _remember_own(self, kept: _Kept) -> None:
        """What this worker holds as one of all: newcomers have it from here, and at first all others may have it."""
        if self._remembers:
            anchor_N = kept.anchor_N
            name = await self._clock.run_aside(lambda: digest(anchor_N))
            self._remember(kept, self._transport.peer_id, name, anchor_N)

    def _remember(self, kept: _Kept, sender: PeerId, name: str, told_N: Tensor) -> None:
        """What a worker holds from now on, if it hears the answer; the dead are forgotten."""
        now = self._clock.monotonic()
        for peer in [peer for peer in kept.holders if not self._roster.is_live(peer, now)]:
            del kept.holders[peer]
        kept.holders[sender] = (name, told_N)
        kept.holders.move_to_end(sender)
        while len(kept.holders) > self._max_holders:
            kept.holders.popitem(last=False)

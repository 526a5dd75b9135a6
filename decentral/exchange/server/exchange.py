"""Mixing without rounds: a worker pushes its pseudo-gradient to a parameter server and goes on from its answer.

1. Whoever has finished its inner steps pushes at once. The server takes the outer step with this one pseudo-gradient
   (``outer.delayed_nesterov``) and answers with the change of its anchor since what the worker holds (``server``).
2. Who does not know the server, or does not reach it, asks the first of the living (``succession``).
3. Who does not get through keeps its work, as after any aborted round. If an answer was lost, its push may have been
   counted: it asks before it pushes again, and leaves out what was.

Nobody waits for anybody but the server, and every worker has an anchor of its own age.

Source: Asynchronous Local-SGD (arXiv 2401.09135). Differences: each fragment has a parameter server of its own,
which is a worker and is replaced when it is lost; what travels is coded; pushes are not merged in a grace period.

Legend: N = values in the fragment.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decentral.codecs.frame import pack, unpack
from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.exchange.api import Aborted, Contribution, Exchange, Memory, Onward, Reason, Verdict
from decentral.exchange.progress import Progress
from decentral.exchange.server.messages import Kind, Push, Reply
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.server.pushes import CountedPushes, push_id
from decentral.exchange.server.server import PUSH, Copy, ParameterServer
from decentral.exchange.server.succession import Succession
from decentral.exchange.wire import Wire, seed_of
from decentral.outer.rule import Mixed
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.schedule.dylu import local_steps
from decentral.swarm.matching import round_to_join
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.tensors.digest import digest
from decentral.types import PeerId, SyncKey, short_id

#: Servers that a worker does not reach, one after the other, before it trains on with what it has.
_MAX_FAILURES = 4
#: Between two looks for a server, or two tries at one that is busy, at first; twice as long each time, up to a beat.
_PAUSE_S = 0.1


@dataclass(slots=True)
class _Open:
    """What was pushed against one anchor without an answer; the local parameters still contain it."""

    base: str
    """Digest of that anchor."""
    push: bytes = b""
    """Names the push that may have been counted; empty for none."""
    pushed_N: Tensor | None = None
    """What the server decodes of it."""
    counted_N: Tensor | None = None
    """What is known to have been counted."""

    def settle(self, counted: bool) -> None:
        """The server has said whether it counted the push."""
        if counted and self.pushed_N is not None:
            self.counted_N = self.pushed_N if self.counted_N is None else self.counted_N + self.pushed_N
        self.push, self.pushed_N = b"", None


@dataclass(frozen=True, slots=True)
class _Request:
    """A push as it travels."""

    packed: bytes
    pushed_N: Tensor | None
    """What the server decodes of it; ``None`` if it only listens."""
    delta_N: Tensor | None
    """Before it was coded."""
    name: bytes
    """Of what is counted here: after a restart the same."""


class Asynchronous(Exchange):
    """Implements ``Exchange``; a worker's side and, through its parts, a server's.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: who is alive.
        wire: sizes and codecs, equal on all members.
        timing: bounds.
        options: how servers step.
        anchor: a fragment's anchor with its digest, or ``None`` while there is none.
    """

    has_common_anchor = False

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        timing: Timing,
        options: ServerOptions,
        anchor: Callable[[int], tuple[str, Tensor] | None],
    ) -> None:
        super().__init__(Progress(len(wire.numels)))
        self._transport = transport
        self._me = transport.peer_id
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._timing = timing
        self._options = options
        self._anchor = anchor
        self._server = ParameterServer(transport, clock, roster, wire, options)
        self._succession = Succession(transport, clock, roster, self._server, timing, self._copy)
        self._copies: dict[int, Copy] = {}
        self._open: dict[int, _Open] = {}
        self._serial = 0

    async def start(self) -> None:
        """Begin to serve other members."""
        await self._server.start()
        await self._succession.start(len(self._wire.numels))

    async def run(self) -> None:
        """Take over from servers that are lost."""
        await self._succession.run()

    def adopted(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """A new anchor: if it is not the server's last answer, it is not known which version it is."""
        copy = self._copies.get(fragment)
        if copy is not None and copy.anchor_N is not anchor_N:
            del self._copies[fragment]

    def onward(self) -> Onward:
        """In the round of the others."""
        return Onward(round_to_join(self.progress.rounds(), self._roster.runners(self._clock.monotonic())))

    def steps_to_skip(self, left: int, lead: int, own_pace_s: float, paces_s: Callable[[], Sequence[float]]) -> int:
        """A slow worker takes fewer steps between two launches (``schedule.dylu``)."""
        if self._options.dylu:
            return left - local_steps(left, own_pace_s, paces_s())
        return lead

    def memory(self) -> Memory:
        """What is kept here, which version this worker holds, and what it pushed without an answer."""
        kept, copies, opened = self._server.memory(), list[Any](), list[Any]()
        tensors: dict[str, dict[int, Tensor]] = {}
        for fragment, copy in self._copies.items():
            held = self._anchor(fragment)
            if held is not None and held[1] is copy.anchor_N:
                copies.append([fragment, copy.version, copy.counted.hex()])
        for fragment, each in self._open.items():
            opened.append([fragment, each.base, each.push.hex()])
            for role, values_N in (("pushed", each.pushed_N), ("counted", each.counted_N)):
                if values_N is not None:
                    tensors.setdefault(role, {})[fragment] = values_N
        facts = {**kept.facts, "copies": copies, "open": opened, "serial": self._serial}
        return Memory({**kept.tensors, **tensors}, facts)

    def remember(self, memory: Memory, anchors_N: Sequence[Tensor]) -> None:
        """See ``Exchange``."""
        self._server.remember(memory)
        self._serial = int(memory.facts["serial"])
        for fragment, version, counted in memory.facts["copies"]:
            self._copies[fragment] = Copy(version, anchors_N[fragment], bytes.fromhex(counted))
        pushed, counted_N = memory.tensors.get("pushed", {}), memory.tensors.get("counted", {})
        for fragment, base, push in memory.facts["open"]:
            names = bytes.fromhex(push), pushed.get(fragment), counted_N.get(fragment)
            self._open[fragment] = _Open(base, *names)

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """Push ``mine`` to the server. A weight of 0 listens only: nothing is pushed, the anchor is received."""
        began = self._clock.monotonic()
        try:
            outcome, sent_N, waiting_s = await self._sync(key, mine, mine.base.anchor_N)
        finally:
            self.progress.finish(key)
        transfer_s = max(0.0, self._clock.monotonic() - began - waiting_s)
        restrained = self._server.restrained(key.fragment)
        return Verdict(outcome, sent_N, waiting_s=waiting_s, transfer_s=transfer_s, restrained=restrained)

    def _copy(self, fragment: int) -> Copy | None:
        """The anchor that this worker holds; one that came from a donor has no known version."""
        held = self._anchor(fragment)
        return self._copies.get(fragment) or (None if held is None else Copy(0, held[1], b""))

    async def _sync(
        self, key: SyncKey, mine: Contribution, anchor_N: Tensor
    ) -> tuple[Mixed | Aborted, Tensor | None, float]:
        """The outcome, what of ours was counted, and the seconds spent moving values."""
        fragment, base = key.fragment, await self._clock.run_aside(lambda: digest(anchor_N))
        open_ = self._open.get(fragment)
        if open_ is None or open_.base != base or not mine.weight:
            open_ = self._open[fragment] = _Open(base)
        until = self._clock.monotonic() + self._timing.transfer_timeout_s
        moving_s, pause_s, failures, why = 0.0, _PAUSE_S, 0, ""
        request: _Request | None = None
        while True:
            server = await self._succession.find(fragment)
            if server is not None and request is None and await self._settle(fragment, server, open_):
                request = await self._clock.run_aside(lambda: self._request(key, mine, open_))
            if server is None or request is None:
                failures, why = failures + 1, "nobody is known to keep the fragment"
            else:
                began = self._clock.monotonic()
                answer = await self._push(fragment, server, request, open_, anchor_N)
                moving_s += self._clock.monotonic() - began
                if isinstance(answer, Copy):
                    self._copies[fragment] = answer
                    del self._open[fragment]
                    mixed = Mixed(anchor_N - answer.anchor_N, (self._me,), anchor_N=answer.anchor_N)
                    open_.settle(counted=True)
                    return mixed, open_.counted_N, moving_s
                failures += not isinstance(answer, CallRefused)
                why = f"{short_id(server)}: {answer}"
            if failures == _MAX_FAILURES or self._clock.monotonic() + pause_s > until:
                return Aborted(Reason.ALONE, why), None, moving_s
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._timing.beat_s)

    async def _settle(self, fragment: int, server: PeerId, open_: _Open) -> bool:
        """Find out what of earlier pushes was counted; returns whether that is known."""
        if open_.push:
            counted = await self._succession.has_counted(server, fragment, open_.push)
            if counted is None:
                return False
            open_.settle(counted)
        return True

    def _request(self, key: SyncKey, mine: Contribution, open_: _Open) -> _Request:
        """Pack what is to be pushed, without what was counted before."""
        fragment, name = key.fragment, push_id(self._me, f"{key.round}/{key.fragment}/{open_.base}".encode())
        if not mine.weight:
            return _Request(to_wire(Push(fragment, open_.base, b"")), None, None, name)
        delta_N = mine.delta_N if open_.counted_N is None else mine.delta_N - open_.counted_N
        codec = self._wire.codec
        self._serial += 1
        frame = pack(codec, delta_N, seed_of(f"push/{self._me}/{fragment}/{self._serial}"))
        pushed_N = delta_N if codec.lossless else unpack(frame, codec, delta_N.numel())
        return _Request(to_wire(Push(fragment, open_.base, frame)), pushed_N, delta_N, name)

    async def _push(
        self, fragment: int, server: PeerId, request: _Request, open_: _Open, anchor_N: Tensor
    ) -> Copy | Exception | str:
        """The server's answer, or why there is none. Sent again in full after a loss: its bytes count once."""
        if server == self._me:
            return await self._push_here(fragment, request, open_)
        limit, before = self._server.values.limit(fragment), (open_.push, open_.pushed_N)
        timeout_s = self._timing.call_timeout_s(len(request.packed) + limit)
        if request.pushed_N is not None:
            open_.push, open_.pushed_N = push_id(self._me, request.packed), request.pushed_N
        try:
            data = await self._transport.call(server, PUSH, request.packed, timeout_s=timeout_s, max_reply_bytes=limit)
            reply = from_wire(Reply, data, limit)
            if reply.kind is not Kind.ELSEWHERE:
                return await self._clock.run_aside(lambda: self._server.values.take(fragment, reply, anchor_N))
        except CallRefused as err:
            return err
        except PeerUnreachable as err:
            open_.push, open_.pushed_N = before
            self._roster.bury(server)
            self._succession.forget(fragment)
            return err
        except (TransportError, FrameError) as err:
            self._succession.forget(fragment)
            return err
        open_.push, open_.pushed_N = before
        self._succession.forget(fragment)
        return "it does not keep the fragment any more"

    async def _push_here(self, fragment: int, request: _Request, open_: _Open) -> Copy | str:
        """This worker is the server: nothing travels, and no codec spoils what it brings."""
        copy = await self._server.push(fragment, request.delta_N, request.name, open_.push)
        if copy is None:
            return "this worker does not keep the fragment any more"
        if not open_.push or not CountedPushes(copy.counted).has(self._me, open_.push):
            open_.pushed_N = request.delta_N
        return copy

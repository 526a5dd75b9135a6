"""Workers that lie about other things than the values that they bring, for tests and benches.

Each deceit changes what an ordinary worker says; who lies knows who else does.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from decentral.engine.membership import PRESENCE
from decentral.engine.worker import Worker
from decentral.errors import TransportError
from decentral.exchange.allreduce.leader import CONVENE
from decentral.exchange.allreduce.messages import Answer, Convene, ConveneReply
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.api import Contribution, Verdict
from decentral.ports.transport import Handler
from decentral.sim.world import SimPeer
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId, SyncKey

#: Told the worker, its machine and all liars.
Deceit = Callable[[Worker, SimPeer, Collection[PeerId]], None]
#: What is said of the age of others' news, milliseconds.
_AGES_AGO = 3_600_000
#: So many calls later each is made again.
_REPLAYED_AFTER = 64


def lead(worker: Worker, peer: SimPeer, liars: Collection[PeerId], kind: Answer = Answer.BEHIND) -> None:
    """Claim to be the oldest, and name none but liars in rounds that it leads.

    What comes of such a round is made by liars alone; the others are told that they missed it, or that their anchors
    are not those of most (``OUT_OF_SYNC``).
    """
    at: Any = peer.transport
    of: Any = worker.membership
    serve, update, me = at.serve, of.update, peer.peer_id

    def senior(**changes: Any) -> None:
        update(**{**changes, "since": 0})

    async def serving(name: str, handler: Handler, **limits: Any) -> None:
        async def naming(sender: PeerId, request: bytes) -> bytes:
            reply = from_wire(ConveneReply, await handler(sender, request))
            if reply.kind is not Answer.PARTICIPANTS:
                return to_wire(reply)
            named = from_wire(Participants, reply.participants)
            listed = to_wire(msgspec.structs.replace(named, members=tuple([m for m in named.members if m in liars])))
            if sender in liars:
                return to_wire(ConveneReply(Answer.PARTICIPANTS, listed))
            return to_wire(ConveneReply(kind, listed if kind is Answer.BEHIND else b"", me))

        await serve(name, naming if name == CONVENE else handler, **limits)

    at.serve, of.update = serving, senior


def hand_over(worker: Worker, peer: SimPeer, liars: Collection[PeerId]) -> None:
    """Give whoever asks for the state one with anchors of the other sign, and digests that fit."""
    current = worker._donor._current

    async def poisoned() -> Snapshot | None:
        snapshot = await current()
        if snapshot is None:
            return None
        fragments = [FragmentState.of(each.round, -each.anchor_N, each.outer) for each in snapshot.fragments]
        return Snapshot(snapshot.step, tuple(fragments))

    worker._donor._current = poisoned


def send_away(worker: Worker, peer: SimPeer, liars: Collection[PeerId]) -> None:
    """As a leader, send all others to itself for a state, which is poisoned."""
    lead(worker, peer, liars, Answer.OUT_OF_SYNC)
    hand_over(worker, peer, liars)


def bury(worker: Worker, peer: SimPeer, liars: Collection[PeerId]) -> None:
    """Say of everybody that it cannot be reached, and that its last news is an hour old."""
    at: Any = peer.transport
    of: Any = worker.membership
    call, message = peer.transport.call, worker.membership.message

    async def calling(to: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
        if method == CONVENE:
            dead = tuple([other.peer for other in worker.membership.others() if other.peer != to])
            request = to_wire(msgspec.structs.replace(from_wire(Convene, request), unreachable=dead))
        return await call(to, method, request, **limits)

    def ageing(*args: Any) -> bytes:
        own, *others = msgspec.msgpack.decode(message(*args))
        return to_wire([own, *[(record, _AGES_AGO) for record, _ in others]])

    at.call, of.message = calling, ageing


def replay(worker: Worker, peer: SimPeer, liars: Collection[PeerId]) -> None:
    """Bring what it brought to its first round in all of them, and make each call of more than news again later."""
    at: Any = peer.transport
    of: Any = worker._exchange
    call, mix = peer.transport.call, worker._exchange.mix
    made: deque[tuple[PeerId, str, bytes, dict[str, Any]]] = deque()
    again: set[asyncio.Task[None]] = set()
    first: dict[int, Contribution] = {}

    async def repeat(to: PeerId, method: str, request: bytes, limits: dict[str, Any]) -> None:
        with suppress(TransportError):
            await call(to, method, request, **limits)

    async def calling(to: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
        if method != PRESENCE:
            made.append((to, method, request, limits))
        if len(made) > _REPLAYED_AFTER:
            task = asyncio.create_task(repeat(*made.popleft()))
            again.add(task)
            task.add_done_callback(again.discard)
        return await call(to, method, request, **limits)

    async def mixing(key: SyncKey, mine: Contribution) -> Verdict:
        old = first.setdefault(key.fragment, mine) if mine.weight else mine
        verdict = await mix(key, replace(mine, delta_N=old.delta_N, relative_N=None))
        return verdict if verdict.sent_N is None else replace(verdict, sent_N=mine.delta_N)

    at.call, of.mix = calling, mixing


#: By name.
DECEITS: Mapping[str, Deceit] = {"leader-away": send_away, "donor": hand_over, "false-deaths": bury, "replay": replay}

"""How members of a pipeline of which no stage has a holder any more come to go on from the same step, each by itself.

Each tells the others what it has on its disk, and all draw the same conclusion (``pipeline.stored``). Who has drawn it
says so from then on: it counts for those who are heard of later. Whoever takes which stage is not decided here.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from decentral.engine.disks import Store
from decentral.errors import FrameError, TransportError
from decentral.pipeline.holders import Holders
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import (
    HEAD,
    AtHand,
    Inventory,
    Lacking,
    Part,
    Span,
    Start,
    Stored,
    newest_of,
    parts_of,
    start_of,
)
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

INVENTORY = "inventory"


class Agreement:
    """One member's part.

    Args:
        transport: to the others.
        holders: who is there.
        store: what this member has.
        options: of the pipeline.
        cut: the stages there are.
        timing: bounds for every call.
        is_in: whether this member holds stages, or is about to: what was agreed on before the last end does not count.
    """

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        store: Store,
        options: PipelineOptions,
        cut: CutInForce,
        timing: Timing,
        is_in: Callable[[], bool],
    ) -> None:
        self.origin = 0
        """The step from which the run went on when it was brought back; 0 if it was not, or that is not known."""
        self.heard = 0
        """The same, of a member that joined it afterwards."""
        self._transport = transport
        self._holders = holders
        self._store = store
        self._options = options
        self._cut = cut
        self._timing = timing
        self._is_in = is_in
        self._agreeing = False
        self._others_agree = False
        """Whether others come back to stages that nobody holds, and it is not known yet where these go on."""

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(INVENTORY, self._on_inventory, max_request_bytes=0)

    async def reached(self) -> Start | Lacking:
        """From which step the run goes on, as those see it who are there now."""
        self.origin = 0
        self._agreeing = True
        start = await self._seen()
        if isinstance(start, Start):
            # Somebody may have come to another conclusion at the same moment, as it knew more: that one counts.
            self.origin = start.step
            start = await self._seen()
        self._agreeing = isinstance(start, Start)
        self.origin = start.step if isinstance(start, Start) else 0
        return start

    async def follow(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Learn from members of a run that goes on where it was brought back; returns those who do hold something."""
        found = await self._ask(peers)
        self.origin = max((inventory.origin for inventory in found.values()), default=0)
        return [peer for peer, inventory in found.items() if inventory.holds]

    async def met(self) -> Start:
        """What was agreed on where a run was brought back that this member has come to; nothing of another run."""
        start = await self._seen() if self.origin else None
        return start if isinstance(start, Start) else Start(self.origin, {})

    async def listen(self, peers: Sequence[PeerId]) -> None:
        """Hear from members of a run that this one joins where it was brought back."""
        self.heard = max((inventory.origin for inventory in (await self._ask(peers)).values()), default=0)

    async def look(self) -> None:
        """Now and then: a member that joined while others came back hears where they go on, once they do."""
        holders = [presence.peer for presence in self._holders.present() if presence.holds]
        if self._others_agree and holders and not self.origin:
            await self.listen(holders)
        self._others_agree = not holders and (self._others_agree or self._holders.is_coming_back())

    async def at_hand(self, span: Span, step: int) -> AtHand:
        """What a stage is made of that nobody holds, of all disks of those who are there.

        Args:
            span: its blocks.
            step: of the run.
        """
        is_origin, me = bool(step) and step == (self.origin or self.heard), self._transport.peer_id
        parts = parts_of({me: self._store.stored()}, span, step) if is_origin else ()
        if not (len(parts) == 1 and parts[0].stored.own):
            parts = newest_of(_stored(await self._found()), span, step)
        age = abs(step - parts[0].stored.step) if parts else None
        return AtHand(parts, age if is_origin or age is None else max(1, age))

    async def saved(self, span: Span, peers: Sequence[PeerId]) -> list[Part]:
        """The checkpoints that some who hold a stage have of just its blocks."""
        found = _stored(await self._ask(peers))
        listed = [one for stored in found.values() for one in stored if one.span == span]
        theirs = {one for one in listed if one.own and not one.is_cut_out}
        return [Part(one, tuple(peer for peer, stored in found.items() if one in stored)) for one in sorted(theirs)]

    def over(self) -> None:
        """This member has taken what it has: from now on its stages speak for it."""
        self._agreeing = False

    async def _seen(self) -> Start | Lacking:
        found = await self._found()
        origin = max(inventory.origin for inventory in found.values())
        return start_of(_stored(found), (HEAD, *self._cut.whole), origin, self._options.num_replicas)

    async def _found(self) -> dict[PeerId, Inventory]:
        """What all say who are there."""
        me = self._transport.peer_id
        found = await self._ask([presence.peer for presence in self._holders.present() if presence.peer != me])
        return {**found, me: self._own()}

    async def _ask(self, peers: Sequence[PeerId]) -> dict[PeerId, Inventory]:
        """What those say who answer."""
        replies = await asyncio.gather(*[self._ask_one(peer) for peer in peers])
        return {peer: reply for peer, reply in zip(peers, replies, strict=True) if reply is not None}

    async def _ask_one(self, peer: PeerId) -> Inventory | None:
        limit = Inventory.max_bytes
        try:
            timeout_s = self._timing.call_timeout_s(limit)
            reply = await self._transport.call(peer, INVENTORY, b"", timeout_s=timeout_s, max_reply_bytes=limit)
            return from_wire(Inventory, reply)
        except (TransportError, FrameError):
            return None

    def _own(self) -> Inventory:
        holds = self._is_in()
        return Inventory(holds, self.origin if self._agreeing or holds else 0, tuple(self._store.stored()))

    async def _on_inventory(self, sender: PeerId, request: bytes) -> bytes:
        return to_wire(self._own())


def _stored(found: Mapping[PeerId, Inventory]) -> dict[PeerId, Sequence[Stored]]:
    return {peer: inventory.stored for peer, inventory in found.items()}

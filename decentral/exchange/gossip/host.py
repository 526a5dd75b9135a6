"""The serving side of gossip: answers where this worker will be, and keeps a table for guests of every fragment."""

from decentral.codecs.frame import framed_nbytes, unpack
from decentral.errors import FrameError
from decentral.exchange.gossip.context import HOLD_S, Context
from decentral.exchange.gossip.messages import Anchor, Bring, Given, Kind, Plan, Question, Reply, Visit, ms
from decentral.exchange.gossip.swap import Share
from decentral.exchange.gossip.table import Seat, Table
from decentral.swarm.message import MAX_SMALL_BYTES, from_wire, to_wire
from decentral.types import PeerId

ASK = "gossip.ask"
AHEAD = "gossip.ahead"
BRING = "gossip.bring"
POLL = "gossip.poll"
FETCH = "gossip.fetch"
#: Guests that a host takes beside those planned.
MAX_VISITORS = 1
#: Messages with values that are read at a time.
_MAX_UPLOADS = 8
#: Room for the fields around two frames.
_ENVELOPE_BYTES = 2_048


class Host:
    """This worker's tables.

    Args:
        context: ports, agreements, and what was learnt of others.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._company, self._clock, self._wire = context.company, context.clock, context.wire
        self._tables = [Table() for _ in context.wire.numels]
        self._closed = [Table() for _ in context.wire.numels]
        self._at_home: set[int] = set()
        self._visiting: dict[int, PeerId] = {}
        self._ahead: dict[tuple[int, PeerId], tuple[str, bytes]] = {}

    async def start(self) -> None:
        """Begin to answer."""
        longest = max(self._wire.numels)
        anchor = _ENVELOPE_BYTES + framed_nbytes(self._context.options.anchor_codec, longest)
        delta = framed_nbytes(self._wire.codec, longest)
        serve = self._context.transport.serve
        await serve(ASK, self._on_ask, max_request_bytes=MAX_SMALL_BYTES)
        await serve(AHEAD, self._on_ahead, max_request_bytes=anchor, max_concurrent=_MAX_UPLOADS)
        await serve(BRING, self._on_bring, max_request_bytes=anchor + delta, max_concurrent=_MAX_UPLOADS)
        await serve(POLL, self._on_poll, max_request_bytes=MAX_SMALL_BYTES)
        await serve(FETCH, self._on_fetch, max_request_bytes=MAX_SMALL_BYTES, max_concurrent=_MAX_UPLOADS)

    # -- what this worker does ----------------------------------------------------------------------------------------

    def table(self, fragment: int) -> Table:
        """The table at which the guests of the next sync sit."""
        return self._tables[fragment]

    def attend(self, fragment: int, own: bytes | None) -> None:
        """This worker has finished its inner steps: guests need not wait for it any more.

        Args:
            fragment: of the sync.
            own: what it brings itself, for an only guest; empty if it listens, ``None`` to give it to nobody.
        """
        self._tables[fragment].tidy(self._clock.monotonic(), self._context.timing.grace_s)
        if own is not None:
            self._tables[fragment].lay(own)
        self._at_home.add(fragment)

    def visit(self, fragment: int, host: PeerId | None) -> None:
        """This worker goes to a host, or (``None``) comes back from it."""
        if host is None:
            self._visiting.pop(fragment, None)
        else:
            self._visiting[fragment] = host

    def clear(self, fragment: int) -> tuple[list[Seat], Table]:
        """This worker goes: the guests whose values count, and the table that is to be closed with their answers."""
        self._at_home.discard(fragment)
        table, self._tables[fragment] = self._tables[fragment], Table()
        self._closed[fragment] = table
        return table.present(self._clock.monotonic(), self._context.timing.grace_s), table

    def unconfirmed(self, fragment: int) -> tuple[PeerId, ...]:
        """Guests that never fetched the answer of the table closed last."""
        closed = self._closed[fragment]
        return tuple(sorted(peer for peer, _ in closed.answers if peer not in closed.fetched))

    # -- what others ask ----------------------------------------------------------------------------------------------

    async def _on_ask(self, sender: PeerId, request: bytes) -> bytes:
        """Where will you be, and when? Who comes if we are ready in time has a seat from now on."""
        question = from_wire(Question, request)
        fragment, eta_s = self._checked(question.fragment), self._eta_s(question.fragment)
        if question.patience_ms is None:
            return to_wire(self._plan(fragment, sender))
        if self._context.avoids(sender) or not self._has_room(fragment, sender):
            return to_wire(Plan(self._company.me, None))
        if eta_s <= question.patience_ms / 1000:
            self._tables[fragment].promise(sender)
        return to_wire(Plan(self._company.me, ms(eta_s)))

    def _plan(self, fragment: int, sender: PeerId) -> Plan:
        """Where this worker will be at its next sync, seen by ``sender``."""
        me = self._company.me
        visited = self._visiting.get(fragment)
        if visited is not None:
            return Plan(visited, 0)
        eta_s = self._eta_s(fragment)
        stays = fragment in self._at_home or self._tables[fragment].guests
        if not stays and self._company.group(fragment)[0] == sender:
            return Plan(sender, ms(eta_s))
        # Planned to be somebody's guest or not, it stays for one who comes first.
        return Plan(me, ms(eta_s) if self._has_room(fragment, sender) else None)

    def _eta_s(self, fragment: int) -> float:
        """Until this worker is at home."""
        return 0.0 if fragment in self._at_home else self._company.until_launch_s(fragment)

    def _has_room(self, fragment: int, sender: PeerId) -> bool:
        """Whether ``sender`` may sit down. Two that set out to each other would both stand before a closed door."""
        visited, guests = self._visiting.get(fragment), self._tables[fragment].guests
        if visited is not None and not (visited == sender and self._company.me < sender):
            return False
        if sender in guests:
            return True
        planned = self._company.group(fragment)
        if len(guests) >= self._context.options.group_size - 1 + MAX_VISITORS:
            return False  # the plan has changed since some sat down
        return sender in planned or len(guests - set(planned)) < MAX_VISITORS

    async def _on_ahead(self, sender: PeerId, request: bytes) -> bytes:
        """Keep the anchor of a guest that is planned to come, be it a round later: it may have been quicker than we."""
        anchor = from_wire(Anchor, request, len(request))
        fragment = self._checked(anchor.fragment)
        plans = [self._company.group(fragment, later) for later in (0, 1)]
        expected = {peer for host, *guests in plans if host == self._company.me for peer in guests}
        if sender not in expected:
            raise ValueError("you are not expected here")
        self._ahead[fragment, sender] = anchor.base, anchor.frame
        keep = expected | set(self._tables[fragment].seats)
        self._ahead = {key: value for key, value in self._ahead.items() if key[0] != fragment or key[1] in keep}
        return b""

    async def _on_bring(self, sender: PeerId, request: bytes) -> bytes:
        """A guest with its values: take them in and hold the call until there is an answer."""
        bring = from_wire(Bring, request, len(request))
        fragment = self._checked(bring.fragment)
        if self._context.avoids(sender):
            return to_wire(Reply(Kind.NO))
        self._company.vouch(sender)
        again = await self._again(sender, fragment, bring.serial)
        if again is not None:
            return again
        seat = self._tables[fragment].seats.get(sender)
        if seat is not None and seat.asking:
            return to_wire(Reply(Kind.HOLD))
        eta_s = self._eta_s(fragment)
        if eta_s > bring.patience_s or not self._has_room(fragment, sender):
            return to_wire(Reply(Kind.NO, ms(eta_s)))
        base, ahead = self._ahead.get((fragment, sender), ("", b""))
        frame = bring.anchor or (ahead if base == bring.base else b"")
        if not frame:
            return to_wire(Reply(Kind.ANCHOR))
        try:
            share = await self._clock.run_aside(lambda: self._share(sender, bring, frame))
        except FrameError as err:
            self._context.offend(sender, str(err))
            raise
        self._ahead.pop((fragment, sender), None)
        if not self._has_room(fragment, sender):
            return to_wire(Reply(Kind.NO, ms(eta_s)))
        now = self._clock.monotonic()
        seat = Seat(share, bring.serial, now, now + bring.patience_s)
        table = self._tables[fragment]
        table.sit(seat)
        return await self._hold(table, seat)

    def _share(self, sender: PeerId, bring: Bring, anchor: bytes) -> Share:
        """The guest's values, checked."""
        numel = self._wire.numels[bring.fragment]
        delta_N = unpack(bring.delta, self._wire.codec, numel) if bring.delta else None
        return Share(sender, bring.weight, delta_N, unpack(anchor, self._context.options.anchor_codec, numel))

    async def _on_poll(self, sender: PeerId, request: bytes) -> bytes:
        """A guest asks again."""
        visit = from_wire(Visit, request)
        return await self._again(sender, self._checked(visit.fragment), visit.serial) or to_wire(Reply(Kind.NO))

    async def _on_fetch(self, sender: PeerId, request: bytes) -> bytes:
        """The only guest wants what this worker brings itself, while its own values are on their way here."""
        visit = from_wire(Visit, request)
        fragment = self._checked(visit.fragment)
        table = self._closed[fragment]
        if table.given.get(sender) != visit.serial:
            table = self._tables[fragment]
            if self._context.avoids(sender) or not self._is_the_only(fragment, sender):
                return to_wire(Given(Kind.NO))
            await table.laid(HOLD_S)
            if table.own is None:
                return to_wire(Given(Kind.HOLD))
            if table not in self._tables or not self._is_the_only(fragment, sender):
                return to_wire(Given(Kind.NO))
            table.given[sender] = visit.serial
        return to_wire(Given(Kind.DONE, table.own or b""))

    def _is_the_only(self, fragment: int, sender: PeerId) -> bool:
        """Whether this worker has or expects this guest, and no other: of those planned, whose anchors are here."""
        host, *planned = self._company.group(fragment)
        guests = self._tables[fragment].guests
        if host == self._company.me:
            guests = guests.union(peer for peer in planned if peer == sender or (fragment, peer) in self._ahead)
        return guests == {sender}

    async def _again(self, sender: PeerId, fragment: int, serial: int) -> bytes | None:
        """The answer to a guest that has brought these values before; ``None`` if they are not here."""
        for table in (self._tables[fragment], self._closed[fragment]):
            seat = table.seats.get(sender)
            if seat is not None and seat.serial == serial:
                return await self._hold(table, seat)
            if (sender, serial) in table.answers:
                return self._fetched(table, sender, serial)
        return None

    async def _hold(self, table: Table, seat: Seat) -> bytes:
        """Wait for the table's end with a guest, no longer than it wants to and a held call may last."""
        if seat.asking:
            return to_wire(Reply(Kind.HOLD))  # one call of a guest is held, or it could take up all there are
        peer, now = seat.share.peer, self._clock.monotonic()
        seat.asking = True
        try:
            await table.closed(max(0.0, min(HOLD_S, seat.until - now)))
        finally:
            seat.asking = False
            seat.asked_at = self._clock.monotonic()
        if (peer, seat.serial) in table.answers:
            return self._fetched(table, peer, seat.serial)
        if table in self._tables and self._clock.monotonic() < seat.until:
            return to_wire(Reply(Kind.HOLD))
        if table in self._closed and table.seats:
            return to_wire(Reply(Kind.HOLD))  # its answers are being made
        if table.seats.get(peer) is seat:
            del table.seats[peer]
        return to_wire(Reply(Kind.NO))

    def _fetched(self, table: Table, peer: PeerId, serial: int) -> bytes:
        """A guest's answer, on its way."""
        table.fetched.add(peer)
        return table.answers[peer, serial]

    def _checked(self, fragment: int) -> int:
        if fragment >= len(self._wire.numels):
            raise FrameError(f"there is no fragment {fragment}")
        return fragment

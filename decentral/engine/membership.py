"""This worker's sign of life and what it hears of others, directly from random peers and by the directory.

The directory introduces peers that do not know each other. Once they do, they keep each other informed directly, so
a lost or spoilt directory stops nobody.
"""

import asyncio
import bisect
import contextlib
import math
import operator
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from decentral.errors import CallRefused, CallTimeout, FrameError, IdentityError, PeerUnreachable
from decentral.monitor.events import PeerLost, PeerSeen
from decentral.monitor.journal import Journal
from decentral.ports.clock import Clock
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.ports.transport import Transport
from decentral.swarm.message import UNREADABLE, to_wire
from decentral.swarm.presence import (
    MAX_LINKED,
    MAX_LINKS,
    MAX_RECORD_BYTES,
    Link,
    Metrics,
    Presence,
    State,
    encode,
    read,
)
from decentral.swarm.roster import Roster, without
from decentral.swarm.timing import Timing
from decentral.types import Count, PeerId, short_id

PRESENCE = "presence"
#: Records that travel in one exchange, besides the sender's own.
_NUM_FORWARDED = 16
#: Peers that hear at once of a worker that comes or goes; the others hear of it from them.
_NUM_TOLD = 8
#: A newcomer, who knows nobody yet, gets so many at once.
_NUM_FOR_NEWCOMER = 256
_MAX_MESSAGE_BYTES = (_NUM_FOR_NEWCOMER + 2) * (MAX_RECORD_BYTES + 32)
#: Whom a worker asks for the state at once.
_NUM_DONORS = 8
#: Of those it knows, a worker reads in the directory of so many: those of whom it has heard nothing for longest.
_NUM_FROM_DIRECTORY = 64
#: So many beats between two visits to the directory.
_DIRECTORY_BEATS = 2
#: What the last record of a peer that went in order says.
_FAREWELLS = {State.LEAVING: "it left", State.DONE: "it is done"}
#: A worker that is done serves the others for so long at most.
_LINGER_S = 15.0
#: Of so many signs of life the quickest says how far away a peer is: the others met a busy machine.
_NUM_ROUND_TRIPS = 8
#: News of oneself that one did not write: a few are echoes of an earlier life, more are a live double.
_MAX_ECHOES = 3
_news = msgspec.msgpack.Decoder(list[tuple[bytes, Count]])


class Membership:
    """The roster and the heartbeat that keeps it true.

    Args:
        own: this worker's first record.
        metrics: asked for the record's figures whenever it is signed.
        transport: to the peers.
        directory: where strangers meet.
        clock: for ages.
        identity: signs the record.
        timing: beat and time to live.
        journal: hears of peers seen and lost.
        at_beat: called before every beat, to bring the own record up to date.
    """

    def __init__(
        self,
        own: Presence,
        *,
        metrics: Callable[[], Metrics],
        transport: Transport,
        directory: Directory,
        clock: Clock,
        identity: Identity,
        timing: Timing,
        journal: Journal,
        at_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.roster = Roster(timing.ttl_s)
        self._own = own
        self._metrics = metrics
        self._transport = transport
        self._directory = directory
        self._clock = clock
        self._identity = identity
        self._timing = timing
        self._journal = journal
        self._at_beat = at_beat
        self._random = random.Random(own.peer)
        self._encoded: dict[PeerId, bytes] = {}
        self._live: tuple[PeerId, ...] = ()
        self._round_trips: dict[PeerId, deque[float]] = {}
        """What the last signs of life took to each peer and back, in seconds."""
        self._telling: dict[PeerId, asyncio.Task[None]] = {}
        """Beats that wait for an answer."""
        self._echoes = 0
        self._signed_seq = -1
        self._signed_at = 0.0
        self._awake_at = clock.monotonic()
        self._catching_up = asyncio.Lock()
        self.update()

    @property
    def own(self) -> Presence:
        """This worker's record as it stands."""
        return self._own

    def update(self, **changes: Any) -> None:
        """Change fields of the own record; the next beat tells the others."""
        seq = max(self._own.seq + 1, int(self._clock.wall() * 1000))
        self._own = replace(self._own, seq=seq, **changes)
        self.roster.observe(self._own, self._clock.monotonic())

    def live_others(self) -> list[Presence]:
        """Records of all others that live."""
        return self._but_me(self.roster.live(self._clock.monotonic()))

    def others(self) -> list[Presence]:
        """Records of the other members."""
        return self._but_me(self.roster.active(self._clock.monotonic()))

    def paces_s(self) -> list[float]:
        """Seconds that the other members take for a round's inner steps."""
        return [other.round_s for other in self.others()]

    def _but_me(self, records: tuple[Presence, ...]) -> list[Presence]:
        """In the same order; they are sorted by peer."""
        place = bisect.bisect_left(records, self._own.peer, key=operator.attrgetter("peer"))
        mine = place < len(records) and records[place].peer == self._own.peer
        return [*records[:place], *records[place + mine :]]

    def donors(self, first: Sequence[PeerId], *, common: bool) -> list[PeerId]:
        """Whom to ask for the state: those given first, then other members.

        Args:
            first: as the user has it, or somebody who is known to have it.
            common: whether all who are equally far hold the same: then those furthest in the run come first. Else
                their states are compared, and chance decides, so that nobody is asked for what it says of itself.
        """
        others = [presence for presence in self.others() if presence.peer not in first]
        if common:
            others.sort(key=lambda presence: -presence.round)
        else:
            self._random.shuffle(others)
        return [*first, *(presence.peer for presence in others)][:_NUM_DONORS]

    def everybody(self) -> list[tuple[Presence, float]]:
        """Every remembered record with the seconds since it was news; the own one with this worker's figures."""
        known = self.roster.with_ages(self._clock.monotonic())
        own = self._with_figures()
        return [(own, 0.0) if presence.peer == own.peer else (presence, age_s) for presence, age_s in known]

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(PRESENCE, self._on_presence, max_request_bytes=_MAX_MESSAGE_BYTES)

    async def run(self) -> None:
        """Beat and visit the directory for ever; a directory that hangs must not delay the signs of life."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat(self.beat, self._timing.beat_s))
                group.create_task(self._repeat(self._ask_directory, _DIRECTORY_BEATS * self._timing.beat_s))
        finally:
            for telling in self._telling.values():
                telling.cancel()
            await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def _repeat(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        own = asyncio.current_task()
        # A library below may have swallowed that this is to end, as a wait that is over at the same moment does.
        while own is None or not own.cancelling():
            await work()
            # Spread over the interval, so that a swarm started by one script does not beat in step.
            await asyncio.sleep(every_s * self._random.uniform(0.8, 1.2))

    async def beat(self) -> None:
        """Tell one random live peer that this worker is alive, and take in what it knows."""
        await self.catch_up()
        self._at_beat()
        self.update()
        others = without(self._own.peer, self.roster.live_peers(self._clock.monotonic()))
        if self._telling:
            others = [peer for peer in others if peer not in self._telling]
        if others:
            peer = self._random.choice(others)
            telling = self._telling[peer] = asyncio.create_task(self.tell(peer))
            telling.add_done_callback(lambda _: self._telling.pop(peer))
            # Whoever hangs must not keep this worker from telling others: they would take it for dead as well.
            await asyncio.wait({telling}, timeout=self._timing.beat_s)
            if telling.done():
                telling.result()
        self._note_changes()

    async def catch_up(self) -> None:
        """After a pause (a stopped process, a laptop that slept) all others look dead: ask them before believing it."""
        async with self._catching_up:
            now = self._clock.monotonic()
            away_s, self._awake_at = now - self._awake_at, now
            if away_s < self._timing.ttl_s:
                return
            known = [p.peer for p, _ in self.roster.with_ages(now) if p.peer != self._own.peer]
            async with asyncio.TaskGroup() as group:
                for peer in known[:_NUM_FORWARDED]:
                    group.create_task(self.tell(peer))

    async def tell(self, peer: PeerId) -> None:
        """Exchange records with one peer."""
        timeout_s, began = self._timing.beat_s + self._timing.grace_s, self._clock.monotonic()
        try:
            reply = await self._transport.call(
                peer, PRESENCE, self.message(), timeout_s=timeout_s, max_reply_bytes=_MAX_MESSAGE_BYTES
            )
            took_s = self._clock.monotonic() - began
            self._round_trips.setdefault(peer, deque(maxlen=_NUM_ROUND_TRIPS)).append(took_s)
            self.absorb(reply)
        except PeerUnreachable:
            self.roster.bury(peer)
        except (CallTimeout, CallRefused, FrameError):
            # Alive or not, its silence will tell.
            return

    async def announce(self, within_s: float | None = None) -> None:
        """Tell a few peers at once: of a member they should count on, or of one that nobody should wait for.

        Args:
            within_s: whoever has not answered by then may not have heard of it.
        """
        others = without(self._own.peer, self.roster.live_peers(self._clock.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                for peer in self._random.sample(others, min(len(others), _NUM_TOLD)):
                    group.create_task(self.tell(peer))

    async def linger(self, stop: asyncio.Event) -> None:
        """Of a worker that is done: say so, and serve those who are not for a while, unless ``stop`` is set."""
        until = self._clock.monotonic() + _LINGER_S
        await self.announce()
        while self._clock.monotonic() < until and not stop.is_set():
            if all(presence.state in _FAREWELLS for presence in self.roster.live(self._clock.monotonic())):
                return
            await asyncio.sleep(self._timing.beat_s / 4)

    def absorb(self, message: bytes) -> None:
        """Take in records with their ages in milliseconds; a bad record does not spoil the others.

        Raises:
            FrameError: the message as a whole is malformed.
        """
        try:
            entries = _news.decode(message)
        except UNREADABLE as err:
            raise FrameError(f"malformed presence message: {err}") from err
        for data, age_ms in entries[: _NUM_FOR_NEWCOMER + 1]:
            self._take(data, age_ms / 1000)

    def message(self, num_forwarded: int = _NUM_FORWARDED) -> bytes:
        """The own record and some others' with their ages, for a peer."""
        latest = self.roster.latest(self._clock.monotonic(), num_forwarded + 1)
        # The latest news first: old news has had its chance to spread. One of them may be the own record.
        others = [(self._encoded[peer], age_s) for peer, age_s in latest if peer != self._own.peer]
        entries = [self.signed(), *others[:num_forwarded]]
        return to_wire([(record, int(1000 * age_s)) for record, age_s in entries])

    def records(self) -> list[tuple[bytes, float]]:
        """Every remembered record as it was signed, with the seconds since it was news."""
        known = self.roster.with_ages(self._clock.monotonic())
        others = [(p.peer, age_s) for p, age_s in known if p.peer in self._encoded and p.peer != self._own.peer]
        return [self.signed(), *((self._encoded[peer], age_s) for peer, age_s in others)]

    def signed(self) -> tuple[bytes, float]:
        """The own record, signed once for every change, and the seconds since."""
        now = self._clock.monotonic()
        if self._signed_seq != self._own.seq:
            self._encoded[self._own.peer] = encode(self._with_figures(), self._identity)
            self._signed_seq, self._signed_at = self._own.seq, now
        return self._encoded[self._own.peer], now - self._signed_at

    def check_single(self) -> None:
        """Raises IdentityError if another live worker uses this one's identity."""
        if self._echoes > _MAX_ECHOES:
            raise IdentityError(
                f"another live worker uses this worker's identity ({self._own.peer})",
                hint="Give each worker its own identity file: --identity PATH (a new one is made if it is missing).",
            )

    def _with_figures(self) -> Presence:
        """The own record with this worker's figures as they are now."""
        return replace(self._own, metrics=replace(self._metrics(), links=self._links()))

    def _links(self) -> tuple[Link, ...]:
        """What is known of the links to the other workers with whom most was exchanged."""
        if len(self.roster) > MAX_LINKED:
            return ()
        links = [
            Link(short_id(peer), min(self._round_trips.get(peer, (math.nan,))), each.sent_bytes, each.received_bytes)
            for peer, each in self._transport.by_peer().items()
            if peer in self.roster
        ]
        return tuple(links[:MAX_LINKS])

    async def _on_presence(self, sender: PeerId, request: bytes) -> bytes:
        is_newcomer = not self.roster.is_live(sender, self._clock.monotonic())
        self.absorb(request)
        return self.message(_NUM_FOR_NEWCOMER if is_newcomer else _NUM_FORWARDED)

    async def _ask_directory(self) -> None:
        """Publish the own record and look for strangers."""
        key = f"decentral/{self._own.run}/presence"
        ttl_s = max(self._timing.ttl_s, 3 * _DIRECTORY_BEATS * self._timing.beat_s)
        await self._directory.publish(key, self._own.peer, self.signed()[0], ttl_s=ttl_s)
        found = await self._directory.lookup(key)
        # To read all that is new of thousands would be most of the work of a swarm; they tell each other themselves.
        doubtful = self.roster.longest_silent(_NUM_FROM_DIRECTORY)
        wanted = found.keys() - self.roster
        wanted |= {peer for peer in doubtful & found.keys() if found[peer] != self._encoded.get(peer)}
        for data in [data for subkey, data in found.items() if subkey in wanted]:
            self._take(data, 0.0)

    def _take(self, data: bytes, age_s: float) -> None:
        try:
            signed = read(data, self._identity.verify)
        except FrameError:
            return
        presence = signed.presence
        if self.roster.knows(presence):  # as nearly all that is heard
            return
        if presence.run != self._own.run or self._transport.is_barred(presence.peer):
            return
        if presence.peer == self._own.peer:
            if presence.seq > self._own.seq:
                # From an earlier life with a clock ahead of ours, or from a double: overtake it, and count.
                self._echoes += 1
                self._own = replace(self._own, seq=presence.seq)
                self.update()
            return
        if self.roster.observe(presence, self._clock.monotonic(), age_s=age_s):
            self._encoded[presence.peer] = signed.data

    def _note_changes(self) -> None:
        """Tell the journal who came and who went since the last beat."""
        now = self._clock.monotonic()
        self.roster.forget(now)
        self.roster.drop(set(filter(self._transport.is_barred, self.roster)))
        if len(self._encoded) > len(self.roster):
            self._encoded = {peer: data for peer, data in self._encoded.items() if peer in self.roster}
            self._round_trips = {peer: took for peer, took in self._round_trips.items() if peer in self._encoded}
        live, before = self.roster.live_peers(now), self._live
        if live is before:
            return
        for peer in sorted(set(live) - set(before) - {self._own.peer}):
            self._journal.record(PeerSeen(peer))
        for peer in sorted(set(before) - set(live)):
            presence = self.roster.get(peer)
            farewell = None if presence is None else _FAREWELLS.get(presence.state)
            other = "put out of the swarm" if self._transport.is_barred(peer) else "silent or unreachable"
            self._journal.record(PeerLost(peer, farewell or other))
        self._live = live

"""Who keeps which fragment, found without an election by vote.

While a server lives it stays. If it is lost, the first of the living in the order of ``leaders`` asks all others how
far they are and goes on from the highest version, its own or one that it fetches. A worker that looks for the server
asks that first one. Workers whose rosters differ may appoint two: a server that is not the first asks those ahead of it
once in a beat, and of two the one with the lower version retires.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator

from decentral.errors import CallRefused, FrameError, TransportError
from decentral.exchange.server.messages import Question, Reply, Standing
from decentral.exchange.server.pushes import CountedPushes
from decentral.exchange.server.server import Copy, ParameterServer
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.matching import leaders
from decentral.swarm.message import MAX_SMALL_BYTES, below, from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

ASK, FIND, FETCH = "server.ask", "server.find", "server.fetch"
#: A new server asks so many others, so many at a time.
_MAX_ASKED, _MAX_ASKED_AT_ONCE = 64, 16
#: Anchors handed to new servers at a time.
_MAX_UPLOADS = 2
#: A worker is sent on so often before it looks again from the start.
_MAX_HOPS = 4
#: Of those ahead of it a worker asks so many before it answers one who waits for it; the dead are buried meanwhile.
_MAX_ASKED_AHEAD = 2


class Succession:
    """One worker's part in it.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: who is alive.
        server: what is kept here.
        timing: bounds.
        copy: the anchor of a fragment as this worker itself holds it, ``None`` while it has none.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        server: ParameterServer,
        timing: Timing,
        copy: Callable[[int], Copy | None],
    ) -> None:
        self._transport = transport
        self._me = transport.peer_id
        self._clock = clock
        self._roster = roster
        self._server = server
        self._timing = timing
        self._copy = copy
        self._known: dict[int, PeerId] = {}
        self._vacant: dict[int, asyncio.Event] = {}
        """Fragments to take over, with what those who wait for it wait on."""
        self._wanted = asyncio.Event()
        self._beats = 0

    async def start(self, num_fragments: int) -> None:
        """Begin to serve."""
        serve, self._num_fragments = self._transport.serve, num_fragments
        await serve(ASK, self._on_ask, max_request_bytes=MAX_SMALL_BYTES, max_concurrent=1024)
        await serve(FIND, self._on_find, max_request_bytes=MAX_SMALL_BYTES, max_concurrent=1024)
        await serve(FETCH, self._on_fetch, max_request_bytes=MAX_SMALL_BYTES, max_concurrent=_MAX_UPLOADS)

    # -- who looks for a server ---------------------------------------------------------------------------------------

    def forget(self, fragment: int) -> None:
        """Whoever was known to keep the fragment does not answer, or does not keep it."""
        self._known.pop(fragment, None)

    async def find(self, fragment: int) -> PeerId | None:
        """Who keeps the fragment; ``None`` if that is not decided yet, or whom one was sent to does not answer."""
        if self._server.current(fragment) is not None:
            return self._me
        if fragment in self._known:
            return self._known[fragment]
        candidate = next(self._order(fragment), self._me)
        for _ in range(_MAX_HOPS):
            standing = await self._call(candidate, FIND, Question(fragment))
            if standing is None or standing.server is None:
                return None
            if standing.server == candidate:
                self._known[fragment] = candidate
                return candidate
            candidate = standing.server
        return None

    async def has_counted(self, server: PeerId, fragment: int, push: bytes) -> bool | None:
        """Whether the server's anchor contains a push of this worker; ``None`` if it does not say."""
        standing = await self._call(server, ASK, Question(fragment, push=push))
        if standing is None or standing.server != server:
            self.forget(fragment)
            return None
        return standing.counted

    # -- who is asked -------------------------------------------------------------------------------------------------

    async def _on_ask(self, sender: PeerId, request: bytes) -> bytes:
        """How far this worker is; and if two keep a fragment, one retires."""
        question = self._question(request)
        own = self._server.current(question.fragment)
        if own is not None and question.claim is not None and (question.claim, sender) > (own.version, self._me):
            self._yield(question.fragment, sender)
            own = None
        copy = own or self._copy(question.fragment)
        counted = own is not None and bool(question.push) and CountedPushes(own.counted).has(sender, question.push)
        server = None if own is None else self._me
        return to_wire(Standing(0 if copy is None else copy.version, server, counted))

    def _question(self, request: bytes) -> Question:
        """A question for a fragment that there is; raises ``ValueError``."""
        question = from_wire(Question, request)
        below(self._num_fragments, "fragment", question.fragment)
        return question

    async def _on_find(self, sender: PeerId, request: bytes) -> bytes:
        """A worker looks for the server."""
        fragment = self._question(request).fragment
        return to_wire(Standing(0, await self._server_of(fragment)))

    async def _server_of(self, fragment: int) -> PeerId | None:
        """This worker if it keeps the fragment; whoever decides that if it does not; else it takes over or finds it."""
        if self._server.current(fragment) is not None:
            return self._me
        for asked, peer in enumerate(self._ahead(fragment)):
            if asked == _MAX_ASKED_AHEAD:
                return None
            if await self._call(peer, ASK, Question(fragment)) is not None:
                return peer
        decided = self._vacant.setdefault(fragment, asyncio.Event())
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.hold_s):
                await decided.wait()
        return self._known.get(fragment) if self._server.current(fragment) is None else self._me

    async def _on_fetch(self, sender: PeerId, request: bytes) -> bytes:
        """A new server goes on from what this worker holds."""
        fragment = self._question(request).fragment
        copy = self._server.current(fragment) or self._copy(fragment)
        if copy is None:
            raise ValueError("no anchor yet")
        return await self._clock.run_aside(lambda: to_wire(self._server.values.answer(copy, None, "")[0]))

    # -- who takes over -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take over what is vacant, and look for rivals once in a beat."""
        looked_at = self._clock.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.beat_s):
                    await self._wanted.wait()
            self._wanted.clear()
            for fragment in sorted(self._vacant):
                await self._take_over(fragment)
                self._vacant.pop(fragment).set()
            if self._clock.monotonic() - looked_at >= self._timing.beat_s:
                looked_at = self._clock.monotonic()
                self._beats += 1
                for fragment in self._server.fragments:
                    await self._look_ahead(fragment)

    async def _take_over(self, fragment: int) -> None:
        """Keep the fragment from the highest version that anybody living holds, unless somebody keeps it."""
        # Also those who could not be reached: a lost message must not make a second server.
        latest = self._roster.latest(self._clock.monotonic(), _MAX_ASKED + 1)
        asked = [peer for peer, _ in latest if peer != self._me][:_MAX_ASKED]
        at_once = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)

        async def ask(peer: PeerId) -> Standing | None:
            async with at_once:
                return await self._call(peer, ASK, Question(fragment))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(peer)) for peer in asked]
        found = [(standing, peer) for peer, task in zip(asked, tasks, strict=True) if (standing := task.result())]
        servers = [(standing.version, peer) for standing, peer in found if standing.server == peer]
        if servers:
            self._known[fragment] = max(servers)[1]
            return
        best = self._copy(fragment)
        for version, peer in sorted(((standing.version, peer) for standing, peer in found), reverse=True):
            if best is not None and version <= best.version:
                break
            fetched = await self._fetch(peer, fragment)
            if fetched is not None:
                best = fetched
                break
        if best is not None:
            await self._server.take_over(fragment, best)
            self.forget(fragment)

    async def _fetch(self, peer: PeerId, fragment: int) -> Copy | None:
        """The anchor that a peer holds."""
        values, limit = self._server.values, self._server.values.limit(fragment)
        request, timeout_s = to_wire(Question(fragment)), self._timing.call_timeout_s(limit)
        try:
            data = await self._transport.call(peer, FETCH, request, timeout_s=timeout_s, max_reply_bytes=limit)
            return await self._clock.run_aside(lambda: values.take(fragment, from_wire(Reply, data, limit), None))
        except (TransportError, FrameError):
            return None

    async def _look_ahead(self, fragment: int) -> None:
        """Ask one of those ahead, in turn, whether it keeps what this worker keeps."""
        ahead, own = list(self._ahead(fragment)), self._server.current(fragment)
        if not ahead or own is None:
            return
        peer = ahead[self._beats % len(ahead)]
        standing = await self._call(peer, ASK, Question(fragment, claim=own.version))
        own = self._server.current(fragment)
        if standing is None or own is None or standing.server != peer:
            return
        if (standing.version, peer) > (own.version, self._me):
            self._yield(fragment, peer)

    def _yield(self, fragment: int, peer: PeerId) -> None:
        """Another server has counted more."""
        self._server.retire(fragment)
        self._known[fragment] = peer

    def _order(self, fragment: int) -> Iterator[PeerId]:
        """Candidates for keeping a fragment, best first."""
        return leaders(self._roster.active(self._clock.monotonic()), SyncKey(0, fragment))

    def _ahead(self, fragment: int) -> Iterator[PeerId]:
        """Those who are better candidates than this worker."""
        return itertools.takewhile(lambda peer: peer != self._me, self._order(fragment))

    async def _call(self, peer: PeerId, method: str, question: Question) -> Standing | None:
        """A peer's answer; one that does not answer is buried."""
        timeout_s = self._timing.hold_s if method == ASK else 2 * self._timing.hold_s * _MAX_ASKED_AHEAD
        try:
            answer = await self._transport.call(
                peer, method, to_wire(question), timeout_s=timeout_s, max_reply_bytes=MAX_SMALL_BYTES
            )
            return from_wire(Standing, answer)
        except (CallRefused, FrameError):
            return None
        except TransportError:
            self._roster.bury(peer)
            return None

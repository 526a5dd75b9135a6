"""Some workers without rounds on the memory network, without inner steps: a test says who pushes what and when."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.errors import CallTimeout
from decentral.exchange.api import Base, Contribution, Verdict
from decentral.exchange.server.exchange import Asynchronous
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.server.server import PUSH
from decentral.exchange.wire import Wire
from decentral.outer.rule import Mixed
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

FP32 = make_codec("fp32")
N = 8
#: Every push is taken in as it is.
PLAIN = ServerOptions(lr=1.0, momentum=0.0, every=1, bound=0.0)


class Crew:
    """Workers who know each other; ``peers[0]`` is the first to keep whatever it is.

    Args:
        num: how many.
        codec: for pseudo-gradients and answers.
        server: how servers step.
        num_fragments: P.
        strangers: those of ``peers`` that nobody has heard of.
    """

    def __init__(
        self,
        num: int = 3,
        *,
        codec: str = "fp32",
        server: ServerOptions = PLAIN,
        num_fragments: int = 1,
        strangers: Collection[int] = (),
    ) -> None:
        self.world = World(0)
        self.peers = tuple(peer_id(number) for number in range(num))
        self.wire = Wire((N,) * num_fragments, make_codec(codec), make_codec(codec))
        self.server = server
        self.rosters: dict[PeerId, Roster] = {}
        self.exchanges: dict[PeerId, Asynchronous] = {}
        self.anchors: dict[tuple[PeerId, int], Tensor] = {}
        self.known = [peer for number, peer in enumerate(self.peers) if number not in strangers]
        self.tasks: dict[PeerId, asyncio.Task[Any]] = {}
        for peer in self.peers:
            self.world.add(peer)
            for fragment in range(num_fragments):
                self.anchors[peer, fragment] = torch.zeros(N)

    async def start(self) -> None:
        for peer in self.peers:
            self.rosters[peer] = Roster(1e9)
            self.know(peer, {*self.known, peer})
            here = self.world.peers[peer]
            exchange = self.exchanges[peer] = Asynchronous(
                here.transport,
                here.clock,
                self.rosters[peer],
                self.wire,
                Timing(),
                self.server,
                lambda fragment, peer=peer: ("digest", self.anchors[peer, fragment]),  # type: ignore[misc]
            )
            await exchange.start()
            self.tasks[peer] = self.go(peer, exchange.run())

    def know(self, peer: PeerId, others: Collection[PeerId], seq: int = 1) -> None:
        """Have records of others in a worker's roster; the first is the most senior."""
        for other in sorted(others):
            record = Presence(other, "run", seq, State.TRAINING, 0, self.peers.index(other), "", 1.0)
            self.rosters[peer].observe(record, asyncio.get_running_loop().time())

    def go(self, peer: PeerId, work: Any) -> "asyncio.Task[Any]":
        """Run something on a worker's machine."""
        return asyncio.get_running_loop().create_task(work, context=self.world.peers[peer].transport.context)

    async def push(self, peer: PeerId, value: float | Tensor, fragment: int = 0, weight: float = 1.0) -> Verdict:
        """Have a worker push a pseudo-gradient and, if that is mixed, go on from the answer."""
        delta_N = value if isinstance(value, Tensor) else torch.full((N,), value)
        anchor_N = self.anchors[peer, fragment]
        mine = Contribution(delta_N, weight, Base("digest", anchor_N))
        exchange = self.exchanges[peer]
        key = SyncKey(exchange.progress.next_round(fragment), fragment)
        verdict: Verdict = await self.go(peer, exchange.mix(key, mine))
        if isinstance(verdict.outcome, Mixed) and verdict.outcome.anchor_N is not None:
            assert verdict.outcome.members == (peer,)
            assert torch.equal(verdict.outcome.delta_N, anchor_N - verdict.outcome.anchor_N)
            self.anchors[peer, fragment] = verdict.outcome.anchor_N
            exchange.adopted(fragment, "digest", verdict.outcome.anchor_N)
        return verdict

    def servers(self, fragment: int = 0) -> list[PeerId]:
        """Who thinks that it keeps the fragment, of those that live."""
        return [
            peer
            for peer, exchange in self.exchanges.items()
            if not self.world.peers[peer].transport.gone and fragment in exchange._server.fragments
        ]

    def kept(self, peer: PeerId, fragment: int = 0) -> Tensor:
        """A server's anchor."""
        copy = self.exchanges[peer]._server.current(fragment)
        assert copy is not None
        return copy.anchor_N

    def crash(self, peer: PeerId) -> None:
        self.world.network.crash(peer)
        del self.tasks[peer]

    def lose_answers(self, peer: PeerId, count: int, *, before: bool = False) -> None:
        """A worker's next pushes are carried out (or, with ``before``, lost), and it never hears of it."""
        transport = self.world.peers[peer].transport
        call, left = transport.call, count

        async def lossy(to: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
            nonlocal left
            if method != PUSH or not left:
                return await call(to, method, request, **limits)
            left -= 1
            if not before:
                await call(to, method, request, **limits)
            raise CallTimeout("lost")

        transport.call = lossy  # type: ignore[method-assign]


def play(scenario: Callable[[Crew], Awaitable[None]], num: int = 3, *, until_s: float = 1000.0, **kinds: Any) -> None:
    """Let workers push on virtual time."""

    async def main() -> None:
        crew = Crew(num, **kinds)
        await crew.start()
        await scenario(crew)
        for task in crew.tasks.values():
            task.cancel()
        await asyncio.gather(*crew.tasks.values(), return_exceptions=True)

    run(main(), until_s=until_s)


def anchor_of(verdict: Verdict) -> list[float]:
    """Where a worker is to go on from."""
    assert isinstance(verdict.outcome, Mixed), verdict.outcome
    assert verdict.outcome.anchor_N is not None
    return [float(value) for value in verdict.outcome.anchor_N]


def plain(**changes: Any) -> ServerOptions:
    return replace(PLAIN, **changes)

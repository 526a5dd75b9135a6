"""A joiner and donors on the memory network, small states, and donors that lie."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import torch

from decentral.outer.rule import OuterState
from decentral.sim.loop import run
from decentral.sim.network import Line
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.state.download.donor import Donor
from decentral.state.download.downloader import Download, Downloader, NoDownload
from decentral.state.download.pieces import HEAD
from decentral.state.download.sources import Progress
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.timing import Timing
from decentral.types import PeerId
from tests.support.later import later

LAYOUT = "layout"
NUMELS = (700, 90)
TOTAL = 8 * sum(NUMELS)
PIECE_BYTES = 1000
DONORS = tuple(peer_id(number) for number in range(5))
FIRST, SECOND, THIRD, *_ = DONORS
JOINER = peer_id(9)

#: ``change(method, request, reply)`` is what a donor says instead of its reply.
Change = Callable[[str, bytes, bytes], bytes]


def fragment(number: int, seed: int, round: int = 3) -> FragmentState:
    generator = torch.Generator().manual_seed(1000 * number + seed)
    anchor_N, momentum_N = (torch.randn(NUMELS[number], generator=generator) for _ in range(2))
    return FragmentState.of(round, anchor_N, OuterState((momentum_N,), 3 + number, (PeerId("somebody"),)))


def snapshot(seed: int = 0, step: int = 30, round: int = 3) -> Snapshot:
    return Snapshot(step, tuple(fragment(number, seed, round) for number in range(len(NUMELS))))


class Nursery:
    """A joiner and peers that may become its donors.

    Args:
        secret: see ``Downloader``.
        lines: of peers, where they are not unlimited.
    """

    def __init__(self, secret: bytes | None = None, **lines: Line) -> None:
        self.world = World(0, machines={PeerId(peer): Machine(line=line) for peer, line in lines.items()})
        self.peers = {peer: self.world.add(peer) for peer in (*DONORS, JOINER)}
        self.donors: dict[PeerId, Donor] = {}
        self.seen: list[Progress] = []
        self.asked: list[tuple[PeerId, str]] = []
        """Donor and method of every question, in the order in which they arrived."""
        joiner = self.peers[JOINER]
        self.downloader = Downloader(joiner.transport, LAYOUT, NUMELS, 1, Timing(), joiner.clock, secret)

    async def donor(
        self,
        peer: PeerId,
        state: Snapshot | None,
        change: Change | None = None,
        *,
        layout: str = LAYOUT,
        head_s: float = 0.0,
    ) -> Callable[[Snapshot | None], None]:
        """Let a peer serve, perhaps with other replies, its head after some time; returns what changes its state."""
        states, nursery, at = [state], self, self.peers[peer]

        class Recorder:
            async def serve(self, method: str, handler: Any, **limits: Any) -> None:
                async def answer(sender: PeerId, request: bytes) -> bytes:
                    nursery.asked.append((peer, method))
                    if head_s and method == HEAD:
                        await asyncio.sleep(head_s)
                    reply = await handler(sender, request)
                    return reply if change is None else change(method, request, reply)

                await at.transport.serve(method, answer, **limits)

        recorder: Any = Recorder()
        self.donors[peer] = Donor(recorder, layout, later(lambda: states[-1]), at.clock)
        await self.donors[peer].start()
        return states.append

    def crash(self, peer: PeerId) -> None:
        """Kill a donor."""
        self.world.network.crash(peer)

    async def fetch(self, *donors: PeerId, have: Snapshot | None = None) -> Download | NoDownload:
        return await self.downloader.fetch(donors, have, self.seen.append)

    def pieces_of(self, peer: PeerId) -> int:
        """How many pieces a donor was asked for."""
        return self.asked.count((peer, "state.piece"))


def play(scenario: Callable[[Nursery], Awaitable[None]], secret: bytes | None = None, **lines: Line) -> None:
    async def main() -> None:
        await scenario(Nursery(secret, **lines))

    run(main(), until_s=900.0)


def check_equal(download: Download | NoDownload, state: Snapshot) -> Download:
    assert isinstance(download, Download), download
    assert (download.snapshot.step, download.snapshot.rounds) == (state.step, state.rounds)
    assert download.snapshot.digests == state.digests
    assert download.head.name == state.name
    for mine, theirs in zip(download.snapshot.fragments, state.fragments, strict=True):
        assert torch.equal(mine.anchor_N, theirs.anchor_N)
        assert torch.equal(mine.outer.buffers_N[0], theirs.outer.buffers_N[0])
        assert mine.outer.num_steps == theirs.outer.num_steps
    return download


def transport_of(peer: SimPeer) -> Any:
    """For questions by hand."""
    return peer.transport

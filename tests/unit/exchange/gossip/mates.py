"""Some workers' gossip on the memory network, without inner steps: a test says when each is ready and with what."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack
from decentral.exchange.api import Base, Contribution, Verdict
from decentral.exchange.gossip.company import Company
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.exchange import Gossip
from decentral.exchange.gossip.host import BRING
from decentral.exchange.gossip.messages import Bring, Reply, unpack_reply
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.progress import Progress
from decentral.exchange.wire import Wire
from decentral.outer.rule import Mixed
from decentral.ports.transport import Handler
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.world import Machine, World, peer_id
from decentral.swarm.message import to_wire
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey
from tests.support.groups import groups

FP32 = make_codec("fp32")
N = 4
ROUND_S = 20.0
#: Nobody waits longer than a quarter of a round; a tenth is never too long. For values there is a second at least.
MAX_WAIT_S, MIN_WAIT_S, MIN_MOVE_S = 5.0, 2.0, 1.0
LATENCY_S = 0.02
TIMING = Timing()
H = 10


class Mates:
    """Workers who know each other.

    Args:
        num: how many.
        newcomers: further ones, who know everybody and whom nobody has heard of yet.
        pairing: of ``GossipOptions``, in place of pairs and fp32.
        num_fragments: P.
        timing: bounds.
        conditions: of the network.
        machines: those that are not ordinary.
    """

    def __init__(
        self,
        num: int = 2,
        *,
        newcomers: int = 0,
        pairing: Mapping[str, Any] | None = None,
        num_fragments: int = 1,
        timing: Timing = TIMING,
        conditions: Conditions | None = None,
        machines: Mapping[PeerId, Machine] | None = None,
    ) -> None:
        self.world = World(0, conditions, machines=machines)
        self.pairing = replace(GossipOptions(FP32, FP32), **(pairing or {}))
        self.wire = Wire((N,) * num_fragments, FP32, FP32)
        self.timing = timing
        self.peers = tuple(peer_id(number) for number in range(num))
        self.newcomers = tuple(peer_id(num + number) for number in range(newcomers))
        self.ready_at: dict[tuple[PeerId, int], float] = {}
        """When each will have finished its inner steps before the next sync of a fragment; 0 for now."""
        self.rosters: dict[PeerId, Roster] = {}
        self.gossips: dict[PeerId, Gossip] = {}
        for peer in (*self.peers, *self.newcomers):
            self.world.add(peer)
            self.rosters[peer] = Roster(1e9)
            self.know(peer, *self.peers)
            if peer in self.newcomers:
                self.know(peer, *self.newcomers)

    def know(self, peer: PeerId, *others: PeerId, round_s: float = ROUND_S, seq: int = 1) -> None:
        """Have records of others in a worker's roster."""
        for other in others:
            record = Presence(other, "run", seq, State.TRAINING, 0, 0, "", round_s)
            self.rosters[peer].observe(record, asyncio.get_running_loop().time())

    async def start(self) -> None:
        for peer in (*self.peers, *self.newcomers):
            await self.make(peer)

    async def make(self, peer: PeerId) -> Gossip:
        """A worker's exchange, at work."""
        host = self.world.peers[peer]
        company = Company(
            peer,
            host.clock,
            self.rosters[peer],
            Progress(len(self.wire.numels)),
            self.pairing.group_size,
            lambda fragment: max(0.0, self.ready_at.get((peer, fragment), 0.0) - self.now()),
        )
        context = Context(host.transport, host.clock, company, self.wire, self.pairing, self.timing, H)
        gossip = self.gossips[peer] = Gossip(context)
        await gossip.start()
        self.go(peer, gossip.run())
        return gossip

    def go(self, peer: PeerId, work: Any) -> "asyncio.Task[Any]":
        """Run something on a worker's machine."""
        context = self.world.peers[peer].transport.context
        return asyncio.get_running_loop().create_task(work, context=context)

    def group(self, round_: int = 0, fragment: int = 0, among: tuple[PeerId, ...] = ()) -> tuple[PeerId, ...]:
        """The first group planned, host first."""
        return groups(among or self.peers, SyncKey(round_, fragment), self.pairing.group_size)[0]

    def host_of(self, round_: int = 0) -> tuple[PeerId, PeerId]:
        """Host and guest of a pair."""
        host, guest = self.group(round_)
        return host, guest

    def contribution(
        self, value: float, anchor: float = 0.0, weight: float = 1.0, base: str | None = None, num: int = N
    ) -> Contribution:
        base = f"{anchor}" if base is None else base
        delta_N = torch.full((num,), value if weight else 0.0)
        return Contribution(delta_N, weight, Base(base, torch.full((num,), anchor)), num_inner_steps=H)

    async def go_ahead(self, peer: PeerId, anchor: float = 0.0) -> None:
        """A worker has this anchor, and there is time for it to go to the next host before the end of its steps."""
        base = self.contribution(0.0, anchor).base
        self.gossips[peer].adopted(0, base.digest, base.anchor_N)
        await asyncio.sleep(ROUND_S / 2)

    async def practise(self, rounds: int = 10) -> None:
        """Some rounds in which everybody is prompt: from then on they know how long things take."""
        for round_ in range(rounds):
            await asyncio.gather(*(self.mix(peer, 1.0, round_=round_, at=ROUND_S * round_) for peer in self.peers))

    def mix(
        self,
        peer: PeerId,
        value: float = 1.0,
        *,
        at: float = 0.0,
        anchor: float = 0.0,
        weight: float = 1.0,
        round_: int = 0,
        fragment: int = 0,
    ) -> "asyncio.Task[Verdict]":
        """Have a worker finish its inner steps at a moment, of which it knows before, and mix."""
        self.ready_at[peer, fragment] = at

        async def ready() -> Verdict:
            await asyncio.sleep(max(0.0, at - self.now()))
            mine = self.contribution(value, anchor, weight)
            verdict = await self.gossips[peer].mix(SyncKey(round_, fragment), mine)
            assert verdict.met is not None
            deadline_s = 0.0 if math.isnan(verdict.met.deadline_s) else verdict.met.deadline_s
            assert 0.0 <= verdict.waiting_s <= deadline_s + 1e-6, verdict
            assert not self.leftovers(peer, fragment)
            self.ready_at[peer, fragment] = self.now() + ROUND_S
            return verdict

        return self.go(peer, ready())

    def leftovers(self, peer: PeerId, fragment: int = 0) -> list[str]:
        """What a worker that is back at its inner steps should not have any more."""
        host = self.gossips[peer]._host
        found = {"at home": fragment in host._at_home, "visiting": fragment in host._visiting}
        return [what for what, there in found.items() if there]

    def sent(self, what: str = "gossip") -> list[tuple[float, PeerId, PeerId, str]]:
        """Time, sender, receiver and method of messages, lost ones too; replies have the method ``reply``."""
        pattern = re.compile(r" *([\d.]+)  (?:send|lost) (\S+) (\S+) (\S+) \d+")
        found = (pattern.fullmatch(line) for line in self.world.network.trace.tail(2000).splitlines())
        return [(float(m[1]), PeerId(m[2]), PeerId(m[3]), m[4]) for m in found if m and what in m[4]]

    def count(self, what: str) -> int:
        return len(self.sent(what))

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def call(self, sender: PeerId, receiver: PeerId, method: str, request: bytes) -> bytes:
        """Send any message by hand."""
        transport = self.world.peers[sender].transport
        return await transport.call(receiver, method, request, timeout_s=60.0, max_reply_bytes=100_000)

    async def bring(self, sender: PeerId, receiver: PeerId, serial: int = 1, **fields: Any) -> Reply:
        """Bring something by hand."""
        frame = pack(FP32, torch.ones(N))
        bring = msgspec.structs.replace(
            Bring(0, "base", serial, 1.0, 5000, frame, pack(FP32, torch.zeros(N))), **fields
        )
        return self.read(await self.call(sender, receiver, BRING, to_wire(bring)))

    def read(self, reply: bytes) -> Reply:
        return unpack_reply(reply, 100_000, self.pairing.group_size + 1)

    async def serve(self, peer: PeerId, method: str, handler: Handler) -> None:
        """Have a worker answer in its own way."""
        await self.world.peers[peer].transport.serve(method, handler, max_request_bytes=100_000)


def play(scenario: Callable[[Mates], Awaitable[None]], num: int = 2, *, until_s: float = 500.0, **kinds: Any) -> None:
    """Let workers meet on virtual time."""

    async def main() -> None:
        mates = Mates(num, **kinds)
        await mates.start()
        await scenario(mates)

    run(main(), until_s=until_s)


def mixed(verdict: Verdict) -> Mixed:
    assert isinstance(verdict.outcome, Mixed), verdict.outcome
    return verdict.outcome


def alone(verdict: Verdict, peer: PeerId) -> bool:
    """Whether a worker took the step without a partner, with exactly what it brought."""
    return mixed(verdict).members == (peer,) and mixed(verdict).anchor_N is None and not partners(verdict)


def partners(verdict: Verdict) -> tuple[PeerId, ...]:
    assert verdict.met is not None
    return verdict.met.partners


def unconfirmed(verdict: Verdict) -> tuple[PeerId, ...]:
    assert verdict.met is not None
    return verdict.met.unconfirmed


def swapped(*verdicts: Verdict, delta: float, anchor: float | None = None) -> bool:
    """Whether all mixed the same mean, and anchors met if a value for them is given."""
    outcomes = [mixed(verdict) for verdict in verdicts]
    return all(
        outcome.delta_N.tolist() == [delta] * N
        and outcome.anchor_N is not None
        and (anchor is None or outcome.anchor_N.tolist() == [anchor] * N)
        for outcome in outcomes
    )

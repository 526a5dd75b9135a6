r"""Gossip at random moments: outer steps alone, and beside them swaps of anchors that nobody waits for.

Two kinds of events at independent rates, as in DADAO:

* After its inner steps a worker takes the outer step with its own pseudo-gradient, at once.
* At exponentially distributed intervals it sends its anchor to a random peer, which answers with the pull (``swap``)
  whatever it is doing. Both move towards their mean by gamma; local parameters follow at the next outer step::

      phi_i <- phi_i + gamma * D_i        D_i = (phi_j - phi_i) / 2 as coded, D_j = -D_i

  An anchor is at rest during the inner steps, so it can be handed out at any moment.

Source: DADAO (arXiv 2208.00779), the two independent Poisson processes of gradient and of averaging events.
Difference: its accelerated dual variables, which need the strong convexity and smoothness of the objective, are left
out; what is exchanged are anchors.

Legend: N = values in the fragment.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from torch import Tensor

from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.exchange.api import Aborted, Contribution, Exchange, Met, Reason, Verdict
from decentral.exchange.cut import Wire, seed_of
from decentral.exchange.gossip_messages import Anchor, pack_anchor, unpack_anchor
from decentral.exchange.limits import Allowance
from decentral.exchange.offences import Offences
from decentral.exchange.pairing import Pairing
from decentral.exchange.swap import FAR_OFF, Swap, part_of, spread_of
from decentral.outer.rule import Mixed
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

SWAP = "gossip.swap"
#: Requests with an anchor that are read at a time.
_MAX_UPLOADS = 8
_ENVELOPE_BYTES = 1_024
#: Swaps that others start here are served up to so many times as often as everybody starts them itself, and so many at
#: once: or one peer, or one under many names, could drag an anchor anywhere, radius by radius.
_MAX_SERVED, _MAX_AT_ONCE = 4.0, 8
#: While no pace is known, and between two looks for somebody to swap with.
_IDLE_S = 1.0

#: Moves a fragment's anchor by so much; told the partner and the spread.
Move = Callable[[int, Tensor, PeerId, float], Awaitable[None]]


class RandomGossip(Exchange):
    """Implements ``Exchange``.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: who is alive, and how long a round takes here.
        wire: sizes of fragments.
        pairing: codecs, rate and strength of swaps.
        timing: bounds for calls.
        inner_steps: H.
        anchor: a fragment's anchor with its digest, or ``None`` while there is none.
        move: see ``Move``.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        pairing: Pairing,
        timing: Timing,
        inner_steps: int,
        anchor: Callable[[int], tuple[str, Tensor] | None],
        move: Move,
    ) -> None:
        super().__init__(len(wire.numels))
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._pairing = pairing
        self._timing = timing
        self._inner_steps = inner_steps
        self._anchor = anchor
        self._move = move
        self._swap = Swap(wire, pairing)
        self._offences = Offences()
        self._random = random.Random(f"gossip {transport.peer_id}")
        self._serial = 0
        self._unconfirmed: set[PeerId] = set()
        self._allowances = [Allowance(_MAX_AT_ONCE) for _ in wire.numels]

    async def start(self) -> None:
        """Begin to serve other members."""
        limit = _ENVELOPE_BYTES + max(framed_nbytes(self._pairing.anchor_codec, numel) for numel in self._wire.numels)
        await self._transport.serve(SWAP, self._on_swap, max_request_bytes=limit, max_concurrent=_MAX_UPLOADS)

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """The outer step alone, at once."""
        unconfirmed, self._unconfirmed = tuple(sorted(self._unconfirmed)), set()
        met = Met(unconfirmed=unconfirmed, avoided=self._offences.avoided(self._clock.monotonic()))
        self.progress.finish(key)
        if not mine.weight:
            return Verdict(Aborted(Reason.ALONE, "nothing to give"), met=met)
        part = part_of(mine, self._inner_steps)
        await self._clock.run_aside(lambda: self._swap.measure(key.fragment, mine.delta_N, part))
        return Verdict(Mixed(mine.delta_N, (self._transport.peer_id,)), mine.delta_N, met=met)

    async def run(self) -> None:
        """Swap with random peers at random moments."""
        while True:
            pace_s = self._pace_s()
            if not pace_s:
                await asyncio.sleep(_IDLE_S)
                continue
            await asyncio.sleep(self._random.expovariate(len(self._wire.numels) * self._rate / pace_s))
            now, me = self._clock.monotonic(), self._transport.peer_id
            peers = [
                p.peer for p in self._roster.active(now) if p.peer != me and not self._offences.avoids(p.peer, now)
            ]
            if peers:
                await self._start(self._random.choice(peers), self._random.randrange(len(self._wire.numels)))

    @property
    def _rate(self) -> float:
        """Swaps of each fragment that this worker starts in the time of a round."""
        if self._pairing.events_per_round is None:
            raise AssertionError("this gossip is not in rounds")
        return self._pairing.events_per_round

    def _pace_s(self) -> float:
        """How long a round takes here; 0 if it is not known yet."""
        own = self._roster.get(self._transport.peer_id)
        return own.round_s if own is not None else 0.0

    async def _start(self, peer: PeerId, fragment: int) -> None:
        """Send the anchor to a peer and move by the pull that comes back."""
        held = self._anchor(fragment)
        if held is None or not self._swap.has_measure(fragment):
            return
        base, anchor_N = held
        self._serial += 1
        codec, seed = self._pairing.anchor_codec, seed_of(f"swap/{self._transport.peer_id}/{self._serial}")
        frame = await self._clock.run_aside(lambda: pack(codec, anchor_N, seed))
        request = pack_anchor(Anchor(fragment, base, frame))
        limit = framed_nbytes(self._pairing.pull_codec, self._wire.numels[fragment])
        timeout_s = self._timing.call_timeout_s(len(request) + limit)
        try:
            pull = await self._transport.call(peer, SWAP, request, timeout_s=timeout_s, max_reply_bytes=limit)
            pull_N, wild = await self._clock.run_aside(lambda: self._swap.pulled(fragment, anchor_N, pull, 0.5))
        except PeerUnreachable:
            self._roster.bury(peer)
            return
        except FrameError as err:
            self._offend(peer, str(err))
            return
        except CallRefused:
            return  # alive, not ready yet, and it has not moved
        except TransportError:
            # It may have moved without us. Whoever does not answer is left alone until it is heard of again.
            self._roster.bury(peer)
            self._unconfirmed.add(peer)
            return
        await self._moved(fragment, pull_N, anchor_N, peer, wild=wild)

    async def _on_swap(self, sender: PeerId, request: bytes) -> bytes:
        """A peer has sent its anchor: move towards it, and send it the pull."""
        message = unpack_anchor(request, len(request))
        fragment = message.fragment
        if fragment >= len(self._wire.numels):
            raise FrameError(f"there is no fragment {fragment}")
        held = self._anchor(fragment)
        unfit = not self._swap.has_measure(fragment) or self._offences.avoids(sender, self._clock.monotonic())
        if held is None or unfit or not self._may_serve(fragment):
            raise ValueError("no swap now")
        _, anchor_N = held
        self._serial += 1
        purpose = f"swap/{self._transport.peer_id}/{self._serial}"

        def meet() -> tuple[Tensor, dict[PeerId, bytes], list[PeerId]]:
            guest_N = unpack(message.frame, self._pairing.anchor_codec, self._wire.numels[fragment])
            return self._swap.pulls(fragment, anchor_N, {sender: guest_N}, purpose)

        try:
            own_N, pulls, wild = await self._clock.run_aside(meet)
        except FrameError as err:
            self._offend(sender, str(err))
            raise
        await self._moved(fragment, own_N, anchor_N, sender, wild=bool(wild))
        return pulls[sender]

    def _may_serve(self, fragment: int) -> bool:
        """Whether one more swap of the fragment is within what others may start here."""
        pace_s = self._pace_s()
        per_s = _MAX_SERVED * self._rate / pace_s if pace_s else 0.0
        return self._allowances[fragment].take(self._clock.monotonic(), per_s)

    async def _moved(self, fragment: int, pull_N: Tensor, anchor_N: Tensor, peer: PeerId, *, wild: bool) -> None:
        """Move by gamma times the pull; the anchor may have moved since, which does not matter to a difference."""
        if wild:
            self._offend(peer, FAR_OFF)
        await self._move(fragment, pull_N * self._pairing.gamma, peer, spread_of(pull_N, anchor_N, 2))

    def _offend(self, peer: PeerId, reason: str) -> None:
        self._offences.note(peer, reason, self._clock.monotonic(), self._pace_s())

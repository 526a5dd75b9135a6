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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from torch import Tensor

from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.exchange.api import Aborted, Contribution, Exchange, Memory, Met, Onward, Reason, Verdict
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.messages import Anchor
from decentral.exchange.gossip.options import RandomSwaps
from decentral.exchange.gossip.swap import Swap, part_of, spread_of
from decentral.exchange.limits import Allowance
from decentral.exchange.wire import seed_of
from decentral.outer.rule import Mixed
from decentral.swarm.message import from_wire, to_wire
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
        context: ports, agreements, and what was learnt of others.
        swaps: how often, and how far they move an anchor.
        anchor: a fragment's anchor with its digest, or ``None`` while there is none.
        move: see ``Move``.
    """

    has_common_anchor = False

    def __init__(
        self,
        context: Context,
        swaps: RandomSwaps,
        anchor: Callable[[int], tuple[str, Tensor] | None],
        move: Move,
    ) -> None:
        super().__init__(context.company.progress)
        self._context = context
        self._company, self._clock = context.company, context.clock
        self._wire, self._options = context.wire, context.options
        self._swaps = swaps
        self._anchor = anchor
        self._move = move
        self._swap = Swap(context.wire, context.options)
        self._random = random.Random(f"gossip {context.company.me}")
        self._serial = 0
        self._unconfirmed: set[PeerId] = set()
        self._allowances = [Allowance(_MAX_AT_ONCE) for _ in context.wire.numels]

    async def start(self) -> None:
        """Begin to serve other members."""
        limit = _ENVELOPE_BYTES + framed_nbytes(self._options.anchor_codec, max(self._wire.numels))
        await self._context.transport.serve(SWAP, self._on_swap, max_request_bytes=limit, max_concurrent=_MAX_UPLOADS)

    def onward(self) -> Onward:
        """In the round of the others."""
        return Onward(self._company.round_to_join())

    def memory(self) -> Memory:
        """What its arithmetic remembers, and where its dice are."""
        memory = self._swap.memory()
        return replace(memory, facts={**memory.facts, "dice": self._random.getstate(), "serial": self._serial})

    def remember(self, memory: Memory, anchors_N: Sequence[Tensor]) -> None:
        """See ``Exchange``."""
        self._swap.remember(memory)
        version, state, spare = memory.facts["dice"]
        self._random.setstate((version, tuple(state), spare))
        self._serial = int(memory.facts["serial"])

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """The outer step alone, at once."""
        unconfirmed, self._unconfirmed = tuple(sorted(self._unconfirmed)), set()
        met = Met(unconfirmed=unconfirmed, avoided=self._context.offences.avoided(self._clock.monotonic()))
        self.progress.finish(key)
        if not mine.weight:
            return Verdict(Aborted(Reason.ALONE, "nothing to give"), met=met)
        part = part_of(mine, self._context.inner_steps)
        await self._clock.run_aside(lambda: self._swap.bounds.measure(key.fragment, mine.delta_N, part, key.round))
        return Verdict(Mixed(mine.delta_N, (self._company.me,)), mine.delta_N, met=met)

    async def run(self) -> None:
        """Swap with random peers at random moments."""
        while True:
            pace_s = self._company.round_s()
            if not pace_s:
                await asyncio.sleep(_IDLE_S)
                continue
            await asyncio.sleep(
                self._random.expovariate(len(self._wire.numels) * self._swaps.events_per_round / pace_s)
            )
            peers = [peer for peer in self._company.others() if not self._context.avoids(peer)]
            if peers:
                await self._start(self._random.choice(peers), self._random.randrange(len(self._wire.numels)))

    async def _start(self, peer: PeerId, fragment: int) -> None:
        """Send the anchor to a peer and move by the pull that comes back."""
        held = self._anchor(fragment)
        if held is None or not self._swap.bounds.has_measure(fragment):
            return
        base, anchor_N = held
        self._serial += 1
        codec, seed = self._options.anchor_codec, seed_of(f"swap/{self._company.me}/{self._serial}")
        request = await self._clock.run_aside(lambda: to_wire(Anchor(fragment, base, pack(codec, anchor_N, seed))))
        limit = framed_nbytes(self._options.pull_codec, self._wire.numels[fragment])
        timeout_s = self._context.timing.call_timeout_s(len(request) + limit)
        try:
            pull = await self._context.transport.call(peer, SWAP, request, timeout_s=timeout_s, max_reply_bytes=limit)
            pull_N = await self._clock.run_aside(lambda: self._pulled(peer, fragment, anchor_N, pull))
        except PeerUnreachable:
            self._company.bury(peer)
            return
        except FrameError as err:
            self._context.offend(peer, str(err))
            return
        except CallRefused:
            return  # alive, not ready yet, and it has not moved
        except TransportError:
            # It may have moved without us. Whoever does not answer is left alone until it is heard of again.
            self._company.bury(peer)
            self._unconfirmed.add(peer)
            return
        await self._moved(fragment, pull_N, anchor_N, peer)

    def _pulled(self, peer: PeerId, fragment: int, anchor_N: Tensor, pull: bytes) -> Tensor:
        """The pull in a frame, clipped; raises FrameError."""
        pull_N = unpack(pull, self._options.pull_codec, self._wire.numels[fragment])
        return self._swap.pulled(peer, fragment, anchor_N, pull_N, 0.5)

    async def _on_swap(self, sender: PeerId, request: bytes) -> bytes:
        """A peer has sent its anchor: move towards it, and send it the pull."""
        message = from_wire(Anchor, request, len(request))
        fragment = message.fragment
        if fragment >= len(self._wire.numels):
            raise FrameError(f"there is no fragment {fragment}")
        held = self._anchor(fragment)
        unfit = not self._swap.bounds.has_measure(fragment) or self._context.avoids(sender)
        if held is None or unfit or not self._may_serve(fragment):
            raise ValueError("no swap now")
        _, anchor_N = held
        self._serial += 1
        purpose = f"swap/{self._company.me}/{self._serial}"

        def meet() -> tuple[Tensor, dict[PeerId, bytes]]:
            guest_N = unpack(message.frame, self._options.anchor_codec, self._wire.numels[fragment])
            return self._swap.pulls(fragment, anchor_N, {sender: guest_N}, purpose)

        try:
            own_N, pulls = await self._clock.run_aside(meet)
        except FrameError as err:
            self._context.offend(sender, str(err))
            raise
        await self._moved(fragment, own_N, anchor_N, sender)
        return pulls[sender]

    def _may_serve(self, fragment: int) -> bool:
        """Whether one more swap of the fragment is within what others may start here."""
        pace_s = self._company.round_s()
        per_s = _MAX_SERVED * self._swaps.events_per_round / pace_s if pace_s else 0.0
        return self._allowances[fragment].take(self._clock.monotonic(), per_s)

    async def _moved(self, fragment: int, pull_N: Tensor, anchor_N: Tensor, peer: PeerId) -> None:
        """Move by gamma times the pull; the anchor may have moved since, which does not matter to a difference."""
        self._context.judge(self._swap.bounds.restrained())
        await self._move(fragment, pull_N * self._swaps.gamma, peer, spread_of(pull_N, anchor_N, 2))

"""How a head has a batch counted everywhere: it tells every replica its share and hears whether it is counted.

Which share is whose the ledger says, and what becomes of one that nobody counts is up to the head.
"""

import asyncio
from collections.abc import Mapping

from torch import Tensor

from decentral.errors import FrameError
from decentral.pipeline.batch import Batch
from decentral.pipeline.courier import COMMIT, Courier, Undelivered
from decentral.pipeline.handover import KEEP, pack_keep
from decentral.pipeline.holders import Holders
from decentral.pipeline.packets import Commit, Committed, Hop, figure
from decentral.pipeline.placement import CutInForce
from decentral.ports.clock import Clock
from decentral.swarm.message import from_wire, to_wire

#: Before a replica that did not answer is asked again.
_PAUSE_S = 0.25
#: A replica that lives, but does not answer or has not taken its step, is asked to commit again for so long.
_COMMIT_S = 60.0


class Commits:
    """Those of one head.

    Args:
        slot: of its data.
        num_tokens: of a micro-batch.
        cut: the stages there are.
        courier: to the stages.
        holders: who lives.
        clock: for the time.
    """

    def __init__(
        self, slot: int, num_tokens: int, cut: CutInForce, courier: Courier, holders: Holders, clock: Clock
    ) -> None:
        self.ahead = 0
        """The step that the stages are at."""
        self._slot = slot
        self._num_tokens = num_tokens
        self._cut = cut
        self._courier = courier
        self._holders = holders
        self._clock = clock

    async def have_kept(self, number: int, copy_N: Tensor) -> None:
        """Give copies of the head after a batch to a replica of the first and of the last stage, its neighbours."""
        request = await self._clock.run_aside(lambda: pack_keep(self._slot, number, copy_N))
        while True:
            keepers = [Hop(stage, peer) for stage in (1, self._cut.num_stages) for peer in self._holders.of(stage)[:1]]
            failed = await asyncio.gather(*[self._courier.tell(hop.peer, hop.stage, KEEP, request) for hop in keepers])
            if None in failed:
                return
            await asyncio.sleep(_PAUSE_S)

    async def everywhere(self, batch: Batch, shares: Mapping[Hop, tuple[int, ...]]) -> list[Hop]:
        """Commit a batch at all replicas of all stages; returns those that have not confirmed their share."""
        stages = range(1, self._cut.num_stages + 1)
        hops = {Hop(stage, peer) for stage in stages for peer in self._holders.of(stage)} | set(shares)
        asked = [hop for hop in sorted(hops) if batch.confirmed.get(hop) != shares.get(hop, ())]
        counted = await asyncio.gather(*[self._at(batch, hop, shares.get(hop, ())) for hop in asked])
        return [hop for hop, has in zip(asked, counted, strict=True) if not has]

    async def _at(self, batch: Batch, hop: Hop, indices: tuple[int, ...]) -> bool:
        """Whether the replica has counted its share, if it has one."""
        tokens = len(batch.data) * self._num_tokens
        request = to_wire(Commit(self._slot, batch.number, batch.step, indices, figure(batch.loss), tokens))
        until = self._clock.monotonic() + _COMMIT_S
        while self._clock.monotonic() < until:
            reply = await self._courier.ask(hop.peer, hop.stage, COMMIT, request)
            if isinstance(reply, Undelivered):
                if reply.gone:
                    self._holders.bury(hop.peer)
                if hop.peer not in self._holders.of(hop.stage):
                    break
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                committed = from_wire(Committed, reply)
            except FrameError:
                break
            self.ahead = max(self.ahead, committed.step)
            if not committed.missing:
                batch.confirmed[hop] = indices
            return not committed.missing
        return not indices

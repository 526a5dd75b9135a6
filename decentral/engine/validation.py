"""Who validates the anchor and when: one member, now and then, in the place of all."""

import math
from dataclasses import dataclass

from decentral.engine.membership import Membership
from decentral.engine.options import Parts, RunOptions
from decentral.engine.replica import Replica
from decentral.engine.syncs import Stepped
from decentral.monitor.events import Validated
from decentral.swarm.matching import evaluator


@dataclass(frozen=True, slots=True)
class Loss:
    """What came of a validation."""

    digest: str
    """Of the anchors and outer states that were validated."""
    loss: float
    """Nats per token; NaN if the trainer cannot tell."""
    best: bool
    """Whether none was better so far."""


class Validation:
    """One worker's part in it.

    Args:
        options: equal on all workers.
        parts: this worker's own.
        replica: what is validated.
        membership: who could do it as well.
        common: whether all have the same anchor.
    """

    def __init__(
        self, options: RunOptions, parts: Parts, replica: Replica, membership: Membership, *, common: bool
    ) -> None:
        self._options = options
        self._parts = parts
        self._replica = replica
        self._membership = membership
        self._common = common
        self._best = math.inf

    def resume(self, loss: float) -> None:
        """An earlier life has come to a loss; NaN if it is not known."""
        if loss < self._best:
            self._best = loss

    async def after(self, end: Stepped) -> Loss | None:
        """After an outer step: validate if it is this worker's turn."""
        key, every, clock = end.key, self._options.eval_every_rounds, self._parts.clock
        last_fragment = key.fragment == self._options.plan.num_fragments - 1
        if not every or not last_fragment or (key.round + 1) % every:
            return None
        members = end.judged.mixed.members
        if not self._common:
            # Those who mixed are a few of many, and each group would pay; who is done has been here.
            members = tuple([p.peer for p in self._membership.roster.runners(clock.monotonic())])
        if not members or evaluator(members, key) != self._parts.transport.peer_id:
            return None
        digest, loss = await clock.run(self._replica.validate)
        self._parts.journal.record(Validated(key.round + 1, loss))
        best = loss < self._best  # never true of NaN
        if best:
            self._best = loss
        return Loss(digest, loss, best)

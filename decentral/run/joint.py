"""A swarm as each of several ranks sees it that are one worker together (``ranks``).

Rank 0 has the ``Swarm``. All ranks count steps, and *meet* when as many are taken as rank 0's engine had granted, or
when the loop calls what concerns all. In a meeting rank 0 does what the engine wants, the others obey its orders
(``spread``), and it ends with its *standing*: from then on that is what all ranks say of the swarm, rank 0 included, so
that a loop decides alike everywhere. Between two meetings nothing is communicated.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from decentral.errors import DecentralError, DiskError, TrainerError, UsageError
from decentral.monitor.report import StatusReport
from decentral.run.handover import Stretch
from decentral.run.ranks import Ranks, fault_of, in_words
from decentral.run.sharing import check_optimizer
from decentral.run.spread import SpreadModel
from decentral.run.swarm import UNKNOWN, Standing, Swarm, loss_of, tokens_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Place:
    """What does not change."""

    address: str
    seed: int
    run_seed: int
    total_steps: int


class JointSwarm(Swarm):
    """See the module; the face is that of ``Swarm``. All ranks make it at once.

    Args:
        ranks: of this worker.
        model: that they train together.
        open_: makes rank 0's swarm, of a model and of what is called now and then while it waits; ``None`` on others.

    Raises:
        DecentralError: rank 0's swarm cannot be opened; on other ranks a ``RankError`` with the same exit code.
    """

    def __init__(
        self, ranks: Ranks, model: SpreadModel, open_: Callable[[SpreadModel, Callable[[], None]], Swarm] | None
    ) -> None:
        self._ranks = ranks
        self._spread = model
        self._stretch = Stretch()
        self._own: Swarm | None = None
        self._standing = Standing(0, 0, 0, False, False, "joining", "")
        self._left = self.leaving = False
        self.problem = None
        model.check()
        self._place = _Place("", 0, 0, 0)

        def opened() -> None:
            assert open_ is not None
            own = self._own = open_(model, lambda: ranks.tell("wait"))
            place = self._place = _Place(own.address, own.seed, own.run_seed, own.total_steps)
            ranks.tell("place", place)

        self._lead(opened) if ranks.leads else self._follow()

    # -- in a meeting -------------------------------------------------------------------------------------------------

    def _meet(self, call: str, work: Callable[[Swarm, Stretch], T]) -> T | None:
        """All ranks come together for a call; what comes of rank 0's ``work`` on the steps of all, on rank 0.

        Raises:
            RankError: a rank is gone, or calls something else.
            Exception: what rank 0's work failed with; on other ranks a ``RankError`` in its place.
        """
        stretch, self._stretch = self._stretch, Stretch()
        told = self._ranks.meet(call, self._standing.step + stretch.steps, stretch.sums())
        if (own := self._own) is None:
            self._follow()
            return None
        return self._lead(lambda: work(own, Stretch.of_ranks(told)))

    def _lead(self, work: Callable[[], T]) -> T:
        """On rank 0: do ``work``, during which the others are given orders, and tell how it ended."""
        try:
            result = work()
            if self._ranks.problem is not None:
                raise self._ranks.problem
        except BaseException as err:
            if self._ranks.problem is None:
                self._ranks.tell("end", None, in_words(err))
            raise
        if self._own is not None:
            self._standing, self.problem = self._own.standing(), self._own.problem
        self._ranks.tell("end", self._standing, None)
        return result

    def _follow(self) -> None:
        """On another rank: do what rank 0 orders until it says that this meeting is over."""
        while True:
            order, *given = self._ranks.hear()
            if order == "place":
                self._place = given[0]
            elif order == "end":
                standing, fault = given
                if fault is not None:
                    raise fault_of(0, fault)
                self._standing = standing
                self.problem = DecentralError(standing.problem) if standing.problem else None
                return
            elif order != "wait":
                try:
                    self._spread.obey(order, *given)
                except TrainerError as err:
                    raise err.fault from None

    # -- in the loop --------------------------------------------------------------------------------------------------

    def step(self, *, loss: Any = UNKNOWN, tokens: int = 1, grad_norm: float = 0.0, data_s: float = 0.0) -> None:
        """See ``Swarm``; of this rank's part of the batch. All ranks call it, once a step.

        Raises:
            RankError: a rank is gone, or calls something else.
        """
        self._stretch.add(tokens_of(tokens), None if loss is UNKNOWN else loss_of(loss), grad_norm, data_s)
        if self._stretch.steps >= self._standing.left:
            self._meet("step", lambda own, stretch: own.stepped_all(stretch))

    @property
    def num_ranks(self) -> int:
        """See ``Swarm``."""
        return self._ranks.size

    @property
    def done(self) -> bool:
        """See ``Swarm``; as of the last meeting, as are all others."""
        return self._standing.done or (self.problem is not None and self.global_step >= self.total_steps)

    @property
    def ended(self) -> bool:
        """See ``Swarm``."""
        return self._standing.ended

    @property
    def global_step(self) -> int:
        """See ``Swarm``."""
        return self._standing.step + self._stretch.steps

    @property
    def total_steps(self) -> int:
        """See ``Swarm``."""
        return self._place.total_steps

    @property
    def round(self) -> int:
        """See ``Swarm``."""
        return self._standing.round

    @property
    def seed(self) -> int:
        """See ``Swarm``; another one on every rank as well."""
        if self._ranks.leads:
            return self._place.seed
        return int.from_bytes(
            hashlib.blake2b(f"{self._place.seed}/{self._ranks.rank}".encode(), digest_size=6).digest()
        )

    @property
    def run_seed(self) -> int:
        """See ``Swarm``."""
        return self._place.run_seed

    @property
    def address(self) -> str:
        """See ``Swarm``."""
        return self._place.address

    @property
    def state(self) -> str:
        """See ``Swarm``."""
        return self._standing.state

    @property
    def unsaved(self) -> DiskError | None:
        """See ``Swarm``; known on rank 0."""
        return None if self._own is None else self._own.unsaved

    def check(self, optimizer: Any) -> None:
        """See ``Swarm``."""
        check_optimizer(optimizer, self._spread.parameters())

    # -- now and then -------------------------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        """See ``Swarm``; on rank 0 alone, whenever it likes.

        Raises:
            UsageError: on another rank.
        """
        if self._own is None:
            raise UsageError("Rank 0 alone knows the swarm's status.", hint="Ask if torch.distributed.get_rank() == 0.")
        return self._own.status()

    def average(self) -> dict[str, Tensor]:
        """See ``Swarm``; all ranks call it, and rank 0 has the weights. The others get none."""
        if self._left:
            return {} if self._own is None else self._own.average()
        return self._meet("average", _after(Swarm.average)) or {}

    def checkpoint(self) -> None:
        """See ``Swarm``; all ranks call it."""
        self._meet("checkpoint", _after(Swarm.checkpoint))

    def leave(self) -> None:
        """See ``Swarm``; all ranks call it. A rank that is gone keeps rank 0 from nothing but saving what it has."""
        if self._left:
            return
        self._left = self.leaving = True
        try:
            if self._ranks.problem is None:
                self._meet("leave", _after(Swarm.leave))
        finally:
            self._part("left the swarm")

    def _part(self, why: str) -> None:
        self._left = self.leaving = True
        self._ranks.part(why)
        if self._own is not None:
            self._own.leave()

    def ask_to_stop(self) -> None:
        """See ``Swarm``; of rank 0, the others follow it."""
        if self._own is not None:
            self._own.ask_to_stop()

    async def save_now(self) -> None:
        """See ``Swarm``; on rank 0."""
        if self._own is not None:
            await self._own.save_now()

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        """Leave; if the loop has failed here, without the other ranks, which may be anywhere."""
        if kind is None:
            self.leave()
        else:
            self._part(f"Rank {self._ranks.rank} failed: {kind.__name__}.")


def _after(call: Callable[[Swarm], T]) -> Callable[[Swarm, Stretch], T]:
    """A call of rank 0's swarm after the steps that were taken before it."""

    def work(own: Swarm, stretch: Stretch) -> T:
        own.count(stretch)
        return call(own)

    return work

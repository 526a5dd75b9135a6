"""A swarm as a training loop sees it: it counts the loop's steps, and syncs beside them; ``opening`` starts it.

The loop's thread calls, an event loop on a thread of its own talks to the others (``handover``). Nothing that happens
on the network is raised into the loop: a swarm that is gone leaves it training alone, and ``state`` says so.
"""

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Never, Self

import torch
from torch import Tensor

from decentral.adapters.clock import RealClock
from decentral.config.names import Family
from decentral.engine.worker import Worker
from decentral.errors import ConfigError, DecentralError, DiskError, ReportError, TrainerError, UsageError
from decentral.monitor.report import StatusReport
from decentral.ports.trainer import Model
from decentral.run.acquaintances import Acquaintances
from decentral.run.connection import Connection
from decentral.run.disk import Disk
from decentral.run.fetch import fetch_replicas
from decentral.run.handover import HandOver, Stretch
from decentral.run.network import NetworkThread
from decentral.run.sharing import check_optimizer
from decentral.state.average import AVERAGE, choose, survey
from decentral.swarm.presence import State

_log = logging.getLogger(__name__)
#: Joining downloads the state, and may take long; everything else that a caller waits for ends sooner.
_LEAVE_S = 30.0
_ASK_S = 60.0
#: Stands for a loss that is not reported.
UNKNOWN: Final = object()
#: Of a swarm that asks for no more steps.
_NO_END = 1 << 60


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a worker is, in plain values."""

    left: int
    """Steps that may be taken before there is something to do."""
    step: int
    round: int
    done: bool
    ended: bool
    state: str
    problem: str
    """In words; empty if there is none."""


class Swarm:
    """This worker's place in a swarm; made by ``decentral.join`` and ``decentral.found``, ended by ``leave``.

    All methods are for the thread that trains. As a context manager it leaves at the end of the block.
    """

    def __init__(
        self,
        connection: Connection,
        network: NetworkThread,
        hand: HandOver,
        worker: Worker,
        model: Model,
        disk: Disk,
        resources: AsyncExitStack,
    ) -> None:
        self._connection = connection
        self._network = network
        self._hand = hand
        self._worker = worker
        self._model = model
        self._disk = disk
        self._resources = resources
        self._stop = asyncio.Event()
        self._training: asyncio.Task[None] | None = None
        self._left = False
        self.leaving = False
        """Whether ``leave`` has been called."""
        self.problem: DecentralError | Exception | None = None
        """Why this worker is no longer in the swarm, if it did not leave by itself."""

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer that trains none of what the swarm shares: that of another model, or of a copy.

        Raises:
            ConfigError: it trains none of it.
        """
        check_optimizer(optimizer, self._model.parameters())

    def __reduce__(self) -> Never:
        """Refuse to be sent to another process, as by trainers that spread over several.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "A swarm belongs to the process that founded or joined it, and cannot be sent to another one.",
            hint="Train with one process for each worker, and let each join the swarm.",
        )

    # -- in the loop --------------------------------------------------------------------------------------------------

    def step(self, *, loss: Any = UNKNOWN, tokens: int = 1, grad_norm: float = 0.0, data_s: float = 0.0) -> None:
        """Count one inner step that the loop has just taken, and do what is due.

        Returns at once between syncs. With a method that does not overlap syncs with training it waits at a sync for
        the others; with one that does it stands still only while values are copied.

        Args:
            loss: of this step, the mean per token: a number or a tensor of one value, which is not waited for.
            tokens: that the step trained on; this worker's weight in a mean.
            grad_norm: of the gradient before clipping, if known.
            data_s: seconds since the last step in which the loop waited for data, if known; ``status`` has their share.

        Raises:
            ReportError: a value of another type, or out of range.
            Exception: what a function of the caller's own raised that was called here (``validate``).
        """
        self._hand.stepped(tokens_of(tokens), None if loss is UNKNOWN else loss_of(loss), grad_norm, data_s)

    def count(self, stretch: Stretch) -> None:
        """Steps that others have counted, which the next call reports."""
        self._hand.count(stretch)

    def stepped_all(self, stretch: Stretch) -> None:
        """As ``step``, of several steps that others have counted."""
        self._hand.stepped_all(stretch)

    def standing(self) -> Standing:
        """Where this worker is at this moment."""
        left = _NO_END if self.ended else self._hand.left
        problem = "" if self.problem is None else str(self.problem)
        return Standing(left, self.global_step, self.round, self.done, self.ended, self.state, problem)

    @property
    def num_ranks(self) -> int:
        """How many processes are this worker together: 1, or the world size under torchrun."""
        return 1

    @property
    def done(self) -> bool:
        """Whether the run is over: all its rounds, or as many steps where the swarm is gone."""
        return self._worker.done or (self.problem is not None and self.global_step >= self.total_steps)

    @property
    def ended(self) -> bool:
        """Whether this worker takes no more part: the run is done, it was asked to stop, or it is out of the swarm."""
        return self._hand.is_over

    @property
    def global_step(self) -> int:
        """Inner steps that are behind the run: where a learning-rate schedule is."""
        return self._hand.global_step

    @property
    def total_steps(self) -> int:
        """Inner steps of the whole run."""
        return self._connection.total_steps

    @property
    def progress(self) -> float:
        """Part of the run that is over, from 0 to 1."""
        return min(1.0, self.global_step / self.total_steps)

    @property
    def round(self) -> int:
        """Outer rounds that this worker has finished."""
        return self._worker.round

    @property
    def seed(self) -> int:
        """For this worker's own order of the data: another one on every worker, without ranks. Below 2**48."""
        return self._connection.stream_seed

    @property
    def run_seed(self) -> int:
        """Equal on all workers of the run."""
        return self._connection.swarm.run.seed

    @property
    def address(self) -> str:
        """Where others can join: for ``decentral.join`` and ``decentral worker --join``."""
        return self._connection.address

    @property
    def state(self) -> str:
        """What this worker is doing: ``training``, ``syncing``, ``repairing``, ``stalled``, ``done``, ``left``, ...

        ``alone`` if nobody else is there; ``lost`` if it is out of the swarm, and ``problem`` says why.
        """
        if self.problem is not None:
            return "lost"
        if self._left:
            return "done" if self._worker.done else "left"
        return self._network.call(self._state(), timeout_s=_ASK_S)

    @property
    def unsaved(self) -> DiskError | None:
        """Why the last weights of this worker could not be written; ``None`` if they were, or no folder was given."""
        return self._disk.problem

    # -- now and then -------------------------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        """Who is in the swarm and how it does, as this worker knows; what ``decentral status`` shows.

        Raises:
            UsageError: this worker has left.
        """
        if self._left:
            raise UsageError("This worker has left the swarm.", hint="Ask for its status before leaving it.")
        return self._hand.wait_for(self._network.submit(self._status()))

    def average(self) -> dict[str, Tensor]:
        """The swarm's weights by name, float32 on the CPU: what is to be evaluated and kept.

        With an all-reduce they are those that all agreed on last; with gossip, where every worker has its own, the mean
        over all who can be reached. A swarm that is gone, or was left, leaves the last ones that this worker knew.
        """
        if self._left:
            return self._worker.anchors()
        return self._hand.wait_for(self._network.submit(self._average()))

    def checkpoint(self) -> None:
        """Write a checkpoint at once, as ``decentral worker`` does when its machine may be taken away.

        Raises:
            UsageError: this worker has left, or no folder was given.
            DiskError: it cannot be written.
        """
        if self._left or not self._connection.own.out:
            what = "This worker has left the swarm." if self._left else "There is no folder to write a checkpoint to."
            raise UsageError(
                what, hint="Give one with out=, and write checkpoints before leaving, which writes the last."
            )
        self._hand.wait_for(self._network.submit(self.save_now()))
        if self.unsaved is not None:
            raise self.unsaved

    def leave(self) -> None:
        """Tell the others that this worker leaves, keep what it has, and close everything. Idempotent.

        A run that is over is served to those who are not done yet, for some seconds.
        """
        if self._left:
            return
        self.leaving = True
        try:
            if not self._network.is_closed:
                self._hand.wait_for(self._network.submit(self._leave()))
        finally:
            self._left = True
            self._network.close()

    def ask_to_stop(self) -> None:
        """Have the run ended in order, from any thread; the loop's next ``step`` or ``leave`` carries it out."""
        self._network.call_soon(self._stop.set)

    def __enter__(self) -> Self:
        """See ``leave``."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        """Leave, also if the loop has failed."""
        self.leave()

    # -- on the network's thread --------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Found, join or come back; afterwards the model has the swarm's weights, and training may begin.

        Raises:
            DecentralError: nobody hands over the state, or the model does not fit the swarm's.
        """
        connection, worker = self._connection, self._worker
        acquaintances = Acquaintances(connection, worker.membership, self._hand)
        if connection.is_back:
            await worker.resume(acquaintances.known)
        elif connection.peers:
            await worker.join(connection.peers)
        else:
            await worker.found()
        acquaintances.begin(self._resources)
        self._hand.begin_at(self._worker.step)
        self._training = asyncio.create_task(self._train())

    async def save_now(self) -> None:
        """Write a checkpoint as soon as the loop is between two steps; if that fails, ``unsaved`` says why."""
        await self._worker.save_now()

    async def _train(self) -> None:
        """Take part from beginning to end, or until the network dies; keeps what comes of it."""
        try:
            await self._connection.node.while_alive(self._worker.run(self._stop))
        except Exception as err:
            self.problem = err
            if not isinstance(err, TrainerError):
                _log.error("out of the swarm: %s", err, exc_info=not isinstance(err, DecentralError))
        finally:
            self._hand.over()
            await self._worker.keep()

    async def _leave(self) -> None:
        if not self._worker.done:
            self._stop.set()
        try:
            if self._training is not None:
                await asyncio.wait({self._training}, timeout=_LEAVE_S)
        finally:
            if self._training is not None:
                self._training.cancel()
                await asyncio.gather(self._training, return_exceptions=True)
            await self._resources.aclose()

    async def _state(self) -> str:
        membership = self._worker.membership
        alone = membership.own.state is State.TRAINING and len(membership.roster.active(time.monotonic())) < 2
        return "alone" if alone else membership.own.state.value

    async def _status(self) -> StatusReport:
        return self._connection.report(self._worker.membership.everybody())

    async def _average(self) -> dict[str, Tensor]:
        """Own anchors where all have the same; else the mean of everybody's, as ``decentral export`` makes it."""
        connection, own = self._connection, self._worker.anchors()
        if self.problem is not None or connection.swarm.method.family is not Family.GOSSIP:
            return own
        workers = self._worker.membership.roster.with_ages(time.monotonic())
        try:
            with contextlib.closing(RealClock()) as clock:
                ports = (connection.node.transport, clock)
                async with asyncio.timeout(_ASK_S):
                    replicas = await fetch_replicas(
                        *ports, workers, connection.run_id, connection.swarm, own, _log.info
                    )
        except (DecentralError, TimeoutError) as err:
            _log.warning("takes its own weights for the average: %s", err)
            return own
        return dict(choose(survey(replicas, None), AVERAGE).weights)


def tokens_of(tokens: Any) -> int:
    """A number of tokens.

    Raises:
        ReportError: it is none.
    """
    number = -1
    if isinstance(tokens, Tensor):
        number = int(tokens) if tokens.numel() == 1 and not tokens.is_floating_point() else -1
    elif isinstance(tokens, float):
        number = int(tokens) if tokens.is_integer() else -1
    elif hasattr(tokens, "__index__") and not isinstance(tokens, bool):  # numpy's as well
        number = int(tokens)
    if number < 0:
        raise ReportError("tokens", tokens, "a whole number of at least 0")
    return number


def loss_of(loss: Any) -> float | Tensor:
    """A loss that can be added up: a float, or a tensor of one value.

    Raises:
        ReportError: it is none.
    """
    if isinstance(loss, Tensor):
        if loss.numel() == 1 and not loss.is_complex():
            return loss
    elif hasattr(loss, "__float__") and not isinstance(loss, bool):  # numpy's as well
        return float(loss)
    raise ReportError("loss", loss, "a number or a tensor of one value; leave it out if it is not known")

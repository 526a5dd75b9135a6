"""The hand-over between somebody's training loop and the engine that runs beside it, on a thread of its own.

The loop's thread trains and counts; the network's thread decides what is due. Whatever touches the parameters is work
for the loop's thread, which it does inside of ``stepped``: between two syncs that is a comparison of two numbers.

    network's thread                              loop's thread
    take(first, n)   -- grant of n steps -->      stepped() returns at once, n times
                     <-- report of n steps --     at the n-th
    run(work)        -- work -->                  does it
    take(first', n') -- next grant -->            stepped() returns

Implements the ports ``Clock`` (work is done by the loop) and ``InnerLoop`` (steps are taken by the loop). Knows no
swarm.
"""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from decentral.errors import TrainerError
from decentral.ports.clock import Clock
from decentral.ports.trainer import StepReport, Steps

T = TypeVar("T")
#: The loop looks this often whether the network's thread still lives.
_LOOK_S = 1.0
#: So many losses are kept before they are read from their device.
_MAX_UNREAD = 256


@dataclass(slots=True)
class Stretch:
    """What the loop has done since its last report."""

    steps: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    """Of loss times tokens, of steps whose loss is known."""
    loss_tokens: int = 0
    grad_norm_sum: float = 0.0
    data_s: float = 0.0
    """In which it waited for data."""
    unread: list[tuple[Tensor, int]] = field(default_factory=list)
    """Losses that a device may still be computing, with their tokens."""

    def sums(self) -> list[float]:
        """Plain numbers that can be added to those of others; waits for the device of the losses."""
        self._read()
        return [self.steps, self.tokens, self.loss_sum, self.loss_tokens, self.grad_norm_sum, self.data_s]

    @classmethod
    def of_ranks(cls, sums: Sequence[Sequence[float]]) -> "Stretch":
        """Of steps that several took together: each has its own tokens, and all wait for the gradient of all."""
        steps, *columns, data_s = zip(*sums, strict=True)
        tokens, loss_sum, loss_tokens, grad_norm_sum = (math.fsum(column) for column in columns)
        return cls(int(steps[0]), int(tokens), loss_sum, int(loss_tokens), grad_norm_sum / len(sums), max(data_s))

    def extend(self, other: "Stretch") -> None:
        """Further steps."""
        self.steps += other.steps
        self.tokens += other.tokens
        self.loss_sum += other.loss_sum
        self.loss_tokens += other.loss_tokens
        self.grad_norm_sum += other.grad_norm_sum
        self.data_s += other.data_s
        self.unread += other.unread

    def add(self, tokens: int, loss: float | Tensor | None, grad_norm: float, data_s: float = 0.0) -> None:
        """One more step."""
        self.steps += 1
        self.tokens += tokens
        self.grad_norm_sum += grad_norm
        self.data_s += data_s
        if loss is None or not tokens:
            return
        self.loss_tokens += tokens
        if isinstance(loss, Tensor):
            # A copy: the loss itself may change, and lies among activations, whose memory it would hold together.
            self.unread.append((loss.detach().clone(), tokens))
            if len(self.unread) >= _MAX_UNREAD:
                self._read()
        else:
            self.loss_sum += loss * tokens

    def report(self) -> StepReport:
        """As the engine wants it; waits for the device of the losses."""
        self._read()
        loss = self.loss_sum / self.loss_tokens if self.loss_tokens else math.nan
        return StepReport(self.tokens, loss, self.grad_norm_sum / self.steps if self.steps else 0.0, self.data_s)

    def _read(self) -> None:
        if self.unread:
            losses = torch.stack([loss.reshape(()) for loss, _ in self.unread]).double().tolist()
            self.loss_sum += math.fsum(loss * tokens for loss, (_, tokens) in zip(losses, self.unread, strict=True))
            self.unread.clear()


@dataclass(slots=True)
class _Grant:
    """Leave to take so many steps before the next report."""

    first_step: int
    count: int
    taken: "Future[Steps]" = field(default_factory=Future)


@dataclass(slots=True)
class _Work:
    """Something that the loop's thread is to do."""

    work: Callable[[], Any]
    done: "Future[Any]" = field(default_factory=Future)


class _Wake:
    """Nothing to do: look whether there is still something to wait for."""


class HandOver:
    """See the module.

    Args:
        clock: for times and for work beside the loop's.
        idle: called now and then on the loop's thread while it waits.
    """

    def __init__(self, clock: Clock, idle: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._idle = idle
        self._orders: queue.SimpleQueue[_Grant | _Work | _Wake] = queue.SimpleQueue()
        self._grant: _Grant | None = None
        self._stretch = Stretch()
        self._began = time.monotonic()
        self._first_step = 0
        self._over = threading.Event()

    # -- the loop's side -----------------------------------------------------------------------------------------------

    @property
    def global_step(self) -> int:
        """Inner steps behind the run, as this worker counts them."""
        return self._first_step + self._stretch.steps

    @property
    def is_over(self) -> bool:
        """Whether the engine asks for no more steps."""
        return self._over.is_set()

    def stepped(
        self, tokens: int, loss: float | Tensor | None = None, grad_norm: float = 0.0, data_s: float = 0.0
    ) -> None:
        """The loop has taken one inner step.

        Args:
            tokens: trained on, >= 0.
            loss: mean per token; ``None`` for unknown. A tensor of one value is not waited for before the next report.
            grad_norm: of the gradient before clipping.
            data_s: seconds in which it waited for data.

        Raises:
            Exception: what one of the user's own functions raised when the engine called it.
        """
        self._stretch.add(tokens, loss, grad_norm, data_s)
        if not self.left or not self._orders.empty():
            self._serve(lambda: self.left > 0)

    @property
    def left(self) -> int:
        """Steps that may be taken before the next report."""
        return 0 if self._grant is None else max(0, self._grant.count - self._stretch.steps)

    def count(self, stretch: Stretch) -> None:
        """Steps that were taken already, which are reported with the next ones."""
        self._stretch.extend(stretch)

    def stepped_all(self, stretch: Stretch) -> None:
        """As ``stepped``, for several steps; and do what is ordered."""
        self.count(stretch)
        self._serve(lambda: self.left > 0)

    def wait_for(self, future: "Future[T]") -> T:
        """Do what is ordered until the network's side has come to a result, and return it.

        Raises:
            Exception: what it failed with; and see ``stepped``.
        """
        future.add_done_callback(lambda _: self._orders.put(_Wake()))
        self._serve(future.done, stand_still=True)
        return future.result()

    def _serve(self, enough: Callable[[], bool], *, stand_still: bool = False) -> None:
        """Do what is ordered until nothing is left and there is ``enough``; report when a grant is used up.

        Args:
            enough: what this waits for.
            stand_still: take no more steps, and report the last ones at once.

        Raises:
            Exception: see ``stepped``.
        """
        seconds = time.monotonic() - self._began
        while stand_still or not self._over.is_set():
            grant = self._grant
            if grant is not None and (stand_still or self._stretch.steps >= grant.count):
                self._report(grant, seconds)
            if self._orders.empty() and enough():
                break
            try:
                order = self._orders.get(timeout=_LOOK_S)
            except queue.Empty:
                self._idle()
            else:
                self._obey(order)
        # What was spent here is no time of the loop's; what it spent on a grant before is not forgotten.
        self._began = time.monotonic() - (seconds if self._stretch.steps else 0.0)

    def _obey(self, order: "_Grant | _Work | _Wake") -> None:
        """Carry out one order.

        Raises:
            Exception: see ``stepped``.
        """
        if isinstance(order, _Grant):
            self._grant, self._first_step = order, order.first_step
        elif isinstance(order, _Work) and order.done.set_running_or_notify_cancel():
            try:
                order.done.set_result(order.work())
            except TrainerError as err:
                order.done.set_exception(err)
                raise err.fault from None
            except BaseException as err:
                order.done.set_exception(err)
                if not isinstance(err, Exception):
                    raise

    def _report(self, grant: _Grant, seconds: float) -> None:
        """Tell of the steps taken under a grant."""
        stretch, self._stretch, self._grant = self._stretch, Stretch(), None
        self._first_step = grant.first_step + stretch.steps
        if grant.taken.set_running_or_notify_cancel():
            grant.taken.set_result(Steps(stretch.steps, stretch.report(), seconds))

    def begin_at(self, step: int) -> None:
        """So many inner steps are behind the run; while the loop waits for its beginning."""
        self._first_step = step

    # -- the network's side --------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """See ``Clock``."""
        return self._clock.monotonic()

    def wall(self) -> float:
        """See ``Clock``."""
        return self._clock.wall()

    async def run(self, work: Callable[[], T]) -> T:
        """Have ``work`` done by the loop's thread, after all earlier calls, as soon as it is between two steps."""
        order = _Work(work)
        self._orders.put(order)
        return await asyncio.wrap_future(order.done)

    async def run_aside(self, work: Callable[[], T]) -> T:
        """See ``Clock``."""
        return await self._clock.run_aside(work)

    async def run_on_disk(self, work: Callable[[], T]) -> T:
        """See ``Clock``."""
        return await self._clock.run_on_disk(work)

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """Let the loop take ``count`` steps; see ``InnerLoop``.

        If it does not come to its end after ``stop``, what it has done since its last report is left out.
        """
        grant = _Grant(first_step, count)
        self._orders.put(grant)
        taken = asyncio.wrap_future(grant.taken)
        stopping = asyncio.ensure_future(stop.wait())
        waited_for: set[asyncio.Future[Any]] = {taken, stopping}
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not taken.done():
            # Whoever asks to stop from the loop's own thread reports at once; a loop that hangs never does.
            await asyncio.wait({taken}, timeout=_LOOK_S)
        if not taken.done():
            taken.cancel()
            return Steps(0, StepReport(0, math.nan, 0.0), 0.0)
        return taken.result()

    def over(self) -> None:
        """No more steps will be asked for: the loop is not held any more, and goes on alone. On any thread."""
        self._over.set()
        self._orders.put(_Wake())

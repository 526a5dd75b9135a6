"""Virtual time: an asyncio event loop whose clock jumps to the next timer instead of waiting for it.

The loop knows neither peers nor networks. What runs on it uses plain asyncio (tasks, events, ``sleep``, ``timeout``)
and gets the same order of events in every run: callbacks run first in, first out, timers by time and then by the
order in which they were set. If nothing is ready and no timer is set, nothing can ever happen again; where a real
loop would hang, this one raises :class:`Deadlock` and names the tasks that wait.

Tasks may belong to an :class:`Owner` (a simulated machine), through their context. A frozen owner's callbacks and
timers are kept back until it is thawed, as if its process had been stopped by SIGSTOP.
"""

import asyncio
import contextlib
import gc
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from types import CodeType
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Virtual seconds and iterations that cancelled tasks get to end in, after a run.
_GRACE_S = 3600.0
_GRACE_ITERATIONS = 1_000_000
#: Cancelled timers in the queue from which on it may be worth a sweep.
_SWEEP_FROM = 256


class SimulationError(RuntimeError):
    """The simulated program cannot go on. Carries the virtual time and the tasks that wait in its message."""


class Deadlock(SimulationError):
    """Nothing is ready and no timer is set: the remaining tasks wait for each other."""


class Overrun(SimulationError):
    """The run went beyond its bound on virtual time or on iterations of the loop."""


class Owner:
    """Whom a task belongs to. Two of one name are two owners: a machine before its crash and after."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def context(self) -> Context:
        """A context whose tasks and timers belong to this owner, and those that they start."""
        context = copy_context()
        context.run(_OWNER.set, self)
        return context


_OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)
#: What is to be called and where; the handle, if it can be called off.
_Due = tuple["_Handle | None", Context, Callable[..., object], tuple[Any, ...]]


class _Handle(asyncio.TimerHandle):
    """For whoever may call something off; what is called only the loop knows, which makes one for nearly everything."""

    __slots__ = ("_virtual",)

    def __init__(self, when: float, loop: "VirtualLoop") -> None:
        self._when = when
        self._virtual = loop
        self._cancelled = False

    def cancel(self) -> None:
        """Call it off."""
        if not self._cancelled:
            self._cancelled = True
            self._virtual.called_off()


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time, without sockets, signals or threads.

    Args:
        until_s: virtual seconds after which the run is an :class:`Overrun`.
        max_iterations: the same for iterations, against loops that never let time pass.
    """

    _stopping: bool

    def __init__(self, *, until_s: float, max_iterations: int) -> None:
        super().__init__()
        self.until_s = until_s
        self.max_iterations = max_iterations
        self.num_iterations = 0
        self.errors: list[Exception] = []
        self.now_s = 0.0
        """What ``time`` tells; to be read only."""
        self._due: deque[_Due] = deque()
        self._timers: list[tuple[float, int, _Due]] = []
        self._num_timers = 0
        self._num_cancelled = 0
        self._frozen: dict[Owner, list[_Due]] = {}
        self.set_exception_handler(_keep_error)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now_s

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """Run ``callback`` in the next iteration."""
        handle = _Handle(self.now_s, self)
        self._due.append((handle, copy_context() if context is None else context, callback, args))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` in so many virtual seconds."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` at virtual time ``when``, or in the next iteration if that has passed."""
        handle = _Handle(when, self)
        self._num_timers += 1
        due = (handle, copy_context() if context is None else context, callback, args)
        heapq.heappush(self._timers, (when, self._num_timers, due))
        return handle

    def set_off(self, when: float, context: Context, callback: Callable[[*Args], object], *args: *Args) -> None:
        """As ``call_at``, of what is never called off: it costs less."""
        self._num_timers += 1
        heapq.heappush(self._timers, (when, self._num_timers, (None, context, callback, args)))

    def call_soon_threadsafe(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """Refused: threads would end determinism."""
        raise RuntimeError("the simulator has no threads; blocking work goes through Clock.run")

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Refused, as ``call_soon_threadsafe``."""
        raise RuntimeError("the simulator has no threads; blocking work goes through Clock.run")

    def freeze(self, owner: Owner) -> None:
        """Keep back all that belongs to ``owner``, as SIGSTOP does. Time goes on for it, unseen."""
        self._frozen.setdefault(owner, [])

    def thaw(self, owner: Owner) -> None:
        """Let ``owner`` go on; what was kept back runs now, in the order in which it fell due."""
        self._due.extend(self._frozen.pop(owner, ()))

    def wind_up(self) -> None:
        """Cancel and await every task left, frozen ones too, so that none outlives the run.

        Raises:
            SimulationError: a task refuses to end.
        """
        self.until_s = self.now_s + _GRACE_S
        self.max_iterations = self.num_iterations + _GRACE_ITERATIONS
        # What is on its way while they end may begin further ones.
        while tasks := _in_order(asyncio.all_tasks(self)):
            for task in tasks:
                task.cancel()
            for owner in tuple(self._frozen):
                self.thaw(owner)
            endings = self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.errors += [ending for ending in endings if isinstance(ending, Exception)]
        self.run_until_complete(self.shutdown_asyncgens())

    def _run_once(self) -> None:
        """Iterations until the loop is stopped: what is due now, or a jump to the next timer."""
        due, timers, frozen = self._due, self._timers, self._frozen
        while True:
            self.num_iterations += 1
            if self.num_iterations > self.max_iterations:
                raise Overrun(self._report(f"more than {self.max_iterations} iterations of the loop"))
            if not due and not self._stopping:
                self._jump()
            while timers and timers[0][0] <= self.now_s:
                due.append(heapq.heappop(timers)[2])
            for _ in range(len(due)):
                handle, context, callback, args = one = due.popleft()
                if handle is not None and handle._cancelled:
                    continue
                owner = context.get(_OWNER) if frozen else None
                if owner is not None and owner in frozen:
                    frozen[owner].append(one)
                    continue
                try:
                    context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as err:
                    self.call_exception_handler({"message": f"{callback} failed", "exception": err})
            if self._stopping:
                return

    def _jump(self) -> None:
        """Set the clock to the earliest timer that is still wanted."""
        timers = self._timers
        while timers and (handle := timers[0][2][0]) is not None and handle._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Deadlock(self._report("nothing is ready and no timer is set"))
        when = timers[0][0]
        if when > self.until_s:
            raise Overrun(self._report(f"the next timer, at {when:.3f} s, is beyond the bound of {self.until_s:.3f} s"))
        self.now_s = max(self.now_s, when)

    def called_off(self) -> None:
        """Sweep the queue when most of it may be cancelled timeouts; called by their handles."""
        self._num_cancelled += 1
        if self._num_cancelled > _SWEEP_FROM and 2 * self._num_cancelled > len(self._timers):
            handles = ((timer, timer[2][0]) for timer in self._timers)
            self._timers[:] = [timer for timer, handle in handles if handle is None or not handle._cancelled]
            heapq.heapify(self._timers)
            self._num_cancelled = 0

    def _report(self, problem: str) -> str:
        """``problem`` with the virtual time and every task that waits, one to a line."""
        lines = [f"{problem}; virtual time {self.now_s:.3f} s, waiting:"]
        lines += [f"  {_describe(task)}" for task in _in_order(asyncio.all_tasks(self))]
        lines += [f"  frozen: {owner.name}, {len(kept)} callbacks kept back" for owner, kept in self._frozen.items()]
        return "\n".join(lines)


def run(coro: Coroutine[Any, Any, T], *, until_s: float, max_iterations: int = 20_000_000) -> T:
    """Run ``coro`` to its end on virtual time and return its result; tasks it leaves behind are cancelled.

    Raises:
        Deadlock: everything waits and no timer is set.
        Overrun: virtual time passed ``until_s`` seconds or the loop made ``max_iterations``.
        ExceptionGroup: ``coro`` ended well, but a callback raised or a task failed without anybody asking.
    """
    loop = VirtualLoop(until_s=until_s, max_iterations=max_iterations)
    try:
        with _rare_collections():
            try:
                result = loop.run_until_complete(coro)
            finally:
                loop.wind_up()
    finally:
        loop.close()
    if loop.errors:
        raise ExceptionGroup("errors in the background of a simulation", loop.errors)
    return result


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cyclic garbage a hundred times less often: a swarm is many long-lived objects and few cycles.

    The usual thresholds cost a fifth of the run.
    """
    usual = gc.get_threshold()
    gc.set_threshold(100 * usual[0], *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def virtual_loop() -> VirtualLoop:
    """The running virtual loop.

    Raises:
        RuntimeError: called outside a simulation.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError("the simulator's parts work only inside decentral.sim.loop.run")
    return loop


def _keep_error(loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
    """Exception handler of the loop: keep for ``run`` what asyncio would only log."""
    error = details.get("exception")
    if not isinstance(error, Exception):
        error = RuntimeError(details["message"])
    assert isinstance(loop, VirtualLoop)
    loop.errors.append(error)


def _in_order(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Tasks by name, numbers by value: asyncio hands them out as a set, whose order differs between runs."""
    return sorted(tasks, key=lambda task: (len(task.get_name()), task.get_name()))


def _describe(task: asyncio.Task[Any]) -> str:
    """A task's name and the chain of coroutines that it waits in, with the innermost line."""
    names: list[str] = []
    place = ""
    inner: object = task.get_coro()
    while (code := getattr(inner, "cr_code", None)) is not None:
        assert isinstance(code, CodeType)
        names.append(code.co_qualname)
        frame = getattr(inner, "cr_frame", None)
        if frame is not None:
            place = f" (line {frame.f_lineno})"
        inner = getattr(inner, "cr_await", None)
    return f"{task.get_name()}: {' > '.join(names)}{place}"

"""The processes that are one worker together (*ranks*, as torchrun counts them), and words between them.

Rank 0 leads: it tells, the others hear. Words go over a group of processes on the CPU of our own, so that they wait for
no GPU, and with a deadline: who finds a rank gone or somewhere else raises ``RankError``, as does every call after
that. Knows neither models nor swarms.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from decentral.errors import DecentralError, ExitCode, RankError

T = TypeVar("T")
#: All ranks must have called ``found``, ``join`` or ``resume`` within this time of the first.
FORM_S = 60.0
#: A rank that says nothing for so long hangs; one that ends is noticed at once. As long as NCCL waits by default.
DEADLINE_S = 600.0
#: Who has waited for so much of a time has waited it out.
_WAITED_OUT = 0.9
#: Of a fault's own text, so much is told.
_MAX_TEXT = 200
_LATER = "torchrun --max-restarts N starts all ranks again; with a folder they come back to the swarm."


def is_lost(err: BaseException) -> bool:
    """Whether somebody's collective call failed as another process is gone."""
    return isinstance(err, dist.DistError) or (isinstance(err, RuntimeError) and "gloo" in str(err))


class Ranks:
    """All processes of this process group, as one of them sees them. Made by all together: ``Ranks.form``."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank()
        """Of this process."""
        self.size = dist.get_world_size()
        """How many there are."""
        self.problem: RankError | None = None
        """Why they are no longer together."""

    @classmethod
    def form(cls) -> "Ranks":
        """Come together.

        Raises:
            RankError: not all ranks have called this within ``FORM_S`` of each other, or one ended meanwhile.
        """
        began = time.monotonic()
        try:
            # The deadline of a group holds for its making too: of the first one it is short, and all that it is for.
            _group(FORM_S)
        except RuntimeError as err:
            if time.monotonic() - began < _WAITED_OUT * FORM_S:
                raise gone(err) from err  # nobody was waited for: one came, and has left
            raise RankError(
                f"Not all of the {dist.get_world_size()} ranks came to found, join or resume within {FORM_S:.0f} s of "
                f"each other; rank {dist.get_rank()} did.",
                hint="All ranks of a torchrun are one worker: each must call it, with the same model. Is it inside of "
                "`if rank == 0`?",
            ) from err
        try:
            return cls(_group(DEADLINE_S))
        except RuntimeError as err:
            raise gone(err) from err  # all came, and one that was ready sooner has left

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def tell(self, *words: Any) -> None:
        """From rank 0 to all others."""
        with self.together():
            dist.broadcast_object_list([words], src=0, group=self._group)

    def hear(self) -> tuple[Any, ...]:
        """The next words of rank 0."""
        with self.together():
            heard: list[Any] = [None]
            dist.broadcast_object_list(heard, src=0, group=self._group)
        words: tuple[Any, ...] = heard[0]
        return words

    def collect(self, mine: Any) -> list[Any]:
        """What each rank has, on rank 0; elsewhere nothing."""
        with self.together():
            heard = [None] * self.size if self.leads else None
            dist.gather_object(mine, heard, dst=0, group=self._group)
        return heard or []

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Overwrite ``values`` by those of rank 0: on the CPU over this group, on a device over the process group's."""
        with self.together():
            dist.broadcast(values, src=0, group=self._group if values.device.type == "cpu" else None)
        return values

    def all_do(self, work: Callable[[], T]) -> list[T]:
        """Have each rank do ``work`` of its own; all hear what came of each.

        Raises:
            Exception: this rank's own.
            RankError: another one's, with its exit code.
        """
        result, fault = None, None
        try:
            result = work()
        except Exception as err:
            fault = err
        with self.together():
            heard: list[Any] = [None] * self.size
            dist.all_gather_object(heard, (result, None if fault is None else in_words(fault)), group=self._group)
        if fault is not None:
            raise fault
        for rank, (_, words) in enumerate(heard):
            if words is not None:
                raise fault_of(rank, words)
        return [each for each, _ in heard]

    def meet(self, call: str, step: int, mine: T) -> list[T]:
        """What each rank brings to a call that all make at the same step of theirs.

        Raises:
            RankError: a rank is gone, or in another call.
        """
        told = self.all_do(lambda: (call, step, mine))
        if any((other, at) != (call, step) for other, at, _ in told):
            where = ", ".join(f"rank {rank} in {other} at step {at}" for rank, (other, at, _) in enumerate(told))
            self.part(f"The ranks of this worker are not in the same call: {where}.")
            raise self.problem or AssertionError
        return [each for _, _, each in told]

    def first(self, work: Callable[[], T] | None) -> T:
        """What comes of rank 0's ``work``, on all ranks.

        Raises:
            Exception: on rank 0 its fault.
            RankError: elsewhere, with the exit code of that.
        """
        result: T
        if work is None:
            result, words = self.hear()
            if words is not None:
                raise fault_of(0, words)
            return result
        try:
            result = work()
        except BaseException as err:
            self.tell(None, in_words(err))
            raise
        self.tell(result, None)
        return result

    def part(self, why: str) -> None:
        """Be together no more: others find out at their next word. Idempotent."""
        if self.problem is None:
            self._lost(RankError(why))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A collective call, whose failure is the end of being together."""
        if self.problem is not None:
            raise self.problem
        try:
            yield
        except RuntimeError as err:
            problem = gone(err)
            self._lost(problem)
            raise problem from err

    def _lost(self, problem: RankError) -> None:
        self.problem = problem
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(self._group)
        self._group = None


def _group(deadline_s: float) -> Any:
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=deadline_s))


def gone(err: BaseException) -> RankError:
    """What to say of a collective call that failed."""
    text = " ".join(str(err).split())[:_MAX_TEXT]
    return RankError(f"Another rank of this worker has ended, or hangs: {text}", hint=f"Its output says why. {_LATER}")


def in_words(err: BaseException) -> tuple[str, str, int]:
    """A fault for the other ranks: what happened, a hint, the exit code."""
    if isinstance(err, DecentralError):
        return err.message, err.hint, int(err.exit_code)
    return f"{type(err).__name__}: {' '.join(str(err).split())[:_MAX_TEXT]}", "", int(ExitCode.RANK)


def fault_of(rank: int, words: tuple[str, str, int]) -> RankError:
    """See ``in_words``."""
    message, hint, code = words
    return RankError(f"Rank {rank}: {message}", hint=hint, exit_code=ExitCode(code))

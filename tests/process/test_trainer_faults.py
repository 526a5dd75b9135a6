"""A trainer that fails in a swarm of real processes: what its user is told, and how the others fare.

One that raises is also in ``test_swarm``, which runs by default.
"""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from decentral.errors import ExitCode
from tests.process.command import WorkerProcess, founding, mixed_together, processes_of, wait_for

Swarm = tuple[WorkerProcess, WorkerProcess, "Faulty"]
RAISES = r"error: ValueError while taking inner step \d+ \(\S+faulty.py:\d+, in _raises\)"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Faulty(WorkerProcess):
    """A worker of ``tests.process.faulty``."""

    def __init__(self, folder: Path, founder: WorkerProcess) -> None:
        super().__init__(
            folder, "--join", founder.address, "--task", "tests.process.faulty:build", "--data", str(folder)
        )

    def fail(self, fault: str, *others: WorkerProcess) -> None:
        """Have its trainer fail once it has mixed a round with all others."""
        wait_for(lambda: mixed_together([*others, self]), "a round of all")
        # Who comes is noted at a beat, and who goes only if that was; rounds may be shorter than one.
        wait_for(lambda: self.peer in [event["peer"] for event in others[0].events("peer_seen")], "a line of it")
        (self.folder / "fault").write_text(fault)

    def ended_in_order(self, founder: WorkerProcess, fault: str, code: int, told: str) -> None:
        """Its user was told what is the user's, its weights are saved, and the swarm heard that it leaves."""
        assert self.code() == code
        assert re.search(told, self.stderr), self.stderr
        assert ("Traceback" in self.stderr) == (fault in ("raises", "out_of_memory")), self.stderr
        assert "decentral's own" not in self.stderr
        assert self.events("stopped")[-1]["reason"] == "asked to stop"
        assert self.model()["digest"] in {event["digest"] for event in founder.events("round_mixed")}

        def lost() -> list[str]:
            return [event["reason"] for event in founder.events("peer_lost") if event["peer"] == self.peer]

        wait_for(lambda: bool(lost()), "a line of the founder's journal")
        assert lost() == ["it left"]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    """Two workers that have to go on, whoever fails beside them: the same two for all tests."""
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        founder = WorkerProcess(folder / "founder", *founding(folder / "hurry", step_s=0.05, rounds=100_000))
        stack.callback(founder.end)
        other = WorkerProcess(folder / "other", "--join", founder.address)
        stack.callback(other.end)
        yield founder, other
    wait_for(lambda: not processes_of(folder), "no process left")


@pytest.fixture
def swarm(others: tuple[WorkerProcess, WorkerProcess], tmp_path: Path) -> Iterator[Callable[[str], Swarm]]:
    """The two and a third whose trainer fails once all three have mixed a round."""
    with ExitStack() as stack:

        def make(fault: str) -> Swarm:
            faulty = Faulty(tmp_path / "faulty", others[0])
            stack.callback(faulty.end)
            faulty.fail(fault, *others)
            return *others, faulty

        yield make
    assert not processes_of(tmp_path)


def members(worker: WorkerProcess) -> list[str]:
    """Of its last round."""
    mixed = worker.events("round_mixed")
    members: list[str] = mixed[-1]["members"] if mixed else []
    return members


def go_on(founder: WorkerProcess, other: WorkerProcess) -> None:
    """The two others mix rounds of their own afterwards, and none of theirs was aborted."""
    here = founder.events("round_mixed")[-1]["round"]

    def both() -> bool:
        mixed = founder.events("round_mixed")[-1]
        return mixed["round"] > here + 2 and set(mixed["members"]) == {founder.peer, other.peer}

    wait_for(both, "rounds of the others")
    assert founder.events("round_aborted") == other.events("round_aborted") == []


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("raises", ExitCode.TRAINER, RAISES),
        ("ends", ExitCode.OK, r"the data is over at step \d+"),
        ("exits", 7, ""),
        ("out_of_memory", ExitCode.TRAINER, r"error: out of memory on cuda while .* \d+ .*2.00 GiB"),
        ("returns_nothing", ExitCode.TRAINER, r"report of train_steps is None \(NoneType\)"),
        ("loss_is_none", ExitCode.TRAINER, r"error: loss is None \(NoneType\): must be a number"),
        ("tokens_are_nan", ExitCode.TRAINER, r"error: tokens is nan \(float\): must be a whole number"),
        ("tokens_are_negative", ExitCode.TRAINER, r"error: tokens is -5 \(int\): must be a whole number"),
    ],
)
def test_a_fault_ends_its_own_worker_in_order(swarm: Callable[[str], Swarm], fault: str, code: int, told: str) -> None:
    founder, other, faulty = swarm(fault)
    faulty.ended_in_order(founder, fault, code, told)
    go_on(founder, other)


def test_a_loss_that_is_a_tensor_is_a_number(swarm: Callable[[str], Swarm]) -> None:
    founder, _, faulty = swarm("loss_is_a_tensor")
    here = founder.events("round_mixed")[-1]["round"]
    wait_for(lambda: founder.events("round_mixed")[-1]["round"] > here + 3, "three more rounds")
    assert len(members(founder)) == 3
    faulty.signal(signal.SIGTERM)
    assert faulty.code() == ExitCode.OK


def test_a_trainer_that_hangs_is_not_waited_for_and_can_be_stopped(swarm: Callable[[str], Swarm]) -> None:
    founder, other, faulty = swarm("hangs")
    wait_for(lambda: len(members(founder)) == 2, "a round without the worker that hangs")
    go_on(founder, other)
    faulty.signal(signal.SIGTERM)
    assert faulty.code() == ExitCode.TRAINER
    assert "did not come back from its step" in faulty.stderr

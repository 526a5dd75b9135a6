"""The library in real processes: the program on its page as printed, and loops beside workers of the command line."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import decentral
from decentral.errors import DiskError, MismatchError, UnreachableError, UsageError
from decentral.monitor.journal import JournalReader
from tests.process.command import ROOT, P, Process, WorkerProcess, mixed_together, processes_of, wait_for

LOOP = "tests.process.loop"


def program() -> str:
    """The first program on the page of the library."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL)
    assert found is not None
    return found[1]


def address_of(process: Process) -> str:
    """Where others can join a loop that prints it first."""

    def line() -> str:
        assert process.popen.poll() is None or "\n" in process.stdout, process.stderr
        return process.stdout if "\n" in process.stdout else ""

    return wait_for(line, "the address on stdout").split()[3]


@pytest.mark.timeout(180)
def test_the_program_on_the_page(start: Callable[[P], P], tmp_path: Path) -> None:
    assert len(program().splitlines()) <= 25
    script = tmp_path / "mine.py"
    script.write_text(program())
    entry = (sys.executable, str(script))
    founder = start(Process(tmp_path / "a", entry=entry))
    joiner = start(Process(tmp_path / "b", address_of(founder), entry=entry))
    for process in (founder, joiner):
        assert process.code() == 0, process.stderr
        assert re.search(r"^done after 300 steps, loss \d+\.\d+$", process.stdout, flags=re.MULTILINE), process.stdout
        assert process.stderr == ""
    assert not processes_of(tmp_path)


class LoopProcess(WorkerProcess):
    """``tests.process.loop``, whose folder is that of a worker."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        Process.__init__(self, folder, *arguments, entry=(sys.executable, "-m", LOOP, str(folder)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_loops_and_a_worker_of_the_command_line(start: Callable[[P], P], tmp_path: Path) -> None:
    """Three loops and a worker by the command; a loop leaves, another one is killed, and the others agree."""
    founder = start(LoopProcess(tmp_path / "founder"))
    task = ("--task", f"{LOOP}:build", "--data", str(tmp_path / "founder"))
    stays = start(WorkerProcess(tmp_path / "stays", "--join", founder.address, *task))
    leaver, killed = (start(LoopProcess(tmp_path / name, founder.address)) for name in ("leaver", "killed"))
    swarm = [founder, stays, leaver, killed]
    wait_for(lambda: mixed_together(swarm), "a round with all four")

    (tmp_path / "leaver" / "leave").touch()
    assert leaver.code() == 0, leaver.stderr
    assert leaver.stdout.splitlines()[-1] == "left"
    assert leaver.events("stopped")[-1]["reason"] == "asked to stop"
    killed.signal(signal.SIGKILL)
    wait_for(lambda: not processes_of(tmp_path / "killed"), "no process of the killed loop")
    last = max(event["round"] for worker in swarm for event in worker.events("round_mixed"))
    wait_for(lambda: mixed_together([founder, stays], after=last), "a round of the survivors")

    (tmp_path / "hurry").touch()
    for survivor in (founder, stays):
        assert survivor.code() == 0, survivor.stderr
    assert founder.stdout.splitlines()[-1] == "done"
    assert founder.model() == stays.model()
    assert founder.model()["round"] == "80"
    assert not processes_of(tmp_path)


def test_a_loop_whose_network_dies_trains_alone(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": 5}
    with decentral.found(model, rounds=40, settings=settings, out=tmp_path / "alone") as swarm:
        for _ in range(20):
            swarm.step(loss=1.0)
        assert swarm.state in ("alone", "syncing")
        status = swarm.status()
        assert status.run.rounds == 40
        assert status.workers[0].tokens >= 15  # its own figures are those of the moment
        os.kill(swarm._connection.node.daemon.process.pid, signal.SIGKILL)
        wait_for(lambda: swarm.state == "lost", "the end of its network")
        before, weights = swarm.global_step, model.weight.detach().clone()
        while not swarm.done:
            swarm.step(loss=1.0)
        assert before < swarm.global_step == swarm.total_steps == 200
        assert torch.equal(model.weight, weights)
        assert "lost its connection to the network" in str(swarm.problem)
    assert torch.equal(swarm.average()["weight"], weights)
    with pytest.raises(UsageError, match="has left"):
        swarm.status()
    assert not processes_of(tmp_path)


def test_a_loop_has_a_checkpoint_written_between_any_two_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out", {"worker.host": "127.0.0.1", "method.inner_steps": 1000}
    with decentral.found(torch.nn.Linear(2, 1), rounds=50, settings=settings, out=out) as swarm:
        for taken in (1, 2):
            swarm.step()
            swarm.checkpoint()
            saved = [event for event in JournalReader(out / "journal.jsonl").read() if event["event"] == "saved"]
            assert [event["step"] for event in saved] == list(range(1, taken + 1))
        assert swarm.unsaved is None
        monkeypatch.setattr("decentral.run.disk.Disk.problem", DiskError("full"))
        with pytest.raises(DiskError, match="full"):
            swarm.checkpoint()
    with pytest.raises(UsageError, match="has left"):
        swarm.checkpoint()
    with (
        decentral.found(torch.nn.Linear(2, 1), rounds=50, settings=settings) as swarm,
        pytest.raises(UsageError, match="no folder"),
    ):
        swarm.checkpoint()


def test_another_model_than_the_swarms_is_refused_at_once(tmp_path: Path) -> None:
    settings = {"worker.host": "127.0.0.1"}
    with decentral.found(torch.nn.Linear(2, 1), rounds=10, settings=settings) as swarm:
        with pytest.raises(MismatchError, match="model is not the one that the swarm trains"):
            decentral.join(swarm.address, torch.nn.Linear(3, 1), settings=settings)
        with pytest.raises(MismatchError, match=r"run\.rounds: 9 here, 10 in the swarm"):
            decentral.join(swarm.address, torch.nn.Linear(2, 1), settings={**settings, "run.rounds": 9})
    with pytest.raises(UnreachableError):
        decentral.join(swarm.address, torch.nn.Linear(2, 1), settings=settings)


def test_a_fault_of_the_users_own_validation_is_raised_in_the_loop(tmp_path: Path) -> None:
    def validate() -> float:
        raise KeyError("held out")

    settings = {"worker.host": "127.0.0.1", "method.inner_steps": 2, "eval_every_rounds": 2}
    swarm = decentral.found(torch.nn.Linear(2, 1), rounds=50, settings=settings, validate=validate)

    def loop() -> None:
        with swarm:
            while not swarm.done:
                swarm.step(loss=1.0)

    with pytest.raises(KeyError, match="held out"):
        loop()
    assert swarm.global_step < 100
    assert swarm.state == "lost"

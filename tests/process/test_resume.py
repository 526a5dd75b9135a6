"""Killed workers come back from their folders, as real processes: alone, and all of a swarm at once."""

import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from decentral.run.book import Book, read_book
from decentral.state.checkpoints.manifest import Manifest, found_in
from tests.process.command import P, Process, WorkerProcess, founding, processes_of, wait_for

#: With momentum, and checkpoints that fall anywhere in its rounds of four steps.
METHOD = ("--set", "method.name=diloco", "--checkpoint-every", "3steps", "--keep", "2")


class Resumed(WorkerProcess):
    """A worker that goes on in its folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        Process.__init__(self, folder, "worker", "--resume", str(folder), *arguments)


def newest(folder: Path) -> Manifest | None:
    """What the newest whole checkpoint says."""
    return next((one.manifest for one in found_in(folder) if one.manifest is not None), None)


def trained_beyond(worker: WorkerProcess, step: int) -> Callable[[], bool]:
    def is_beyond() -> bool:
        assert worker.popen.poll() is None, worker.stderr
        manifest = newest(worker.folder)
        return manifest is not None and manifest.step > step

    return is_beyond


def kill(*workers: WorkerProcess) -> None:
    """All at once, and nothing of them is left."""
    for worker in workers:
        worker.signal(signal.SIGKILL)
    for worker in workers:
        worker.popen.wait()
        wait_for(lambda folder=worker.folder: not processes_of(folder), "no process of a killed worker")  # type: ignore[misc]


def again(worker: WorkerProcess, name: str) -> list[dict[str, Any]]:
    """The worker's events of one kind since it was resumed."""
    started = worker.events("started")
    return [event for event in worker.events(name) if len(started) > 1 and event["time"] >= started[1]["time"]]


def are_together(*workers: WorkerProcess) -> bool:
    """Whether all mixed their last rounds with each other."""
    mixed = [again(worker, "round_mixed") for worker in workers]
    return all(events and len(events[-1]["members"]) == len(workers) for events in mixed)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_worker_alone_ends_as_if_it_had_never_been_killed(start: Callable[[P], P], tmp_path: Path) -> None:
    hurry, often, never = tmp_path / "hurry", tmp_path / "often", tmp_path / "never"
    first = start(WorkerProcess(often, *founding(hurry, step_s=0.1, rounds=60), *METHOD))
    wait_for(lambda: (now := newest(often)) is not None and now.step % 4, "a checkpoint in the middle of a round")
    kill(first)
    shutil.copytree(often, never)  # the same run, the same identity, and so the same data

    saved = newest(often)
    assert saved is not None
    again = start(Resumed(often))
    wait_for(trained_beyond(again, saved.step + 12), "steps after the first resume")
    kill(again)
    hurry.touch()
    book = read_book(often)
    assert book is not None
    with socket.create_server(("127.0.0.1", book.port)):  # somebody else has it by now
        last, other = start(Resumed(often)), start(Resumed(never))
        assert (last.code(), other.code()) == (0, 0), last.stderr + other.stderr
    assert all("This worker takes another port" in worker.stderr for worker in (last, other))
    assert [len(worker.events("resumed")) for worker in (last, other)] == [2, 1]
    assert all(event["dropped_steps"] == 0 for worker in (last, other) for event in worker.events("resumed"))
    ends = [newest(folder) for folder in (often, never)]
    assert all(end is not None and (end.step, end.round) == (240, 60) for end in ends)
    assert len({(end.state, end.tokens) for end in ends if end is not None}) == 1
    mine, theirs = weights(often), weights(never)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_swarm_that_was_killed_as_a_whole_goes_on(start: Callable[[P], P], tmp_path: Path) -> None:
    hurry, folders = tmp_path / "hurry", [tmp_path / "0", tmp_path / "1"]
    founder = start(WorkerProcess(folders[0], *founding(hurry, step_s=0.1, rounds=80), *METHOD))
    joiner = start(WorkerProcess(folders[1], "--join", founder.address, *METHOD[2:]))
    wait_for(lambda: len(joiner.events("round_mixed")) > 3, "rounds of both")
    for worker in (founder, joiner):
        wait_for(trained_beyond(worker, 10), "checkpoints of both")
    run, peers = founder.events("started")[0]["run"], [founder.peer, joiner.peer]
    kill(founder, joiner)
    before = [newest(folder) for folder in folders]

    back = [start(Resumed(folder)) for folder in folders]
    assert [worker.peer for worker in back] == peers
    wait_for(lambda: are_together(*back), "rounds of both again")
    hurry.touch()
    assert [worker.code() for worker in back] == [0, 0], back[0].stderr + back[1].stderr
    for worker, manifest in zip(back, before, strict=True):
        assert manifest is not None
        assert [event["run"] for event in worker.events("started")] == [run, run]
        assert worker.events("resumed")[-1]["step"] == manifest.step
        assert min(event["round"] for event in again(worker, "round_mixed")) >= manifest.round
    assert back[0].model() == back[1].model()
    assert back[0].model()["round"] == "80"
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_halves_that_came_back_apart_find_each_other(start: Callable[[P], P], tmp_path: Path) -> None:
    hurry, folders = tmp_path / "hurry", [tmp_path / "0", tmp_path / "1"]
    founder = start(WorkerProcess(folders[0], *founding(hurry, step_s=0.1, rounds=2000), *METHOD))
    joiner = start(WorkerProcess(folders[1], "--join", founder.address, *METHOD[2:]))
    for worker in (founder, joiner):
        wait_for(trained_beyond(worker, 10), "checkpoints of both")
    kill(founder, joiner)

    known = read_book(folders[0])
    assert known is not None
    Book(known.run, known.port).save(folders[0])  # this one knows nobody, and does not wait
    alone = start(Resumed(folders[0]))
    wait_for(lambda: len(again(alone, "round_mixed")) > 3, "one half")
    alone.signal(signal.SIGSTOP)  # it says nothing while the other looks for it
    other = start(Resumed(folders[1]))
    wait_for(lambda: len(again(other, "round_mixed")) > 3, "the other half", 120.0)
    alone.signal(signal.SIGCONT)

    wait_for(lambda: are_together(alone, other), "rounds of both", 120.0)
    # One of the two repairs, and says so; the anchor of the other goes on.
    repaired = [worker for worker in (alone, other) if again(worker, "repaired")]
    assert len(repaired) == 1
    assert "took over the weights of" in repaired[0].stderr
    for worker in (alone, other):
        worker.signal(signal.SIGINT)
    assert [worker.code() for worker in (alone, other)] == [0, 0]
    digests: dict[int, set[str]] = {}
    for event in (event for worker in (alone, other) for event in again(worker, "round_mixed")):
        if len(event["members"]) == 2:
            digests.setdefault(event["round"], set()).add(event["digest"])
    assert {len(seen) for seen in digests.values()} == {1}
    assert not processes_of(tmp_path)

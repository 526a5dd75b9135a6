"""Several processes that are one worker, under torchrun and beside a worker of one process."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.process.command import ROOT, P, Process, WorkerProcess, mixed_together, processes_of, wait_for
from tests.support.pages import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUM_RANKS = 2
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1")
TWO = ("--nproc-per-node", str(NUM_RANKS))
#: Sequences of a batch and bytes of each.
BATCH, CONTEXT, INNER_STEPS = 4, 16, 4
#: A small language model, and so many rounds that they outlast what a test does meanwhile.
SETTINGS = {
    "method.inner_steps": INNER_STEPS,
    "timing.beat_s": 0.5,
    "timing.ttl_s": 3.0,
    "timing.min_patience_s": 3.0,
    "run.min_workers": 2,
    "eval_every_rounds": 1000,
    "task.settings.batch_sequences": BATCH,
    "task.settings.model.context": CONTEXT,
    "task.settings.model.d_model": 32,
    "task.settings.model.num_layers": 2,
    "task.settings.model.num_heads": 2,
}


def founding(rounds: int) -> tuple[str, ...]:
    words = (word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))
    return "--new", "--rounds", str(rounds), *words, "--data", str(ROOT / "docs")


class Together(WorkerProcess):
    """A worker under torchrun, which ends its ranks if it is asked to, and leaves them if it is killed."""

    def __init__(self, folder: Path, *arguments: str, torchrun: tuple[str, ...] = TWO) -> None:
        super().__init__(folder, *arguments, entry=(*TORCHRUN, *torchrun, "-m", "decentral"))

    def join_line(self) -> str:
        wait_for(lambda: self.stdout or self.popen.poll() is not None, "the first line of the ranks", 180)
        return super().join_line()

    def code(self) -> int:
        wait_for(lambda: self.popen.poll() is not None, f"the end of the ranks: {self.stderr[-2000:]}", 180)
        return super().code()

    def end(self) -> None:
        self.signal(signal.SIGTERM)
        self.popen.wait(60)


def weights_are_equal(folders: Sequence[Path]) -> bool:
    first, *others = [load_file(folder / "model.safetensors") for folder in folders]
    return all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize("inner", ["ddp", "fsdp"])
def test_ranks_are_one_worker_beside_a_process(start: Callable[[P], P], tmp_path: Path, inner: str) -> None:
    several = start(Together(tmp_path / "several", *founding(6), "--inner", inner))
    one = start(WorkerProcess(tmp_path / "one", "--join", several.address, "--data", str(ROOT / "docs")))
    assert [several.code(), one.code()] == [0, 0], several.stderr[-3000:]
    assert len(several.stdout.splitlines()) == 1
    assert weights_are_equal([several.folder, one.folder])
    mixed = several.events("round_mixed")
    assert len(mixed) == 6
    assert all(len(event["members"]) == 2 for event in mixed)
    # A batch is dealt out: the worker of two processes brings as many tokens as that of one.
    tokens = {event["tokens"] for worker in (several, one) for event in worker.events("stretch_done")}
    assert tokens == {INNER_STEPS * BATCH * CONTEXT}
    assert not processes_of(tmp_path)


def rank_of(pid: int) -> str:
    variables = dict(part.split("=", 1) for part in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in part)
    return variables.get("RANK", "")


def ranks_of(torchrun: Process) -> dict[str, int]:
    """Process ids by rank."""
    found = Path(f"/proc/{torchrun.popen.pid}/task/{torchrun.popen.pid}/children").read_text().split()
    return {rank_of(int(pid)): int(pid) for pid in found}


def test_a_rank_that_dies_ends_the_worker_and_torchrun_brings_it_back(start: Callable[[P], P], tmp_path: Path) -> None:
    one = start(WorkerProcess(tmp_path / "one", *founding(100_000)))
    arguments = ("--join", one.address, "--inner", "fsdp", "--data", str(ROOT / "docs"))
    several = start(Together(tmp_path / "several", *arguments, torchrun=(*TWO, "--max-restarts", "1")))
    peer = several.peer
    wait_for(lambda: mixed_together([one, several]), "a round of both", 120)
    os.kill(ranks_of(several)["1"], signal.SIGKILL)
    wait_for(lambda: len(several.stdout.splitlines()) == 2, "the worker once more", 120)
    assert f"/p2p/{peer}" in several.stdout.splitlines()[1]
    seen = one.events("round_mixed")[-1]["round"]
    wait_for(lambda: mixed_together([one, several], after=seen), "a round of both afterwards", 120)
    left = [event for event in several.events("stopped") if event["reason"] == "failed"]
    assert len(left) <= 1  # torchrun may be faster than its goodbye
    several.signal(signal.SIGTERM)
    several.code()
    one.signal(signal.SIGTERM)
    assert one.code() == 0
    wait_for(lambda: not processes_of(tmp_path), "no process left")


class Back(Together):
    """A worker that goes on from a folder, with its output in another one."""

    def __init__(self, folder: Path, output: Path, entry: tuple[str, ...]) -> None:
        Process.__init__(self, output, "worker", "--resume", str(folder), entry=entry)
        self.folder = folder

    def resumed(self, times: int) -> dict[str, Any]:
        """The event that it goes on, for the so manieth time in this folder."""
        wait_for(lambda: len(self.events("resumed")) == times or self.popen.poll() is not None, "that it goes on", 180)
        assert len(self.events("resumed")) == times, self.stderr[-3000:]
        return self.events("resumed")[-1]


def ended_in_order(worker: WorkerProcess, lives: int) -> int:
    """The round in which it was stopped, after some more of them."""
    seen = len(worker.events("round_mixed"))
    wait_for(lambda: len(worker.events("round_mixed")) > seen + 3, "some rounds", 180)
    worker.signal(signal.SIGTERM)
    wait_for(lambda: worker.popen.poll() is not None, "its end", 60)
    stopped = worker.events("stopped")
    assert [event["reason"] for event in stopped] == ["asked to stop"] * lives, worker.stderr[-2000:]
    return int(stopped[-1]["round"])


def test_a_checkpoint_has_no_ranks_in_it(start: Callable[[P], P], tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    ranks = start(Together(folder, *founding(100_000), "--set", "run.min_workers=1", "--inner", "fsdp"))
    stopped_at = ended_in_order(ranks, 1)
    one = start(Back(folder, tmp_path / "one", (sys.executable, "-m", "decentral")))
    resumed = one.resumed(1)
    assert (resumed["round"], "inner optimizer and data position" in resumed["kept"]) == (stopped_at, True)
    stopped_at = ended_in_order(one, 2)
    again = start(Back(folder, tmp_path / "again", (*TORCHRUN, *TWO, "-m", "decentral")))
    resumed = again.resumed(2)
    assert (resumed["round"], "inner optimizer and data position" in resumed["kept"]) == (stopped_at, True)
    assert ended_in_order(again, 3) > stopped_at


def by_hand(folder: Path, rank: int, port: int, *arguments: str) -> WorkerProcess:
    """One rank as torchrun starts it, with nobody who ends the others when one dies."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": NUM_RANKS,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    setting = (f"{key}={value}" for key, value in variables.items())
    return WorkerProcess(folder, *arguments, entry=("/usr/bin/env", *setting, sys.executable, "-m", "decentral"))


@pytest.mark.parametrize("dies", [0, 1])
def test_the_other_rank_ends_with_a_code_and_words(start: Callable[[P], P], tmp_path: Path, dies: int) -> None:
    one = start(WorkerProcess(tmp_path / "one", *founding(100_000)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--join", one.address, "--data", str(ROOT / "docs"))
    ranks = [start(by_hand(tmp_path / f"rank{rank}", rank, port, *arguments)) for rank in range(NUM_RANKS)]
    wait_for(lambda: mixed_together([one, ranks[0]]), "a round of both", 120)
    # Who comes and goes between two beats is neither seen nor lost.
    wait_for(lambda: any(e["peer"] == ranks[0].peer for e in one.events("peer_seen")), "that it is seen")
    ranks[dies].signal(signal.SIGKILL)
    other = ranks[1 - dies]
    assert other.code() == 15, other.stderr
    assert "error: Another rank of this worker has ended, or hangs: " in other.stderr
    if dies == 1:
        assert ranks[0].events("stopped")[-1]["reason"] in ("failed", "asked to stop")
        wait_for(lambda: any(e["peer"] == ranks[0].peer for e in one.events("peer_lost")), "goodbye")
    seen = one.events("round_mixed")[-1]["round"]
    wait_for(lambda: one.events("round_mixed")[-1]["round"] > seen, "a round of the other worker")
    one.signal(signal.SIGTERM)
    assert one.code() == 0


def test_the_program_on_the_page(start: Callable[[P], P], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(program("machines"))
    founder = start(Process(tmp_path / "a", str(script), entry=(*TORCHRUN, *TWO)))
    address = wait_for(lambda: re.search(r"others join with (\S+)\n", founder.stdout), "the address", 120)[1]
    joiner = start(Process(tmp_path / "b", str(script), address, entry=(*TORCHRUN, *TWO)))
    wait_for(lambda: None not in (founder.popen.poll(), joiner.popen.poll()), "the end of both", 180)
    assert [founder.code(), joiner.code()] == [0, 0], founder.stderr + joiner.stderr
    done = re.compile(r"^done after 300 steps, loss \d+\.\d+$", flags=re.MULTILINE)
    assert done.search(founder.stdout)
    assert done.search(joiner.stdout)


def test_what_cannot_be_is_said(start: Callable[[P], P], tmp_path: Path) -> None:
    cuda = start(Together(tmp_path / "cuda", *founding(2), "--device", "cuda"))
    toy = ("--new", "--task", "decentral.workers.toy:build")
    task = start(Together(tmp_path / "toy", *toy))
    one = start(
        Together(tmp_path / "one", *founding(2), "--set", "run.min_workers=1", torchrun=("--nproc-per-node", "1"))
    )
    for process in (cuda, task):
        assert process.code() == 1  # torchrun's own
    if not torch.cuda.is_available():
        assert "error: device 'cuda:0' was asked for, but torch" in cuda.stderr
    assert "several cannot train one model" in task.stderr
    assert one.code() == 0, one.stderr

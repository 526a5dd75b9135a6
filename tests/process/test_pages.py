"""The programs of the adapters' pages, as real processes: alone as they are printed, and together with others."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.process.command import ROOT, Process, WorkerProcess, processes_of, wait_for
from tests.process.program import INNER_STEPS
from tests.process.test_swarm import assert_members_agree
from tests.support.pages import PAGES, program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: At the visible pace these take far longer than the test; then the run is told to hurry.
ROUNDS = 80
#: Where each program saves the swarm's weights at its end.
SAVED = {"transformers": "gpt2/model.safetensors", "lightning": "model.ckpt", "accelerate": "model/model.safetensors"}
#: Ends the program after so many steps of its own, before the run does.
STEPS = 4 * INNER_STEPS
EARLIER = {
    "transformers": ("max_steps=swarm.total_steps", f"max_steps={STEPS}"),
    "lightning": ("max_steps=swarm.total_steps", f"max_steps={STEPS}"),
    "accelerate": ("swarm.done", f"swarm.global_step >= first + {STEPS}"),
}
#: Of a program that loads a large library on a busy machine.
DEADLINE_S = 180.0


class Program(WorkerProcess):
    """A page's program, at the test's pace."""

    def __init__(self, page: str, folder: Path, hurry: Path, *arguments: str, code: str = "") -> None:
        folder.mkdir(parents=True)
        script = folder / "train.py"
        script.write_text(code or program(page))
        entry = (sys.executable, "-m", "tests.process.program")
        Process.__init__(self, folder, str(script), str(folder), str(hurry), str(ROUNDS), *arguments, entry=entry)

    def join_line(self) -> str:
        wait_for(lambda: self.stdout or self.popen.poll() is not None, "a program's first line", DEADLINE_S)
        return super().join_line()

    def code(self) -> int:
        wait_for(lambda: self.popen.poll() is not None, "a program's end", DEADLINE_S)
        return super().code()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    found: dict[str, Tensor] = torch.load(path)["state_dict"]
    return found


IN_FOLDER = """
import os, runpy, sys

os.chdir({folder!r})
sys.path.insert(0, {root!r})
sys.argv = ["train.py"]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_as_it_is_printed(page: str, tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "train.py").write_text(program(page))
    run = IN_FOLDER.format(folder=str(tmp_path), root=str(ROOT))
    ran = Process(tmp_path / "out", entry=(sys.executable, "-c", run))
    stack.callback(ran.end)
    assert ran.code() == 0, ran.stderr[-3000:]
    assert ran.stdout.startswith("Others join with: python train.py /ip4/")
    assert weights(tmp_path / SAVED[page])


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_a_worker_of_the_command_train_together(page: str, tmp_path: Path, stack: ExitStack) -> None:
    hurry = tmp_path / "hurry"

    def started(worker: WorkerProcess) -> WorkerProcess:
        stack.callback(worker.end)
        return worker

    founder = started(Program(page, tmp_path / "founder", hurry))
    address = founder.address
    killed = started(Program(page, tmp_path / "killed", hurry, address))
    task = ("--set", f"worker.task=tests.process.page_task:{page}", "--data", str(hurry))
    command = started(WorkerProcess(tmp_path / "command", "--join", address, *task))
    workers = [founder, killed, command]
    wait_for(lambda: mixed_with(command, workers), "a round of these three", DEADLINE_S)

    old, new = EARLIER[page]
    code = program(page).replace("with swarm:\n", "first = swarm.global_step\nwith swarm:\n").replace(old, new)
    leaver = started(Program(page, tmp_path / "leaver", hurry, address, code=code))
    wait_for(lambda: mixed_with(command, [*workers, leaver]), "a round of all four", DEADLINE_S)
    assert leaver.code() == 0, leaver.stderr[-3000:]
    assert leaver.events("stopped")[-1]["reason"] == "asked to stop"
    assert len(leaver.events("stretch_done")) > 1

    killed.signal(signal.SIGKILL)
    last = killed.events("round_mixed")[-1]["round"]
    wait_for(lambda: not processes_of(tmp_path / "killed"), "no process of the killed worker")
    wait_for(lambda: mixed_with(command, [founder, command], after=last), "a round of the survivors", DEADLINE_S)

    hurry.touch()
    assert [founder.code(), command.code()] == [0, 0], founder.stderr[-3000:]
    assert founder.model() == command.model()
    assert command.model()["round"] == str(ROUNDS)
    assert_members_agree([*workers, leaver])
    anchors = load_file(tmp_path / "command/model.safetensors")
    saved = weights(tmp_path / "founder" / SAVED[page])
    assert all(torch.equal(saved[name], value) for name, value in anchors.items())
    assert not processes_of(tmp_path)


def mixed_with(worker: WorkerProcess, members: list[WorkerProcess], *, after: int = -1) -> bool:
    """Whether ``worker`` has mixed a round later than ``after`` with exactly these members."""
    peers = {member.peer for member in members if member.stdout}
    events = [event for event in worker.events("round_mixed") if event["round"] > after]
    return len(peers) == len(members) and any(set(event["members"]) == peers for event in events)

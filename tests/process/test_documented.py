"""The commands that README and the pages print, as they stand there.

Workers and local runs are taken as far as the network: command line, configuration, task, data and model are the real
ones, and what would begin to train is noted. How training goes on is for the tests beside this one. Whatever ends by
itself runs to its end, beside a swarm that lives. A block with ``<!-- not run: WHY -->`` in front of it is left out.
"""

import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from decentral.cli.app import app
from decentral.cli.local import run as local_run
from decentral.errors import ExitCode
from tests.process.command import Process, WorkerProcess, founding, wait_for
from tests.support.docs import PAGES, Block, blocks
from tests.support.hf import make_folder, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BLOCKS = [block for page in PAGES for block in blocks(page) if not block.not_run]
#: What stands for an address on the pages.
PLACEHOLDERS = ("203.0.113.7:31337#TOKEN", "203.0.113.7:31337", "ADDRESS", "ADDR")
#: Exit codes of commands that have done what they were asked for.
DONE = {ExitCode.OK, ExitCode.DEGRADED}
DEADLINE_S = 300.0


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all texts, models and tasks that the pages name."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("notes", "code", "corpus", "texts"):
        (folder / name).mkdir()
        write_rows(folder / name / "a.jsonl")
    (folder / "code/a.py").write_text("print('a text')\n" * 4000)
    make_folder(folder / "my-model", num_layers=4)
    (folder / "mine.py").write_text("from decentral.workers.toy import build\n")
    return folder


@pytest.fixture(scope="module")
def swarm(machine: Path) -> Iterator[WorkerProcess]:
    """A worker with its folder ``runs/a``, and ``runs/demo-...`` of a local run that is over."""
    tiny = ("--set", "run.rounds=2", "--set", "task.settings.model.d_model=32", "--set", "method.inner_steps=1")
    local = Process(
        machine / "log", "local", "--workers", "2", *tiny, "--out", str(machine / "runs/demo-20250101-120000")
    )
    paced = founding(machine / "hurry", step_s=0.2, rounds=100_000)
    founder = WorkerProcess(machine / "runs/a", *paced, "--checkpoint-every", "8steps")
    try:
        wait_for(lambda: local.popen.poll() is not None, "a local run's end", DEADLINE_S)
        wait_for((machine / "runs/a/checkpoints/best").exists, "a best checkpoint", DEADLINE_S)
        yield founder
    finally:
        founder.end()
        local.end()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would begin to train is noted here."""
    notes: list[str] = []
    module = ModuleType("decentral.run.worker")

    def run_worker(*_: Any) -> int:
        notes.append("worker")
        return 0

    class LocalRun:
        def __init__(self, *_: Any) -> None: ...

        async def run(self) -> int:
            notes.append("local")
            return 0

    module.run_worker = run_worker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decentral.run.worker", module)
    monkeypatch.setattr(local_run, "LocalRun", LocalRun)
    return notes


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_its_commands_work(
    block: Block,
    machine: Path,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(machine)
    for path in machine.iterdir():
        if path.name != "runs":
            (tmp_path / path.name).symlink_to(path)
    for _, *words in block.commands:
        begins = words[0] in ("worker", "local")
        anew = begins and "--resume" not in words
        beside = not anew and any(word in PLACEHOLDERS or word.startswith("runs/") for word in words)
        there: WorkerProcess | None = request.getfixturevalue("swarm") if beside else None
        monkeypatch.chdir(machine if there else tmp_path)  # a new run begins in a folder that has none
        words, target = (words[:-2], words[-1]) if ">" in words else (words, "")
        started.clear()
        done = CliRunner().invoke(app, [one for word in words for one in _meant(word, there)])
        assert done.exit_code in DONE, f"{' '.join(words)}\n{done.output}"
        assert started == words[:1] * begins
        if target:
            Path(target).write_text(done.stdout)


def _meant(word: str, there: WorkerProcess | None) -> list[str]:
    """What a shell, and a reader, would make of a word."""
    if word in PLACEHOLDERS:
        return [there.host_port if there else "203.0.113.7:31337"]
    return sorted(glob.glob(os.path.expanduser(word))) or [os.path.expanduser(word)]

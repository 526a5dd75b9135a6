"""The commands that README and the pages print, as they stand there, as far as the network.

Command line, configuration, task, data and model are the real ones; what would begin to train is noted. A block with
``<!-- not run: WHY -->`` in front of it is left out. What takes a swarm that lives, or a run's folder, is run by tests
that ``ELSEWHERE`` names.
"""

import glob
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from decentral.cli.app import app
from decentral.cli.local import run as local_run
from tests.support.docs import PAGES, ROOT, blocks

#: What has to live, or to have been, before these can do anything; with the test where it does.
ELSEWHERE = {
    "status": "process/test_swarm.py",
    "export": "process/test_swarm.py",
    "invite": "process/test_private.py",
    "revoke": "process/test_private.py",
    "ban": "process/test_private.py",
    "doctor": "process/test_nat.py",
    "audit": "unit/cli/test_audit.py",
    "rewind": "unit/cli/test_runs.py",
    "codecs": "unit/cli/test_codecs.py",  # trains on the standard library for a minute
    "--resume": "process/test_resume.py",
}


def _is_elsewhere(words: tuple[str, ...]) -> bool:
    asks_swarm = words[0] == "plan" and any("203.0.113.7" in word for word in words)  # tests/unit/cli/test_plan.py
    return asks_swarm or words[0] in ELSEWHERE or "--resume" in words


FOUND = {
    words[1:]: block.where for page in PAGES for block in blocks(page) if not block.not_run for words in block.commands
}
HERE = {words: where for words, where in FOUND.items() if not _is_elsewhere(words)}


def test_what_takes_a_swarm_is_run_where_the_table_says() -> None:
    used = {word for words in FOUND for word in words if word in ELSEWHERE}
    for word in used:
        text = (ROOT / "tests" / ELSEWHERE[word]).read_text()
        assert f'"{word}"' in text or f"{word}_of(" in text, f"{ELSEWHERE[word]} does not run {word}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all texts, models and tasks that the pages name."""
    from tests.support.hf import make_folder, write_rows

    folder = tmp_path_factory.mktemp("machine")
    for name in ("notes", "code", "corpus", "texts"):
        (folder / name).mkdir()
        write_rows(folder / name / "a.jsonl")
    (folder / "code/a.py").write_text("print('a text')\n" * 4000)
    make_folder(folder / "my-model", num_layers=4)
    (folder / "mine.py").write_text("from decentral.workers.toy import build\n")
    (folder / "mine.toml").write_text(
        "[run]\nrounds = 2\n[model]\nparameters = 1_000_000\nlayers = 2\ntokens_per_step = 64\n"
        '[[machines]]\nname = "one"\ncount = 2\nstep_s = 1.0\n'
    )
    return folder


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


@pytest.mark.slow
@pytest.mark.parametrize("words", HERE, ids=lambda words: f"{HERE[words]} {words[0]}")
def test_a_command_of_a_page_works(
    words: tuple[str, ...], machine: Path, started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(machine)
    monkeypatch.chdir(tmp_path)
    for path in machine.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "plan.toml").write_text("[method]\ninner_steps = 5\n")
    words = words[: words.index(">")] if ">" in words else words
    done = CliRunner().invoke(app, [one for word in words for one in _expanded(word)])
    assert done.exit_code == 0, done.output
    assert started == ([words[0]] if words[0] in ("worker", "local") else [])


def _expanded(word: str) -> list[str]:
    """What a shell makes of a word, and a reader of a name that stands for an address."""
    if word in ("ADDR", "ADDRESS"):
        return ["203.0.113.7:31337"]
    return sorted(glob.glob(os.path.expanduser(word))) or [os.path.expanduser(word)]

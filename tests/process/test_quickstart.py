"""The quickstart as it is run, only shorter."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from decentral.monitor.journal import JournalReader
from tests.process.command import ROOT, Process

#: Three rounds of the quickstart.
STEPS = 12


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_ends_with_what_the_swarm_kept(tmp_path: Path, start: Callable[[Process], Process]) -> None:
    *_, last = (ROOT / "scripts/quickstart").read_text().splitlines()
    words = shlex.split(last)[2:-1]  # between the program and what is passed on
    settings = ("run.rounds=3", "task.settings.val_batches=1")
    short = ("--workers", "2", *(word for each in settings for word in ("--set", each)), "--out", str(tmp_path / "run"))
    quickstart = start(Process(tmp_path / "said", *words, *short))
    assert quickstart.popen.wait(840) == 0, quickstart.stderr
    end = quickstart.stdout[quickstart.stdout.index("\nalone ") :].splitlines()[1:]
    assert [line.split()[0] for line in end] == ["alone", "swarm", "data-parallel", "kept"]
    assert re.fullmatch(rf"alone +\d\.\d{{3}}  one worker, {STEPS} steps", end[0])
    assert all(re.search(r"^\S+ +\d\.\d{3}  ", line) for line in end[:3])
    trained = {}
    for name in ("alone", "data-parallel"):
        journal = JournalReader(tmp_path / "run/controls" / name / "workers/0/journal.jsonl").read()
        stretches = [event for event in journal if event["event"] == "stretch_done"]
        trained[name] = sum(event["tokens"] for event in stretches)
        assert stretches[-1]["step"] == STEPS
    assert trained == {"alone": STEPS * 4 * 128, "data-parallel": 2 * STEPS * 4 * 128}

"""A short run of ``scripts/chaos``; the long one is run by hand and kept in docs/benchmarks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.command import ROOT


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_and_stopped_workers_cost_nobody_their_anchor(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    options = ("--iterations", "3", "--stop-s", "8", "--folder", str(tmp_path / "workers"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chaos"), *options, "--out", str(tmp_path / "chaos")],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr

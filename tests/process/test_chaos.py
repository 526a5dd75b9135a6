"""Short runs of the chaos scripts; the long ones are run by hand and kept in docs/benchmarks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.command import ROOT


def run(script: str, tmp_path: Path, *options: str) -> None:
    (tmp_path / "workers").mkdir()
    here = ("--folder", str(tmp_path / "workers"), "--out", str(tmp_path / script))
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.benches.{script}", *options, *here],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_workers_under_drawn_faults_and_whole_swarms_come_back(tmp_path: Path) -> None:
    # Any loss will do: of so few tokens it says little.
    run("chaos", tmp_path, "--minutes", "2.5", "--workers", "3", "--deaths", "1", "--seed", "1", "--no-reference")


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_and_stopped_workers_of_a_gossip_come_back_and_nobody_waits_too_long(tmp_path: Path) -> None:
    # Any pace will do: a test asserts no wall-clock.
    run("chaos_gossip", tmp_path, "--workers", "4", "--iterations", "2", "--calm-s", "25", "--tolerance", "1")


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_killed_stages_come_back_and_no_micro_batch_is_lost_or_counted_twice(tmp_path: Path) -> None:
    # Any time will do, as above.
    run("chaos_pipeline", tmp_path, "--limit-s", "1000", "--only", "stage 2", "head", "one of two heads")

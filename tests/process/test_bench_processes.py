"""Processes of the benches: what they say, how they fail, and that nothing is left of them."""

from pathlib import Path

import pytest

from scripts.benches.lib.command import BenchError
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Process, Swarm, python, runs
from scripts.benches.lib.report import read


def started(folder: Path, program: str) -> Process:
    return Process(folder, python("-c", program))


def test_a_process_ends_with_its_result(tmp_path: Path) -> None:
    process = started(tmp_path / "one", "print('begun'); print('{\"seconds\": 2}')")
    assert process.result(60.0) == {"seconds": 2}
    assert process.lines() == ["begun", '{"seconds": 2}']


def test_what_failed_is_named_with_its_last_words(tmp_path: Path) -> None:
    process = started(tmp_path / "one", "import sys; sys.exit('no room')")
    with pytest.raises(BenchError, match=r"one ended with 1: no room"):
        process.result(60.0)


def test_what_does_not_happen_in_time_is_named_and_the_process_ended(tmp_path: Path) -> None:
    process = started(tmp_path / "one", "import time; print('begun', flush=True); time.sleep(1000)")
    try:
        process.wait_for(process.lines, "its first line", 60.0)
        with pytest.raises(BenchError, match=r"one: not within 0 s: a miracle"):
            process.wait_for(lambda: False, "a miracle", 0.0)
    finally:
        assert process.end() == -9


@pytest.mark.slow
def test_a_swarm_is_killed_and_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    settings = {
        "task.factory": "decentral.workers.toy:build",
        "method.inner_steps": 10,
        "run.rounds": 10_000,
        "run.min_workers": 2,
    }
    with Swarm(tmp_path, [LOOPBACK] * 2) as swarm:
        swarm.begin(settings)
        first, second = swarm.workers
        swarm.until(lambda: swarm.front() >= 1, "a round")
        (daemon,) = second.daemons()
        swarm.kill(second)
        assert swarm.living == [first]
        assert not runs(daemon)
        first.stop(0.2, with_daemon=True).join()
        here = swarm.front()
        swarm.until(lambda: swarm.front() > here, "a round after the stop")
        swarm.end()
        assert not swarm.living


@pytest.mark.slow
def test_a_worker_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with Swarm(tmp_path, [LOOPBACK]) as swarm, pytest.raises(BenchError, match="worker0 ended with"):
        swarm.begin({"task.factory": "nowhere:build"})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bench_of_a_gpu_runs_whole_without_one(tmp_path: Path) -> None:
    sizes = {"layers": 1, "width": 64, "context": 16, "batch": 1, "pairs": 1, "deadline-s": 240}
    words = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    out = tmp_path / "new" / "gpu"
    bench = python("-m", "scripts.benches.gpu", "--device", "cpu", *words, "--out", str(out))
    process = Process(tmp_path / "bench", bench)
    assert process.end(540.0) in (0, 1), process.failure()  # whether a ratio is met says nothing on a CPU
    bare, own = read(out, None)["runs"]
    assert own["parameters"] == bare["parameters"]
    assert min(len(own["launch_ms"]), len(own["landing_ms"])) > 0
    assert "# What a swarm costs a GPU" in out.with_suffix(".md").read_text()

"""A model in stages as real processes: whoever is killed is replaced by a spare, and the run goes to its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.benches.counted import Strike, account
from tests.process.command import DEADLINE_S, WorkerProcess, processes_of, wait_for

STAGES, ROUNDS, INNER_STEPS = 4, 30, 10
#: Six workers start at a time.
PATIENCE_S = 4 * DEADLINE_S
SETTINGS = {
    "task.settings.model.d_model": 16,
    "task.settings.model.num_layers": STAGES,
    "task.settings.model.num_heads": 2,
    "task.settings.model.context": 16,
    "task.settings.batch_sequences": 2,
    "task.settings.val_batches": 1,
    "pipeline.microbatches": 2,
    "method.inner_steps": INNER_STEPS,
    # Outward steps of a stage with one holder leave it where it is.
    "method.outer_lr": 1,
    "method.outer_momentum": 0,
}


@pytest.fixture
def start() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers and ends them after the test."""
    with ExitStack() as stack:

        def start(folder: Path, *arguments: str) -> WorkerProcess:
            worker = WorkerProcess(folder, *arguments)
            stack.callback(worker.end)
            return worker

        yield start


def founding(text: Path, rounds: int) -> tuple[str, ...]:
    text.write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    settings = SETTINGS | {"run.rounds": rounds}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return "--new", "--stages", str(STAGES), "--replicas", "1", "--data", str(text), *words


def placed(worker: WorkerProcess) -> set[int]:
    return {event["stage"] for event in worker.events("stage_placed")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_stage_heals_and_the_run_ends_with_every_micro_batch_counted_once(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    founder = start(tmp_path / "0", *founding(tmp_path / "text", ROUNDS))
    joiners = [start(tmp_path / str(number), "--join", founder.address) for number in range(1, STAGES + 1)]
    spare = start(tmp_path / "spare", "--join", founder.address, "--stage", "spare")
    crew = [founder, *joiners]
    wait_for(
        lambda: all(placed(worker) for worker in crew) and spare.join_line(), "a holder of every stage", PATIENCE_S
    )
    assert sorted(stage for worker in crew for stage in placed(worker)) == list(range(STAGES + 1))
    wait_for(lambda: founder.events("stretch_done"), "steps", PATIENCE_S)

    (victim,) = (worker for worker in crew if placed(worker) == {2})
    victim.popen.kill()
    victim.popen.wait()
    struck = Strike("victim", time.time(), frozenset({2}))
    wait_for(lambda: not processes_of(victim.folder), "no process of the killed worker")
    (healed,) = wait_for(lambda: spare.events("stage_recovered"), "the stage healed", PATIENCE_S)
    assert (healed["stage"], healed["source"]) == (2, "blend")
    assert sorted(healed["donors"]) == sorted(w.peer for w in crew if placed(w) in ({1}, {3}))
    assert [event["stage"] for event in founder.events("stage_lost")] == [2]

    living = [worker for worker in (*crew, spare) if worker is not victim]
    wait_for(lambda: None not in [worker.popen.poll() for worker in living], "the end of the run", PATIENCE_S)
    assert [worker.code() for worker in living] == [0] * len(living)
    assert {event["reason"] for worker in living for event in worker.events("stopped")} == {"run is done"}
    assert all(event["loss"] for worker in living for event in worker.events("stretch_done"))
    names = {"victim" if worker is victim else worker.folder.name: worker for worker in (*crew, spare)}
    made = account({name: worker.events("batch_counted") for name, worker in names.items()}, [struck], STAGES)
    assert made.wrong == []
    assert made.batches == ROUNDS * INNER_STEPS
    assert not processes_of(tmp_path)

"""A model in stages as real processes: whoever is killed is replaced by a spare, and the run goes to its end."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from decentral.cli.assemble import assemble
from decentral.cli.sources import parts_from_paths
from decentral.errors import ExitCode
from decentral.pipeline.stored import span_of
from decentral.run.book import read_book
from decentral.state.checkpoints.manifest import found_in
from scripts.benches.counted import Strike, account
from tests.process.command import DEADLINE_S, WorkerProcess, processes_of, wait_for
from tests.process.test_resume import Resumed, kill, newest

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
    "method.inner_steps": INNER_STEPS,
    # Outward steps of a stage with one holder leave it where it is.
    "method.outer_lr": 1,
    "method.outer_momentum": 0,
}


@pytest.fixture
def start() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers, without --new and --join those that go on in their folders, and ends them after the test."""
    with ExitStack() as stack:

        def start(folder: Path, *arguments: str) -> WorkerProcess:
            is_new = {"--new", "--join"} & {*arguments}
            worker = WorkerProcess(folder, *arguments) if is_new else Resumed(folder, *arguments)
            stack.callback(worker.end)
            return worker

        yield start


def founding(text: Path, rounds: int, stages: int | str = STAGES) -> tuple[str, ...]:
    text.write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    cut: dict[str, object] = {"pipeline.stages": stages, "pipeline.replicas": 1, "pipeline.microbatches": 2}
    settings = SETTINGS | {"run.rounds": rounds} | (cut if stages else {})
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return "--new", "--data", str(text), *words


def placed(worker: WorkerProcess) -> set[int]:
    return {event["stage"] for event in worker.events("stage_placed")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_stage_heals_and_the_run_ends_with_every_micro_batch_counted_once(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    founder = start(tmp_path / "0", *founding(tmp_path / "text", ROUNDS))
    joiners = [start(tmp_path / str(number), "--join", founder.address) for number in range(1, STAGES + 1)]
    keeps_nothing = ("--checkpoint-every", "0")
    spare = start(tmp_path / "spare", "--join", founder.address, "--stage", "spare", *keeps_nothing)
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


def saved_steps(folder: Path, stage: int) -> list[int]:
    """Of the checkpoints of a stage, the newest first."""
    return [one.manifest.step for one in found_in(folder / f"stage-{stage}") if one.manifest is not None]


def all_killed(start: Callable[..., WorkerProcess], folder: Path, rounds: int) -> tuple[dict[Path, int], int]:
    """The folders of a head and three stages, with what each held, and the newest step that all have."""
    stages, often = 3, ("--checkpoint-every", "1s")
    settings = ("--set", "task.settings.model.num_layers=3")
    founder = start(folder / "0", *founding(folder / "text", rounds, stages), *settings, *often)
    joiners = [start(folder / str(number), "--join", founder.address, *often) for number in range(1, stages + 1)]
    crew = [founder, *joiners]
    wait_for(lambda: all(placed(worker) for worker in crew), "a holder of every stage", PATIENCE_S)
    held = {worker.folder: min(placed(worker)) for worker in crew}
    wait_for(
        lambda: all(len(saved_steps(folder, stage)) > 1 for folder, stage in held.items()), "checkpoints", PATIENCE_S
    )
    kill(*crew)
    saved = [set(saved_steps(folder, stage)) for folder, stage in held.items()]
    common = max(set.intersection(*saved))
    assert common > 0
    return held, common


def knows_another(folder: Path) -> bool:
    book = read_book(folder)
    return book is not None and len(book.addresses) > 0


def all_end(workers: list[WorkerProcess]) -> None:
    wait_for(lambda: None not in [worker.popen.poll() for worker in workers], "the end of the run", PATIENCE_S)
    assert [worker.code() for worker in workers] == [0] * len(workers), [worker.stderr for worker in workers]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_are_killed_and_go_on_from_the_newest_step_that_all_have(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    rounds = 40
    held, common = all_killed(start, tmp_path, rounds)
    again = [start(folder) for folder in held]
    all_end(again)
    for worker in again:
        (first, second) = worker.events("stage_placed")
        assert (second["stage"], second["step"], second["source"]) == (first["stage"], common, "checkpoint")
        (resumed,) = worker.events("resumed")
        assert resumed["step"] == common
    steps = [event["step"] for event in again[0].events("batch_counted") if event["stage"] == 0]
    assert steps[-1] == rounds * INNER_STEPS - 1
    after = steps[steps.index(steps[-1]) - (rounds * INNER_STEPS - common) + 1 :]
    assert after == list(range(common, rounds * INNER_STEPS))
    ends = {tuple(saved_steps(folder, stage)[:1]) for folder, stage in held.items()}
    assert ends == {(rounds * INNER_STEPS,)}
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_are_killed_and_go_on_with_another_number_of_stages(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    rounds = 40
    held, common = all_killed(start, tmp_path, rounds)
    again = [Resumed(folder, "--stages", "2") for folder in held]
    try:
        all_end(again)
    finally:
        for worker in again:
            worker.end()
    placed_again = {event["stage"]: event for worker in again for event in worker.events("stage_placed")[1:]}
    assert {(stage, event["step"], event["source"]) for stage, event in placed_again.items()} == {
        (stage, common, "checkpoint") for stage in range(3)
    }
    resumed = [event for worker in again for event in worker.events("resumed")]
    assert {event["step"] for event in resumed} == {common}
    # Two that take the stage at the same moment hold it together.
    joined = [event for event in resumed if "the stage: its blocks come from 2 of another cut" in event["anew"]]
    assert joined
    assert all("inner optimizer and data position" in event["kept"] for event in joined)
    steps = [event["step"] for event in again[0].events("batch_counted") if event["stage"] == 0]
    assert steps[-1] == rounds * INNER_STEPS - 1
    weights, _, _ = parts_from_paths([str(folder) for folder in held])
    whole, _ = assemble(weights, "newest")
    assert (whole.round, span_of(whole.load())) == (rounds, (0, 3))
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_of_a_whole_model_go_on_in_stages_and_one_as_a_whole_again(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    often = ("--checkpoint-every", "1s")
    first = start(tmp_path / "0", *founding(tmp_path / "text", 5000, 0), *often)
    second = start(tmp_path / "1", "--join", first.address, *often)
    crew = [first, second]
    wait_for(lambda: all(newest(worker.folder) is not None for worker in crew), "checkpoints", PATIENCE_S)
    wait_for(lambda: all(knows_another(worker.folder) for worker in crew), "each in the other's book", PATIENCE_S)
    kill(*crew)
    saved = max(made.step for worker in crew if (made := newest(worker.folder)) is not None)

    in_stages = ("--stages", "2", "--set", "pipeline.microbatches=2")
    crew = [start(worker.folder, *in_stages) for worker in crew]
    (one, other) = (worker.folder for worker in crew)
    wait_for(lambda: {stage for worker in crew for stage in placed(worker)} == {0, 1, 2}, "all stages", PATIENCE_S)
    resumed = [event for worker in crew for event in worker.events("resumed")]
    assert {event["step"] for event in resumed} == {saved}
    assert all("inner optimizer" in event["kept"] and "data position" in event["anew"] for event in resumed)
    held = {stage: worker.folder for worker in crew for stage in placed(worker)}

    def common() -> int:
        """The newest step at which all stages are saved."""
        steps = [set(saved_steps(folder, stage)) for stage, folder in held.items()]
        return max(set.intersection(*steps), default=0)

    wait_for(lambda: common() > saved, "a step at which all stages are saved", PATIENCE_S)
    kill(*crew)
    step = common()

    refused = start(one, "--stages", "0")
    assert refused.code() == ExitCode.CONFIG
    assert "nobody here has a checkpoint of" in refused.stderr
    for stage in (stage for stage, folder in held.items() if folder == other):
        shutil.copytree(other / f"stage-{stage}", one / f"stage-{stage}", dirs_exist_ok=True)
    rounds = step // INNER_STEPS + 20
    last = start(one, "--stages", "0", "--set", f"run.rounds={rounds}")
    all_end([last])
    event = last.events("resumed")[-1]
    assert (event["step"], "inner optimizer" in event["kept"], "data position" in event["anew"]) == (step, True, True)
    end = newest(one)
    assert end is not None
    assert (end.step, end.round) == (rounds * INNER_STEPS, rounds)
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blocks_move_to_who_comes_and_away_from_who_leaves(start: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    blocks = 6
    settings = ("--set", f"task.settings.model.num_layers={blocks}", "--set", "run.min_workers=3")
    founder = start(tmp_path / "0", *founding(tmp_path / "text", 60, "auto"), *settings)
    first = [start(tmp_path / str(number), "--join", founder.address) for number in (1, 2)]
    wait_for(lambda: founder.events("batch_counted"), "batches", PATIENCE_S)
    assert [sum(stop - first for first, stop in cut["spans"]) for cut in founder.events("recut")] == [blocks]

    third = start(tmp_path / "3", "--join", founder.address)
    wait_for(lambda: placed(third), "blocks of the third", PATIENCE_S)
    third.popen.terminate()
    wait_for(lambda: third.popen.poll() is not None, "the end of the third", PATIENCE_S)
    wait_for(lambda: len(founder.events("recut")[-1]["spans"]) == 2, "its blocks at the others", PATIENCE_S)

    living = [founder, *first]
    wait_for(lambda: None not in [worker.popen.poll() for worker in living], "the end of the run", PATIENCE_S)
    assert [worker.code() for worker in living] == [0] * len(living)
    cuts = founder.events("recut")
    # On a busy machine one of the first two may be slow to get ready, and has its blocks a little later.
    assert {2, 3} <= {len(cut["spans"]) for cut in cuts} <= {1, 2, 3}
    assert not founder.events("stage_lost")
    batches = [(event["batch"], index) for event in founder.events("batch_counted") for index in event["indices"]]
    counted = Counter(
        (event["batch"], index)
        for worker in (*living, third)
        for event in worker.events("batch_counted")
        if event["stage"] == 1
        for index in event["indices"]
    )
    assert counted == Counter(batches)
    assert not processes_of(tmp_path)

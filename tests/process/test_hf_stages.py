"""A model of transformers in stages as real processes: one is killed, a spare heals it, transformers reads the end."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from decentral.cli.assemble import assemble
from decentral.cli.sources import parts_from_paths
from scripts.benches.counted import Strike, account
from tests.process.command import P, Process, WorkerProcess, wait_for
from tests.process.test_hf import START_S, up, validation_loss
from tests.process.test_pipeline import placed
from tests.support.hf import make_folder, write_rows

STAGES, ROUNDS, INNER_STEPS = 4, 20, 10
SETTINGS = {
    "method.inner_steps": INNER_STEPS,
    "method.outer_lr": 1,
    "method.outer_momentum": 0,
    "run.rounds": ROUNDS,
    "eval_every_rounds": 1,
    "pipeline.microbatches": 2,
    "task.settings.batch_sequences": 4,
    "task.settings.data.prefetch": 0,
    "task.settings.optimizer.learning_rate": 0.003,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["llama"])
def test_a_killed_stage_heals_and_transformers_reads_the_whole(
    start: Callable[[P], P], tmp_path: Path, kind: str
) -> None:
    model, rows = make_folder(tmp_path / "model", kind, num_layers=STAGES), write_rows(tmp_path / "rows.jsonl")
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    here = ("--model", str(model))
    founder = up(start(WorkerProcess(tmp_path / "0", "--new", *here, "--stages", "4", "--data", str(rows), *words)))
    joining = ("--join", founder.address, *here, "--data", str(rows))
    crew = [founder, *(start(WorkerProcess(tmp_path / str(number), *joining)) for number in range(1, STAGES + 1))]
    spare = start(WorkerProcess(tmp_path / "spare", *joining, "--stage", "spare", "--checkpoint-every", "0"))
    wait_for(lambda: all(placed(worker) for worker in crew), "a holder of every stage", START_S)
    up(spare)
    wait_for(lambda: founder.events("stretch_done"), "steps", START_S)

    (victim,) = (worker for worker in crew if placed(worker) == {2})
    victim.popen.kill()
    victim.popen.wait()
    struck = Strike("victim", time.time(), frozenset({2}))
    (healed,) = wait_for(lambda: spare.events("stage_recovered"), "the stage healed", START_S)
    assert (healed["stage"], healed["source"]) == (2, "blend")

    living = [worker for worker in (*crew, spare) if worker is not victim]
    wait_for(lambda: None not in [worker.popen.poll() for worker in living], "the end of the run", START_S)
    assert [worker.code() for worker in living] == [0] * len(living), [worker.stderr for worker in living]
    names = {"victim" if worker is victim else worker.folder.name: worker for worker in (*crew, spare)}
    made = account({name: worker.events("batch_counted") for name, worker in names.items()}, [struck], STAGES)
    assert made.wrong == []
    assert made.batches == ROUNDS * INNER_STEPS

    ensure_learnt(start, tmp_path, living, model)


def ensure_learnt(start: Callable[[P], P], tmp_path: Path, workers: Sequence[WorkerProcess], model: Path) -> None:
    """What is exported of a founder and others is what they hold, and is better than what they began with."""
    parts, _, _ = parts_from_paths([str(worker.folder) for worker in workers])
    out = tmp_path / "out"
    export = start(Process(tmp_path / "export", "export", *(str(w.folder) for w in workers), "--out", str(out)))
    assert export.code() == 0, export.stderr
    written = AutoModelForCausalLM.from_pretrained(out)
    whole, _ = assemble(parts, "newest")
    for name, value in written.named_parameters():
        assert torch.equal(value, whole.load()[name]), name
    config = workers[0].folder / "config.toml"
    assert validation_loss(out, config) < validation_loss(model, config) - 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_muon_trains_stages_in_two_bits(start: Callable[[P], P], tmp_path: Path) -> None:
    model, rows = make_folder(tmp_path / "model", num_layers=2), write_rows(tmp_path / "rows.jsonl")
    outer = ("method.outer_lr", "method.outer_momentum")
    words = [word for key, value in SETTINGS.items() if key not in outer for word in ("--set", f"{key}={value}")]
    here = ("--model", str(model), "--data", str(rows))
    founder = up(start(WorkerProcess(tmp_path / "0", "--new", "--method", "muloco", "--stages", "2", *here, *words)))
    crew = [founder, *(start(WorkerProcess(tmp_path / at, "--join", founder.address, *here)) for at in "12")]
    wait_for(lambda: None not in [worker.popen.poll() for worker in crew], "the end of the run", START_S)
    assert [worker.code() for worker in crew] == [0, 0, 0], [worker.stderr for worker in crew]
    config = (founder.folder / "config.toml").read_text()
    assert 'name = "Muon"' in config
    assert 'codec = "int2-b128"' in config
    ensure_learnt(start, tmp_path, crew, model)

"""A swarm of real processes whose run explodes: it goes back by itself, and ends as if nothing had been."""

from collections.abc import Callable
from pathlib import Path

import pytest

from decentral.errors import ExitCode
from tests.process.command import P, WorkerProcess, founding, wait_for

SETTINGS = {"task.settings.explodes": 40, "run.on_ruin": "rollback", "eval_every_rounds": 1, "run.min_workers": 2}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_run_that_explodes_goes_back_on_all_workers_and_ends_in_order(
    start: Callable[[P], P], tmp_path: Path
) -> None:
    hurry = tmp_path / "hurry"
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    founder = start(WorkerProcess(tmp_path / "a", *founding(hurry, step_s=0.1, rounds=150), *settings))
    other = start(WorkerProcess(tmp_path / "b", "--join", founder.address))
    workers = [founder, other]
    wait_for(lambda: all(worker.events("rolled_back") for worker in workers), "a rollback of both")
    hurry.touch()
    assert [worker.code() for worker in workers] == [ExitCode.OK, ExitCode.OK]
    (one,), (two,) = (worker.events("rolled_back") for worker in workers)
    assert (one["round"], one["to_round"], one["val_loss"]) == (two["round"], two["to_round"], two["val_loss"])
    assert "rolled back to the anchor of round" in other.stderr
    losses = {event["round"]: event["val_loss"] for event in founder.events("validated")}
    assert losses[one["round"]] > 1e3
    assert losses[max(losses)] < one["val_loss"]
    assert not any(worker.events("repaired") for worker in workers)

"""What a local run is compared with, up to the processes."""

import math

import pytest

from decentral.cli.local.compare import Comparison, check, controls_of, step_s, told
from decentral.cli.local.processes import Processes
from decentral.config.resolve import resolve
from decentral.config.settings import load
from decentral.errors import UsageError

SPARSE = ["method.name=sparseloco", "method.inner_steps=3", "run.rounds=100", "run.min_workers=4", "run.seed=7"]


def swarm_of(*settings: str):
    return resolve(load(None, [*SPARSE, *settings]).swarm)


def test_controls_differ_from_the_run_in_method_and_batch_alone() -> None:
    swarm = swarm_of("task.settings.batch_sequences=5", "task.settings.optimizer.learning_rate=0.01")
    alone, whole = controls_of(swarm, 4, threads=1, cores=2)
    assert alone.swarm.task == swarm.task
    assert whole.swarm.task.settings == {**swarm.task.settings, "batch_sequences": 20}
    for control in (alone, whole):
        assert (control.swarm.run.seed, control.swarm.run.min_workers) == (7, 1)
        assert control.swarm.run.rounds * control.swarm.method.inner_steps == 300
        # Of the one worker that there is the anchor becomes what it has: nothing is rounded, nothing overshoots.
        method = control.swarm.method
        assert (method.outer_lr, method.outer_momentum, method.codec, method.mean_codec) == (1.0, 0.0, "fp32", "fp32")
    assert alone.swarm.run.name != whole.swarm.run.name


def test_controls_share_the_cores() -> None:
    alone, whole = controls_of(swarm_of(), 4, threads=1, cores=8)
    assert (alone.threads, whole.threads) == (1, 7)
    assert controls_of(swarm_of(), 4, threads=1, cores=1)[1].threads == 1
    assert step_s(0.01, 4, threads=1, cores=2) == pytest.approx(0.04)
    assert step_s(0.01, 4, threads=1, cores=5) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("processes", "settings", "why"),
    [
        (Processes(3, num_stages=2), [], "is a pipeline"),
        (Processes(1), [], "has one worker"),
        (Processes(4), ["task.factory=decentral.workers.toy:build"], "no batch_sequences"),
    ],
)
def test_what_cannot_be_compared_is_refused(processes: Processes, settings: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check(swarm_of(*settings), processes)


def test_share_of_the_gain() -> None:
    found = Comparison(2.0, 1.625, 1.5, 1_000, 120_000)
    assert found.kept == 0.75
    lines = told(found, 4, 1200).splitlines()
    assert lines[0] == "alone            2.000  one worker, 1,200 steps"
    assert (
        lines[-1] == "kept             75% of what data-parallel training gains over one worker, for 120x fewer bytes"
    )


def test_without_a_gain_there_is_no_share() -> None:
    assert math.isnan(Comparison(1.5, 1.6, 1.5, 1, 2).kept)
    assert "as well" in told(Comparison(1.5, 1.6, 1.5, 0, 0), 4, 1)

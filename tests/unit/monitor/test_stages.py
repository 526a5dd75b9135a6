"""What ``status`` makes of a pipeline's records."""

import math
from dataclasses import replace

import pytest

from decentral.monitor.report import Health, RunFacts, StageRow, StatusReport, WorkerRow
from decentral.monitor.stages import stage_numbers
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

RUN = RunFacts("run-1", "diloco", "int8-b128", 40, 5, "0.1.0", "c0ffee", num_stages=3)

Aged = tuple[Presence, float]


def record(name: str, holds: str, *, takes: str = "", state: State = State.TRAINING, round: int = 5, **metrics) -> Aged:
    age_s = metrics.pop("age_s", 0.5)
    peer = PeerId(f"peer-of-{name}")
    return Presence(peer, "run-1", 1, state, round, 0, "", holds=holds, takes=takes, metrics=Metrics(**metrics)), age_s


def status(*rows: Aged, run: RunFacts = RUN) -> StatusReport:
    return summarize(run, rows, ttl_s=6.0)


def whole(*others: Aged) -> StatusReport:
    """A pipeline with a holder of every stage."""
    return status(record("hhhhhh", "0"), record("aaaaaa", "1"), record("bbbbbb", "2,3"), *others)


def worker(report: StatusReport, name: str) -> WorkerRow:
    return next(row for row in report.workers if row.id == name)


def stage(report: StatusReport, number: int) -> StageRow:
    assert report.stages[number].stage == number
    return report.stages[number]


def test_a_pipeline_with_all_its_stages_is_healthy():
    report = whole()
    assert report.health is Health.HEALTHY
    assert [row.holders for row in report.stages] == [("hhhhhh",), ("aaaaaa",), ("bbbbbb",), ("bbbbbb",)]
    assert {row.reason for row in report.stages} == {""}
    assert [(row.id, row.holds, row.contributes) for row in report.workers] == [
        ("aaaaaa", (1,), True),
        ("bbbbbb", (2, 3), True),
        ("hhhhhh", (0,), True),
    ]


def test_without_a_pipeline_there_are_no_stages_and_nobody_is_a_spare():
    report = status(record("aaaaaa", ""), run=replace(RUN, num_stages=0))
    assert report.stages == ()
    assert report.workers[0].contributes


def test_a_spare_waits_and_is_no_trouble_however_far_the_others_are():
    report = whole(record("ssssss", "", round=0), record("tttttt", "", takes="2", round=0, state=State.JOINING))
    assert report.health is Health.HEALTHY
    assert (worker(report, "ssssss").reason, worker(report, "tttttt").reason) == ("waits as a spare", "takes stage 2")
    assert report.totals.contributing == 3
    trouble = whole(record("ssssss", "", reason="not enough memory"))
    assert (trouble.health, worker(trouble, "ssssss").reason) == (Health.DEGRADED, "not enough memory")


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ([], "stage 2 has no holder: it waits for a worker to take it"),
        ([record("ssssss", "")], "stage 2 has no holder: the spare has to take it"),
        ([record("ssssss", ""), record("tttttt", "")], "stage 2 has no holder: one of 2 spares has to take it"),
        ([record("ssssss", ""), record("tttttt", "3", takes="2")], "stage 2 has no holder: tttttt takes it"),
        (
            [record("dddddd", "2", age_s=60.0), record("bbbbbb", "2,3", age_s=12.0)],
            "stage 2 has no holder: bbbbbb, its last, was last seen 12 s ago; it waits for a worker to take it",
        ),
        (
            [record("bbbbbb", "2,3", state=State.LEAVING), record("ssssss", "")],
            "stage 2 has no holder: bbbbbb, its last, has left; the spare has to take it",
        ),
    ],
)
def test_a_stage_that_nobody_holds_degrades_the_swarm_and_its_row_says_who_will(others, reason):
    report = status(record("hhhhhh", "0"), record("aaaaaa", "1,3"), *others)
    assert report.health is Health.DEGRADED
    assert [row.reason for row in report.stages] == ["", "", reason, ""]
    assert stage(report, 2).holders == ()


def test_the_head_is_called_by_its_name():
    report = status(record("aaaaaa", "1-3"), record("bbbbbb", "1,2,3"))
    assert stage(report, 0).reason == "the head has no holder: it waits for a worker to take it"


def test_when_the_run_is_over_nobody_is_missed():
    done = [record("hhhhhh", "0", state=State.DONE, age_s=60.0), record("aaaaaa", "1", state=State.DONE)]
    assert status(*done, record("bbbbbb", "2,3", state=State.LEAVING)).health is Health.HEALTHY
    report = status(*done, record("bbbbbb", "2"))
    assert [row.reason[:7] for row in report.stages] == ["", "", "", "stage 3"]


def test_stages_have_rounds_of_their_own_and_replicas_keep_up_with_each_other():
    report = whole(record("cccccc", "1", round=9), record("dddddd", "2", round=1))
    assert report.totals.round == 9
    assert worker(report, "aaaaaa").reason == "behind: in round 5, the swarm is in 9"
    assert worker(report, "dddddd").reason == "behind: in round 1, the swarm is in 5"
    assert worker(report, "bbbbbb").reason == ""
    calm = summarize(replace(RUN, gossip=True), [record("aaaaaa", "1"), record("cccccc", "1", round=9)], ttl_s=6.0)
    assert [row.reason for row in calm.workers] == ["", ""]


def test_tokens_and_losses_are_those_of_the_heads():
    told = {"loss": 2.0, "tokens": 100, "tokens_per_s": 10.0, "val_loss": 2.5, "resent": 3, "activation_bytes": 7}
    other = {"loss": 9.0, "tokens": 100, "tokens_per_s": 10.0, "activation_bytes": 5}
    totals = status(
        record("hhhhhh", "0", **told),
        record("iiiiii", "0,1", loss=4.0, tokens=50, tokens_per_s=10.0),
        record("jjjjjj", "0", age_s=60.0, tokens=1, loss=99.0),
        record("aaaaaa", "2", **other),
        record("ssssss", "", **other),
    ).totals
    assert (totals.tokens, totals.tokens_per_s, totals.loss, totals.val_loss) == (151, 20.0, 3.0, 2.5)
    assert (totals.resent, totals.activation_bytes) == (3, 17)
    assert math.isnan(status(record("aaaaaa", "2", **other)).totals.loss)


def test_load_queue_and_time_of_a_stage_are_its_holders():
    report = status(
        record("hhhhhh", "0", wall_s=10.0, compute_s=2.0, queue=1),
        record("aaaaaa", "1", wall_s=10.0, compute_s=5.0, queue=2, microbatch_s=0.25),
        record("bbbbbb", "1,2", wall_s=10.0, compute_s=10.0, queue=4, microbatch_s=0.75),
        record("dddddd", "1", wall_s=10.0, queue=100, microbatch_s=100.0, age_s=60.0),
    )
    assert (stage(report, 1).load, stage(report, 1).queue, stage(report, 1).microbatch_s) == (0.75, 6, 0.5)
    assert (stage(report, 2).load, stage(report, 2).queue) == (1.0, 4)
    assert math.isnan(stage(report, 0).microbatch_s)
    assert math.isnan(stage(report, 3).load)


def test_failures_are_those_that_one_head_saw_and_recoveries_those_of_all_workers():
    report = whole(
        record("iiiiii", "0", failures="2:3,1:1"),
        record("jjjjjj", "0", failures="2:2,3:4,0:1"),
        record("cccccc", "2,3", recoveries=2, recovery="stage 3 blended: loss 2.1 before, 2.9 after", age_s=3.0),
        record("dddddd", "3", recoveries=1, recovery="stage 3 from a checkpoint", age_s=1.0),
        record("eeeeee", "2", recoveries=1, recovery="from a replica"),
        record("ffffff", "0,1", recoveries=1, recovery="the head from a copy"),
        record("gggggg", "", recoveries=1, recovery="?"),
    )
    assert [row.failures for row in report.stages] == [1, 1, 3, 4]
    assert [row.recoveries for row in report.stages] == [1, 0, 1, 3]
    assert [row.recovery for row in report.stages] == [
        "the head from a copy",
        "",
        "from a replica",
        "stage 3 from a checkpoint",
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", ()),
        ("2", (2,)),
        ("3,0,3", (0, 3)),
        ("4", ()),
        ("-1,1-2,x,,  ,1.0,²", ()),
        ("1," + "9" * 150, (1,)),
    ],
)
def test_what_a_stranger_calls_its_stages(text, numbers):
    assert stage_numbers(text, 3) == numbers


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -1.0, 1e308])
@pytest.mark.parametrize("text", ["", ":", "2:", ":1", "2:-1", "x:1,2:y", "99:1", "2:" + "9" * 90, "\x1b[2J:1"])
def test_absurd_records_do_no_harm(absurd, text):
    times = {"wall_s": absurd, "compute_s": absurd, "microbatch_s": absurd}
    evil = record("eeeeee", "2", failures=text, recovery=text, recoveries=1, queue=(1 << 62) - 1, **times)
    report = whole(evil, record("vvvvvv", text, takes=text))
    assert len(report.stages) == 4
    assert [row.failures for row in report.stages] == [0, 0, 0, 0]
    assert 0 <= stage(report, 2).load <= 1
    report.to_json()

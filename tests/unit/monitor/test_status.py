import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from decentral.monitor.report import Health, RunFacts, StatusReport, WorkerRow
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

GOSSIP = RunFacts("run-1", "noloco", "int8-b128", 40, 1, "0.1.0", "c0ffee", gossip=True)
RUN = RunFacts("run-1", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")


def record(name: str, *, run: str = "run-1", seq: int = 1, state: State = State.TRAINING, round: int = 5, **metrics):
    digest = metrics.pop("digest", f"d{round}")
    return Presence(PeerId(name), run, seq, state, round, 0, digest, metrics=Metrics(**metrics))


def status(*rows: Presence | tuple[Presence, float], run: RunFacts = RUN) -> StatusReport:
    return summarize(run, [row if isinstance(row, tuple) else (row, 0.5) for row in rows], ttl_s=6.0)


def row(report: StatusReport, name: str) -> WorkerRow:
    return next(worker for worker in report.workers if worker.peer == name)


def test_a_swarm_in_step_is_healthy_and_every_worker_contributes():
    report = status(record("b"), record("a"), record("c", round=4, state=State.SYNCING))
    assert report.health is Health.HEALTHY
    assert [worker.peer for worker in report.workers] == ["a", "b", "c"]
    assert all(worker.contributes and not worker.reason for worker in report.workers)
    assert (report.totals.round, report.totals.contributing) == (5, 3)


def test_nobody_is_empty():
    report = status()
    assert report.health is Health.EMPTY
    assert math.isnan(report.totals.loss)
    assert report.workers == ()


@pytest.mark.parametrize(
    ("troubled", "age_s", "reason"),
    [
        (record("b"), 12.4, "not seen for 12 s"),
        (record("b", state=State.REPAIRING), 0.1, "repairing: its weights differ from the swarm's"),
        (record("b", state=State.STALLED, reason="no inner step for 40 s"), 0.1, "no inner step for 40 s"),
        (record("b", state=State.STALLED), 0.1, "takes no inner steps"),
        (record("b", round=3), 0.1, "behind: in round 3, the swarm is in 5"),
        (record("b", reason="sitting out: non-finite"), 0.1, "sitting out: non-finite"),
        (record("b", digest="other"), 0.1, "out of sync: its weights differ from other workers' in round 5"),
    ],
)
def test_one_worker_in_trouble_degrades_the_swarm_and_its_row_says_why(troubled, age_s, reason):
    report = status(record("a"), record("c"), (troubled, age_s))
    assert report.health is Health.DEGRADED
    assert row(report, "b").reason == reason
    assert not row(report, "b").contributes
    assert [worker.contributes for worker in report.workers] == [True, False, True]
    assert row(report, "b").state == ("lost" if age_s > 6 else troubled.state)


def test_whoever_is_known_to_have_ended_is_lost_although_its_record_is_new_and_its_speed_does_not_count():
    rows = [(record("a", tokens_per_s=5.0), 0.1), (record("b", tokens_per_s=5.0, round=9), 0.1)]
    report = summarize(RUN, rows, ttl_s=6.0, ended={PeerId("b"): "was killed by SIGKILL"})
    assert (row(report, "b").state, row(report, "b").reason) == ("lost", "was killed by SIGKILL")
    assert (report.totals.tokens_per_s, report.totals.round) == (5.0, 5)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.JOINING, "downloads the current weights"),
        (State.LEAVING, "has left"),
        (State.DONE, "has finished the run"),
    ],
)
def test_coming_and_going_is_no_trouble(state, reason):
    report = status(record("a"), record("b", state=state, round=0))
    assert report.health is Health.HEALTHY
    assert row(report, "b").reason == reason
    assert report.totals.contributing == 1


def test_a_worker_that_left_and_went_silent_is_no_trouble():
    report = status(record("a"), (record("b", state=State.LEAVING), 99.0), (record("c", state=State.DONE), 99.0))
    assert report.health is Health.HEALTHY
    assert [worker.state for worker in report.workers] == ["training", "leaving", "done"]


def test_if_all_are_silent_or_gone_the_swarm_is_empty_but_still_shown():
    report = status((record("a"), 60.0), record("b", state=State.LEAVING))
    assert report.health is Health.EMPTY
    assert [worker.reason for worker in report.workers] == ["not seen for 60 s", "has left"]


def test_a_finished_run_is_healthy():
    report = status(record("a", state=State.DONE, loss=2.0), record("b", state=State.DONE, loss=4.0))
    assert report.health is Health.HEALTHY
    assert report.totals.loss == 3.0


def test_if_two_workers_differ_and_nobody_leads_both_are_out_of_sync():
    report = status(record("a", digest="x"), record("b", digest="y"))
    assert [worker.contributes for worker in report.workers] == [False, False]


def test_the_round_before_the_newest_has_other_weights_and_that_is_fine():
    assert status(record("a", digest="x"), record("b", round=4, digest="y")).health is Health.HEALTHY


def test_the_newest_record_of_a_peer_counts_and_other_runs_do_not():
    report = status(record("a", seq=2, round=9), record("a", seq=1, round=1), record("z", run="other"))
    assert [(worker.peer, worker.round) for worker in report.workers] == [("a", 9)]


def test_losses_are_weighted_by_tokens_of_the_last_round_and_nan_is_left_out():
    report = status(
        record("a", loss=2.0, tokens_per_s=300.0),
        record("b", loss=4.0, tokens_per_s=100.0),
        record("c", loss=math.nan, tokens_per_s=1e9),
    )
    assert report.totals.loss == pytest.approx(2.5)


def test_absurd_numbers_from_a_peer_do_no_harm():
    report = status(
        record("a", loss=math.inf, tokens_per_s=math.nan, compute_s=-1.0, waiting_s=math.inf, val_loss=math.nan),
        record("b", loss=2.0, tokens_per_s=-5.0, compute_s=1e308, waiting_s=1e308, transfer_s=1e308),
    )
    assert report.totals.loss == 2.0
    assert report.totals.tokens_per_s == 0.0
    assert row(report, "a").waiting_share == 0.0
    assert row(report, "b").compute_share == pytest.approx(1 / 3)
    assert json.loads(report.to_json())["workers"][0]["loss"] is None


def test_totals_add_up_over_the_workers():
    report = status(
        record("a", tokens=100, tokens_per_s=10.0, sent_bytes=10, dp_bytes=400, val_loss=2.0, val_round=4, round=6),
        record("b", tokens=50, tokens_per_s=5.0, sent_bytes=30, dp_bytes=400, val_loss=1.5, val_round=5),
        (record("c", tokens=1, tokens_per_s=99.0), 60.0),
    )
    totals = report.totals
    assert (totals.tokens, totals.tokens_per_s) == (151, 15.0)
    assert (totals.sent_bytes, totals.dp_bytes, totals.dp_ratio) == (40, 800, 20.0)
    assert totals.val_loss == 1.5


def test_before_training_shares_are_of_what_is_accounted_for():
    worker = row(status(record("a", compute_s=6.0, waiting_s=3.0, transfer_s=1.0)), "a")
    assert (worker.compute_share, worker.waiting_share, worker.transfer_share) == pytest.approx((0.6, 0.3, 0.1))


def test_shares_are_of_the_time_since_training_began():
    worker = row(status(record("a", wall_s=20.0, compute_s=6.0, waiting_s=3.0, transfer_s=1.0)), "a")
    assert (worker.compute_share, worker.waiting_share, worker.transfer_share) == pytest.approx((0.3, 0.15, 0.05))
    short = row(status(record("a", wall_s=5.0, compute_s=6.0, waiting_s=3.0, transfer_s=1.0)), "a")
    assert (short.compute_share, short.waiting_share, short.transfer_share) == pytest.approx((0.6, 0.3, 0.1))


@pytest.mark.parametrize(("data_s", "share"), [(0.0, 0.0), (1.5, 0.075), (9.0, 0.3), (math.nan, 0.0), (-1.0, 0.0)])
def test_waiting_for_data_is_part_of_the_time_of_the_steps(data_s, share):
    worker = row(status(record("a", wall_s=20.0, compute_s=6.0, data_s=data_s)), "a")
    assert worker.data_share == pytest.approx(share)


def test_rates_are_over_the_time_since_training_began_and_unknown_before():
    peaks = {"peak_sent_bytes_per_s": 9.0, "peak_received_bytes_per_s": 7.0}
    moved = {"sent_bytes": 100, "received_bytes": 60, **peaks}
    report = status(record("a", wall_s=20.0, **moved), record("b", **moved), record("c", wall_s=-1.0, **moved))
    means = [(worker.sent_bytes_per_s, worker.received_bytes_per_s) for worker in report.workers]
    assert means == [(5.0, 3.0), (0.0, 0.0), (0.0, 0.0)]
    assert {(w.peak_sent_bytes_per_s, w.peak_received_bytes_per_s) for w in report.workers} == {(9.0, 7.0)}
    early = row(status(record("a", wall_s=2.0, **moved)), "a")
    assert (early.sent_bytes_per_s, early.received_bytes_per_s) == (9.0, 7.0)


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -math.inf, -1.0, 5e-324, 1e308])
def test_absurd_times_and_rates_leave_shares_and_rates_plausible(absurd):
    peaks = {"peak_sent_bytes_per_s": absurd, "peak_received_bytes_per_s": absurd}
    times = {"compute_s": absurd, "waiting_s": 1.0, "transfer_s": absurd}
    for wall_s in (absurd, 10.0):
        worker = row(status(record("a", wall_s=wall_s, sent_bytes=(1 << 62) - 1, **times, **peaks)), "a")
        shares = (worker.compute_share, worker.waiting_share, worker.transfer_share)
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) <= 1 + 1e-9
        rates = (worker.wall_s, worker.sent_bytes_per_s, worker.peak_sent_bytes_per_s, worker.peak_received_bytes_per_s)
        assert all(0 <= rate < math.inf for rate in rates)


def test_in_gossip_anchors_differ_and_rounds_too_and_nobody_is_in_trouble_for_it():
    workers = [record("a", digest="", round=9), record("b", digest="", round=9), record("c", digest="", round=2)]
    report = status(*workers, run=GOSSIP)
    assert report.health is Health.HEALTHY
    assert (report.totals.contributing, report.totals.round) == (3, 9)
    assert row(status(*workers), "c").reason == "behind: in round 2, the swarm is in 9"


def test_in_gossip_other_trouble_is_still_told():
    report = status((record("a", digest=""), 12.4), record("b", digest="", reason="not finite"), run=GOSSIP)
    assert [worker.reason for worker in report.workers] == ["not seen for 12 s", "not finite"]


def test_a_row_says_whom_a_worker_swapped_with_and_whom_it_avoids():
    workers = record("a", partners="bbbbbb,cccccc", spread=0.013, rounds_alone=2, one_sided=1, avoids="dddddd")
    worker = row(status(workers, record("b"), run=GOSSIP), "a")
    assert (worker.partners, worker.avoids) == (("bbbbbb", "cccccc"), ("dddddd",))
    assert (worker.spread, worker.rounds_alone, worker.one_sided) == (0.013, 2, 1)
    lone = row(status(workers, record("b"), run=GOSSIP), "b")
    assert (lone.partners, lone.avoids) == ((), ())
    assert math.isnan(lone.spread)


def test_the_spread_of_a_swarm_is_the_median_of_the_active_workers_that_know_theirs():
    report = status(
        record("a", spread=0.01),
        record("b", spread=0.02),
        record("c", spread=9.0),
        record("d"),
        record("e", spread=math.inf),
        record("f", spread=-1.0),
        record("g", spread=8.0, state=State.DONE),
        (record("h", spread=8.0), 60.0),
        run=GOSSIP,
    )
    assert report.totals.spread == 0.02
    assert math.isnan(row(report, "e").spread)
    assert math.isnan(row(report, "f").spread)
    assert math.isnan(status(record("a"), run=GOSSIP).totals.spread)


def test_replicas_each_validate_their_own_anchor_and_the_newest_counts():
    report = status(record("a", val_loss=2.0, val_round=8), record("b", val_loss=3.0, val_round=4), run=GOSSIP)
    assert report.totals.val_loss == 2.0


def test_the_json_is_versioned_strict_and_fully_documented(request):
    pipeline = replace(RUN, num_stages=2)
    parsed = json.loads(status(record("a"), run=pipeline).to_json(), parse_constant=pytest.fail)
    assert parsed["schema_version"] == 2
    assert parsed["health"] == "degraded"
    assert parsed["stages"][2]["load"] is None
    assert parsed["totals"]["dp_ratio"] is None
    text = (request.config.rootpath / "docs" / "status-schema.md").read_text()
    fields = [*parsed, *parsed["run"], *parsed["totals"], *parsed["workers"][0], *parsed["stages"][0]]
    assert [field for field in fields if f"`{field}`" not in text] == []


def test_the_summary_does_not_import_torch():
    code = "import sys, decentral.monitor.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_note_is_something_to_look_into_although_the_worker_contributes():
    report = status(record("a", note="cannot save: disk full"), record("b"), record("c", state=State.DONE, note="past"))
    assert report.health is Health.DEGRADED
    troubled = row(report, "a")
    assert (troubled.contributes, troubled.healthy, troubled.reason) == (True, False, "")
    assert troubled.note == "cannot save: disk full"
    assert row(report, "c").healthy

import json
import math

from msgspec.structs import replace

from decentral.monitor.events import Launched, RoundAborted, RoundMixed, Saved, Stopped, StretchDone
from decentral.monitor.history import _MAX_EVENTS, _MAX_ROUNDS, _MAX_SAMPLES, History, HistoryJournal
from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

RUN = RunFacts("run-1", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")
A, B, C = (PeerId(f"Qm{name * 6}") for name in "abc")


def report(*peers: PeerId, age_s: float = 0.5, **figures) -> StatusReport:
    rows = [
        (Presence(peer, "run-1", 1, State.TRAINING, 5, 0, "d", metrics=Metrics(**figures)), age_s) for peer in peers
    ]
    return summarize(RUN, rows, ttl_s=6.0)


def mixed(round: int, *members: PeerId, absent=(), **changes) -> RoundMixed:
    event = RoundMixed(round, 0, members, absent, 1.0, 0.0, 10, 10, 0.1, 0.1, "d", held_s=0.25)
    return replace(event, **changes)


def test_what_is_told_since_is_what_is_new():
    history = History()
    history.sample(100.0, report(A, B, loss=3.0, step=10))
    first = history.state()
    assert first["samples"]["loss"] == [3.0]
    assert first["samples"]["time"] == [100.0]
    assert first["losses"][A] == {"id": "aaaaaa", "loss": [3.0]}
    assert first["status"]["workers"][1]["peer"] == B
    history.sample(102.0, report(A, B, loss=2.5, step=20))
    second = history.state(first["seq"])
    assert (second["samples"]["step"], second["losses"][B]["loss"]) == ([20], [2.5])
    assert second["id"] == first["id"]
    assert history.state(second["seq"])["samples"]["loss"] == []
    json.dumps(history.state(), allow_nan=False)


def test_a_report_that_is_shown_again_is_no_sample():
    history, last = History(), report(A, loss=3.0)
    history.sample(100.0, last)
    history.sample(110.0, last)
    assert history.state()["samples"]["time"] == [100.0]
    assert history.state()["time"] == 100.0


def test_a_worker_that_comes_late_has_no_losses_before():
    history = History()
    history.sample(100.0, report(A, loss=3.0))
    history.sample(102.0, report(A, B, loss=2.0))
    history.sample(104.0, report(B, loss=1.0))
    losses = history.state()["losses"]
    assert (losses[A]["loss"], losses[B]["loss"]) == ([3.0, 2.0, None], [None, 2.0, 1.0])


def test_a_long_run_is_kept_more_coarsely_to_its_end():
    history = History()
    for second in range(5 * _MAX_SAMPLES):
        history.sample(float(second), report(A, loss=float(second + 1)))
    samples = history.state()["samples"]
    assert _MAX_SAMPLES / 2 <= len(samples["time"]) <= _MAX_SAMPLES
    assert {len(values) for values in samples.values()} == {len(samples["time"])}
    assert samples["time"] == sorted(samples["time"])
    assert samples["time"][0] < 16
    assert samples["time"][-1] > 5 * _MAX_SAMPLES - 16
    assert history.state()["losses"][A]["loss"] == [time + 1 for time in samples["time"]]


def test_a_round_is_told_once_with_all_that_workers_say_of_it():
    history = History()
    mine, other = (HistoryJournal(history, lambda: 50.0, peer) for peer in (A, B))
    mine.record(mixed(7, A, C, absent=((B, "did not answer in 5.0 s"),)))
    before = history.state()["seq"]
    other.record(RoundAborted(7, 0, "timeout", "a reducer", (), 1.0, held_s=2.0))
    (row,) = history.state(before)["rounds"]
    assert (row["round"], row["mixed"], row["members"], row["held_s"]) == (7, 1, 2, 2.0)
    assert row["absent"] == {"bbbbbb": "did not answer in 5.0 s"}
    assert row["failed"] == {"bbbbbb": "timeout: a reducer"}


def test_a_fragment_is_on_its_way_until_its_worker_ends_it_be_it_in_a_later_round():
    history = History()
    mine, other = (HistoryJournal(history, lambda: 50.0, peer) for peer in (A, B))
    for journal in (mine, other):
        journal.record(Launched(7, 0, 100))
        journal.record(Launched(7, 1, 110))
    mine.record(mixed(8, A))
    flying = {(row["round"], row["fragment"]): row["flying"] for row in history.state()["rounds"]}
    assert flying == {(7, 0): ["bbbbbb"], (7, 1): ["aaaaaa", "bbbbbb"], (8, 0): []}
    other.record(Stopped("asked", 7, 1000))
    assert [row["flying"] for row in history.state()["rounds"]] == [[], ["aaaaaa"], []]


def test_rounds_of_stages_are_apart():
    history = History()
    journal = HistoryJournal(history, lambda: 50.0, A)
    for stage in (0, 1):
        journal.of_stage(stage).record(mixed(7, A))
    assert [row["stage"] for row in history.state()["rounds"]] == [0, 1]


def test_events_and_rounds_are_bounded_and_one_kind_does_not_push_out_another():
    history = History()
    journal = HistoryJournal(history, lambda: 50.0, A)
    journal.record(Saved("/somewhere", 3, nbytes=10))
    for number in range(3 * _MAX_ROUNDS):
        journal.record(mixed(number, A, absent=tuple((PeerId(f"peer{i}"), "x" * 1000) for i in range(40))))
        journal.record(StretchDone(number, number, 1, math.nan, 1.0))
        history.take({"time": 1.0, "event": "restrained", "peer": B, "kind": "y" * 10_000}, A)
    state = history.state()
    assert len(state["rounds"]) == _MAX_ROUNDS
    assert [line["event"] for line in state["events"]].count("saved") == 1
    assert len(state["events"]) == 1 + _MAX_EVENTS
    assert len(json.dumps(state)) < 2_000_000


def test_without_a_journal_rounds_are_those_that_figures_tell():
    history = History()
    history.sample(100.0, report(A, B, rounds_in=3))
    history.sample(102.0, report(A, B, rounds_in=4))
    (row,) = history.state()["rounds"]
    assert (row["round"], row["mixed"]) == (4, 2)
    assert not history.state()["has_journal"]
    history.sample(104.0, report(A, B, rounds_in=4, rounds_out=1, reason="no quorum"))
    assert history.state()["rounds"][0]["failed"] == {"aaaaaa": "no quorum", "bbbbbb": "no quorum"}


def test_a_worker_that_falls_silent_is_an_event_and_its_age_is_no_news():
    history = History()
    history.sample(100.0, report(A))
    for age_s in (7.0, 9.0, 11.0):
        history.sample(100.0 + age_s, report(A, age_s=age_s))
    told = [line for line in history.state()["events"] if line["event"] == "changed" and line["reason"]]
    assert [line["reason"] for line in told] == ["not seen for 7 s"]


def test_checkpoints_are_told_by_records_where_no_journal_is():
    history = History()
    HistoryJournal(history, lambda: 50.0, A).record(Saved("/mine", 3, step=60))
    for time, step in ((100.0, 0), (102.0, 60), (104.0, 60)):
        history.sample(time, report(A, B, C, saved_step=step))
    saved = [line for line in history.state()["events"] if line["event"] == "saved"]
    told = [(line["by"], line["step"], line.get("others")) for line in saved]
    assert told == [("aaaaaa", 60, None), ("bbbbbb", 60, ["cccccc"])]

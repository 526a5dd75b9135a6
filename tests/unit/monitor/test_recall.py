import json

from decentral.monitor.events import Resumed, Started, Stopped, StretchDone, Validated
from decentral.monitor.history import History
from decentral.monitor.journal import JsonLinesJournal
from decentral.monitor.recall import _MAX_SAMPLES, recall
from decentral.types import PeerId

ME = PeerId("QmMeMeMe")
#: More stretches than are kept as samples.
NUM = 3 * _MAX_SAMPLES


class Clock:
    now = 1000.0

    def __call__(self):
        self.now += 2.0
        return self.now


def lived(path, run="run-1", first=0, tokens=0):
    """Write a life of so many stretches into a journal of small files."""
    journal = JsonLinesJournal(path, CLOCK, 200_000)
    journal.record(Started(run, ME, "0.1.0", "cpu", "c0"))
    if tokens:
        journal.record(Resumed(10 * first, first, tokens, 0, 0, (), ()))
    for number in range(first, first + NUM):
        journal.record(StretchDone(number, 10 * number, 100, 5.0 - number / NUM, 1.5))
        if number % 9 == 0:
            journal.record(Validated(number, 4.5))
    journal.record(Stopped("asked to stop", first + NUM, 100 * NUM))
    journal.close()


CLOCK = Clock()


def test_earlier_lives_are_samples_and_events_of_a_later_one_and_another_runs_are_not(tmp_path):
    path = tmp_path / "journal.jsonl"
    lived(path, "run-of-before")
    lived(path)
    lived(path, first=NUM, tokens=100 * NUM)
    with path.open("ab") as file:  # what a disk may do
        file.write(b'{"time": "late", "event": "stretch_done"}\n{"time": 1, "event": "round_mixed", "members": 5}\nxx')
    history = History()
    recall(history, path, "run-1", ME)
    state = history.state()
    samples = state["samples"]
    assert _MAX_SAMPLES / 2 < len(samples["time"]) <= _MAX_SAMPLES
    assert samples["tokens"][-1] == 100 * 2 * NUM
    assert samples["tokens"] == sorted(samples["tokens"])
    assert samples["tokens_per_s"][-1] == 50
    assert (samples["step"][-1], samples["val_loss"][-1]) == (10 * (2 * NUM - 1), 4.5)
    assert state["losses"][ME]["loss"] == samples["loss"]
    assert [line["event"] for line in state["events"]] == ["started", "stopped", "started", "resumed", "stopped"]
    json.dumps(state, allow_nan=False)


def test_only_the_end_of_a_long_journal_is_read(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    lived(path)
    monkeypatch.setattr("decentral.monitor.recall._MAX_BYTES", 2000)
    history = History()
    recall(history, path, "run-1", ME)
    samples = history.state()["samples"]
    assert 5 < len(samples["time"]) < 20
    assert set(samples["tokens"]) == {None}  # how many were before is not known
    assert samples["step"][-1] == 10 * (NUM - 1)


def test_without_a_journal_there_is_nothing(tmp_path):
    history = History()
    recall(history, tmp_path / "journal.jsonl", "run-1", ME)
    assert history.state()["samples"]["time"] == []

import json
import math
from pathlib import Path

import pytest

from decentral.errors import ConfigError
from decentral.monitor.events import PeerLost, RoundMixed, StageLost, StretchDone, Validated
from decentral.monitor.journal import FanOut, JournalReader, JsonLinesJournal, MemoryJournal, event_name
from decentral.types import PeerId

#: Bytes.
MANY = 1_000_000


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path: Path) -> list[dict[str, object]]:
    return JournalReader(path).read()


class FullDisk:
    """A file that takes only as many bytes as there is room for."""

    def __init__(self, file, room: int) -> None:
        self.file = file
        self.room = room

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def close(self) -> None:
        self.file.close()


def test_each_event_is_one_json_line_with_time_and_name(tmp_path):
    journal = JsonLinesJournal(tmp_path / "deep" / "journal.jsonl", lambda: 1234.5678, MANY)
    a, b = PeerId("peer-a"), PeerId("peer-b")
    journal.record(RoundMixed(3, 0, (a,), ((b, "no reply"),), 1.5, 0.5, 10, 20, 0.1, 0.2, "d1"))
    journal.record(PeerLost(b, "gone"))
    mixed, lost = lines(tmp_path / "deep" / "journal.jsonl")
    assert mixed["time"] == 1234.568
    assert mixed["event"] == "round_mixed"
    assert mixed["members"] == ["peer-a"]
    assert mixed["absent"] == [["peer-b", "no reply"]]
    assert lost == {"time": 1234.568, "event": "peer_lost", "peer": "peer-b", "reason": "gone"}
    journal.close()


def test_a_float_that_is_not_finite_is_null(tmp_path):
    journal = JsonLinesJournal(tmp_path / "j", lambda: 0.0, MANY)
    journal.record(StretchDone(0, 5, 100, math.nan, math.inf))
    assert lines(tmp_path / "j")[0]["loss"] is None
    assert lines(tmp_path / "j")[0]["seconds"] is None
    journal.close()


def test_events_are_on_disk_before_the_journal_is_closed(tmp_path):
    journal = JsonLinesJournal(tmp_path / "j", lambda: 0.0, MANY)
    journal.record(Validated(1, 2.0))
    assert len(read(tmp_path / "j")) == 1
    journal.close()


@pytest.mark.parametrize("room", [0, 20])
def test_a_full_disk_never_raises_and_is_reported_when_there_is_room_again(tmp_path, room):
    path = tmp_path / "j"
    journal = JsonLinesJournal(path, lambda: 0.0, MANY)
    disk = FullDisk(journal._file, room)
    journal._file = disk
    journal.record(Validated(1, 1.0))
    journal.record(Validated(2, 1.0))
    assert journal.dropped == 2
    disk.room = 10_000
    journal.record(Validated(3, 1.0))
    journal.record(Validated(4, 1.0))
    assert [(e["event"], e.get("round", e.get("count"))) for e in read(path)] == [
        ("dropped", 2),
        ("validated", 3),
        ("validated", 4),
    ]
    journal.close()


def test_an_event_after_close_is_counted_as_dropped(tmp_path):
    journal = JsonLinesJournal(tmp_path / "j", lambda: 0.0, MANY)
    journal.close()
    journal.record(Validated(1, 1.0))
    assert journal.dropped == 1


def test_a_line_torn_by_a_kill_does_not_swallow_the_next_run(tmp_path):
    path = tmp_path / "j"
    path.write_text('{"time": 1, "event": "validated", "round": 1}\n{"time": 2, "ev')
    journal = JsonLinesJournal(path, lambda: 3.0, MANY)
    journal.record(Validated(7, 1.0))
    journal.close()
    assert [event["round"] for event in read(path)] == [1, 7]


def test_reading_a_journal_that_is_not_there_gives_nothing(tmp_path):
    assert read(tmp_path / "none") == []


def test_a_journal_that_cannot_be_opened_says_which_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Cannot write the journal .*file") as caught:
        JsonLinesJournal(tmp_path / "file" / "j", lambda: 0.0, MANY)
    assert "--out" in caught.value.hint


def test_a_reader_gives_each_event_once_and_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "j"
    reader = JournalReader(path)
    journal = JsonLinesJournal(path, lambda: 0.0, MANY)
    journal.record(Validated(1, 1.0))
    assert [event["round"] for event in reader.read()] == [1]
    with path.open("a") as file:
        file.write('{"time": 0, "event": "validated", ')
        file.flush()
        assert reader.read() == []
        file.write('"round": 2}\n[1]\n')
    assert [event["round"] for event in reader.read()] == [2]
    journal.close()


def test_fan_out_passes_events_to_all():
    one, two = MemoryJournal(), MemoryJournal()
    FanOut(one, two).record(Validated(1, 1.0))
    assert one.events == two.events == [Validated(1, 1.0)]


def test_the_memory_journal_keeps_order():
    journal = MemoryJournal()
    events = [Validated(1, 1.0), PeerLost(PeerId("p"), "x")]
    for event in events:
        journal.record(event)
    assert journal.events == events


def test_names_are_the_class_in_snake_case():
    assert event_name(StretchDone(0, 0, 0, 0.0, 0.0)) == "stretch_done"


def test_a_stage_of_a_pipeline_has_lines_of_its_own_in_the_same_file(tmp_path):
    journal = JsonLinesJournal(tmp_path / "j", lambda: 100.0, MANY)
    journal.record(Validated(1, 2.0))
    journal.of_stage(3).record(Validated(2, 2.0))
    journal.of_stage(3).record(StageLost(stage=1, step=7, loss=2.0))
    journal.close()
    events = JournalReader(tmp_path / "j").read()
    assert [(event["event"], event.get("stage")) for event in events] == [
        ("validated", None),
        ("validated", 3),
        ("stage_lost", 1),
    ]

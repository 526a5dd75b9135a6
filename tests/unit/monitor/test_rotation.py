import os
import random
from pathlib import Path

import pytest

from decentral.monitor import rotation
from decentral.monitor.events import PeerLost
from decentral.monitor.journal import JournalReader, JsonLinesJournal
from decentral.types import PeerId

#: Bytes in all: about ten events a file.
FEW = 4000


def event(number: int, rng: random.Random) -> PeerLost:
    """The number, and some more text."""
    return PeerLost(PeerId(str(number)), "x" * rng.randrange(60))


def told(events: list[dict[str, object]]) -> list[int]:
    return [int(str(event["peer"])) for event in events if event["event"] == "peer_lost"]


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("seed", range(2))
def test_many_events_stay_within_the_bound_and_readers_get_them_in_order(tmp_path: Path, seed: int) -> None:
    """One reads often and misses nothing; one is slower than the bound and has gaps, but nothing twice."""
    rng, path = random.Random(seed), tmp_path / "journal.jsonl"
    journal = JsonLinesJournal(path, lambda: 0.0, FEW)
    often, seldom = JournalReader(path), JournalReader(path)
    seen: list[int] = []
    seen_seldom: list[int] = []
    for number in range(1000):
        if rng.random() < 0.01:  # the worker starts again
            journal.close()
            journal = JsonLinesJournal(path, lambda: 0.0, FEW)
        journal.record(event(number, rng))
        assert bytes_in(tmp_path) <= FEW
        if rng.random() < 0.15 or number % 20 == 0:
            seen += told(often.read())
        if rng.random() < 0.005:
            seen_seldom += told(seldom.read())
    assert seen + told(often.read()) == list(range(1000))
    seen_seldom += told(seldom.read())
    assert seen_seldom == sorted(set(seen_seldom))
    assert len(seen_seldom) < 1000
    kept = told(JournalReader(path).read())
    assert kept == list(range(kept[0], 1000))
    assert len(kept) > 20
    assert journal.dropped == 0
    journal.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_reader_loses_nothing_while_files_are_renamed_under_it(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are written between any two steps of the reader, and it reads between any two of the writer."""
    rng, path = random.Random(seed), tmp_path / "journal.jsonl"
    journal, reader = JsonLinesJournal(path, lambda: 0.0, FEW), JournalReader(path)
    seen: list[int] = []
    busy, written = {"reading": False, "writing": False}, 0

    def write() -> None:
        nonlocal written
        if not busy["writing"] and written < 1500:
            busy["writing"] = True
            journal.record(event(written, rng))
            written += 1
            busy["writing"] = False

    def read() -> None:
        if not busy["reading"]:
            busy["reading"] = True
            seen.extend(told(reader.read()))
            busy["reading"] = False

    def between(step):
        def done(*args, **kwargs):
            for act in (write, read):
                for _ in range(rng.randrange(8) if rng.random() < 0.5 else 0):
                    act()
            return step(*args, **kwargs)

        return done

    monkeypatch.setattr(rotation, "numbers", between(rotation.numbers))
    monkeypatch.setattr(rotation.os, "rename", between(os.rename))
    monkeypatch.setattr(rotation.os, "unlink", between(os.unlink))
    monkeypatch.setattr(Path, "open", between(Path.open))
    while written < 1500:
        write()
        read()
    monkeypatch.undo()
    seen += told(reader.read())
    assert seen == list(range(1500))
    journal.close()


def test_a_file_that_cannot_be_put_aside_costs_events_and_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, path = random.Random(0), tmp_path / "journal.jsonl"
    journal, reader = JsonLinesJournal(path, lambda: 0.0, FEW), JournalReader(path)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(rotation.os, "rename", refuse)
        for number in range(100):
            journal.record(event(number, rng))
    assert 0 < journal.dropped < 100
    assert bytes_in(tmp_path) <= FEW // 4
    journal.record(event(100, rng))
    events = reader.read()
    assert [e["count"] for e in events if e["event"] == "dropped"] == [journal.dropped]
    assert told(events) == [*range(100 - journal.dropped), 100]
    journal.close()


def test_a_file_put_aside_is_never_written_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if there is no room for the next one."""
    path = tmp_path / "journal.jsonl"
    journal, reader = JsonLinesJournal(path, lambda: 0.0, FEW), JournalReader(path)
    number = 0
    with monkeypatch.context() as broken:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        broken.setattr(Path, "open", full)
        while not journal.dropped:
            journal.record(PeerLost(PeerId(str(number)), "x" * 300))
            number += 1
        aside = rotation.file_of(path, 1).stat().st_size
        journal.record(PeerLost(PeerId(str(number)), ""))  # shorter: it would still go into the old one
        assert journal.dropped == 2
        assert rotation.file_of(path, 1).stat().st_size == aside
        assert not path.exists()
    journal.record(PeerLost(PeerId(str(number + 1)), ""))
    assert told(reader.read()) == [*range(number - 1), number + 1]
    journal.close()


def test_a_line_without_room_is_dropped_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = JsonLinesJournal(path, lambda: 0.0, FEW)
    journal.record(PeerLost(PeerId("1"), "x" * FEW))
    journal.record(PeerLost(PeerId("2"), ""))
    assert (journal.dropped, told(JournalReader(path).read())) == (1, [2])
    journal.close()


def test_files_of_another_name_are_let_be(tmp_path: Path) -> None:
    for name in ("journal.x.jsonl", "journal.01.jsonl", "journal.1.jsonl.part", "my-journal.2.jsonl", "journal.3.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "journal.12.jsonl").write_text("")
    assert rotation.numbers(tmp_path / "journal.jsonl") == [12]
    assert rotation.numbers(tmp_path / "none" / "journal.jsonl") == []


def test_a_journal_whose_full_files_were_cleared_up_is_still_followed(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "journal.jsonl"
    journal, reader = JsonLinesJournal(path, lambda: 0.0, FEW), JournalReader(path)
    for number in range(25):
        journal.record(event(number, rng))
    seen = told(reader.read())
    for full in rotation.numbers(path):
        rotation.file_of(path, full).unlink()
    for number in range(25, 200):
        journal.record(event(number, rng))
        seen += told(reader.read())
    assert seen == list(range(200))
    journal.close()

"""Rows of files as batches: every token once, the same split everywhere, and on from where it was."""

import contextlib
import gzip
import json
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasets")

import datasets

from decentral.config.resolve import stated_here
from decentral.config.settings import load
from decentral.errors import ConfigError, DataError
from decentral.ports.trainer import Seat
from decentral.run.rows import Alone
from decentral.workers.hf.data import DataSettings, TrainingData, open_data
from decentral.workers.hf.data.reading import Relay

NUM_ROWS = 90
END = 1


class Letters:
    """A tokenizer: a token for each character."""

    eos_token_id = END

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _text(row: int) -> str:
    return f"<{row}>" * (1 + row % 4)


def _write(path, rows, field="text"):
    path.write_text("".join(json.dumps({"id": row, field: _text(row)}) + "\n" for row in rows))
    return str(path)


def _table(path, rows) -> str:
    """The rows in the format of a file's suffix."""
    table = datasets.Dataset.from_dict({"id": list(rows), "text": [_text(row) for row in rows]})
    {".parquet": table.to_parquet, ".csv": table.to_csv}[path.suffix](path)
    return str(path)


@pytest.fixture
def rows(tmp_path) -> str:
    return _write(tmp_path / "rows.jsonl", range(NUM_ROWS))


def _open(*data, claims=None, length=16, named="", **changed) -> TrainingData:
    seat = Seat(run_seed=5, stream_seed=0, total_steps=10, data=data, dataset=named, claims=claims)
    settings = DataSettings(**{"prefetch": 0, "held_out": 0.1, **changed})
    return open_data(settings, Letters(), seat=seat, run_seed=5, seq_len=length, batch_rows=2)


def _documents(batches) -> list[str]:
    """The texts in the batches, without the last one, which may be cut."""
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist()
    return "".join(chr(token) for token in ids).split(chr(END))[:-1]


def _equal(one, other) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_once_an_epoch_without_padding_and_none_that_is_held_out(rows, streaming):
    data = _open(rows, streaming=streaming)
    held_out = {text.strip("\0") for text in _documents(data.validation())}
    expected = {_text(row) for row in range(NUM_ROWS)} - held_out
    assert 0 < len(held_out) < NUM_ROWS / 3

    tokens = sum(len(text) + 1 for text in expected)
    batches = list(islice(data, 1 + tokens // 32))

    assert all((batch["labels"] == batch["input_ids"]).all() for batch in batches)
    documents = _documents(batches)
    assert sorted(documents[: len(expected)]) == sorted(expected)


@pytest.mark.parametrize(("streaming", "weights"), [(False, ""), (True, ""), (False, "1,3")])
def test_it_goes_on_in_the_middle_of_a_document(tmp_path, rows, streaming, weights):
    other = _write(tmp_path / "other.jsonl", range(NUM_ROWS, NUM_ROWS + 30))
    first = _open(rows, other, streaming=streaming, weights=weights, document_mask=True)
    list(islice(first, 11))
    state = json.loads(json.dumps(first.state_dict()))
    again = _open(rows, other, streaming=streaming, weights=weights, document_mask=True)
    again.load_state_dict(state)

    assert _equal(list(islice(first, 60)), list(islice(again, 60)))


def test_workers_that_share_claims_read_each_row_once_and_none_twice(rows):
    claims = Alone()
    one, other = [_documents(list(islice(_open(rows, claims=claims, length=4), 20))) for _ in range(2)]

    assert min(len(one), len(other)) > 8
    assert not set(one) & set(other)


def test_the_split_goes_by_the_text_and_not_by_files_or_order(tmp_path, rows):
    halves = [_write(tmp_path / "b.jsonl", range(40, NUM_ROWS)), _write(tmp_path / "a.json", reversed(range(40)))]
    one, other = _open(rows), _open(*halves)

    assert _equal(list(one.validation()), list(other.validation()))
    assert _equal(list(islice(one, 9)), list(islice(other, 9)))


def test_a_folder_of_parquet_and_csv_and_packed_lines_has_the_rows_of_one_file(tmp_path, rows):
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    _table(inner / "a.csv", range(60, NUM_ROWS))
    _table(inner.parent / "b.parquet", range(25))
    lines = Path(_write(tmp_path / "c.jsonl", range(25, 60))).read_bytes()
    (inner / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    (inner / "notes.pdf").write_bytes(b"not text")
    one, other = _open(rows), _open(str(inner.parent))

    assert _equal(list(one.validation()), list(other.validation()))
    assert _equal(list(islice(one, 9)), list(islice(other, 9)))


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # datasets closes no CSV that is not read to its end
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_stream_of_a_table_has_each_row_once(tmp_path, suffix):
    file = _table(tmp_path / f"rows{suffix}", range(NUM_ROWS))
    data = _open(file, streaming=True, held_out=0)
    documents = _documents(list(islice(data, 1 + sum(len(_text(row)) + 1 for row in range(NUM_ROWS)) // 32)))

    assert sorted(documents[:NUM_ROWS]) == sorted(map(_text, range(NUM_ROWS)))


def test_a_document_mask_begins_positions_anew_and_predicts_no_first_token(rows):
    batch = next(_open(rows, document_mask=True))
    ids, labels, positions = (batch[name].flatten() for name in ("input_ids", "labels", "position_ids"))
    begins = (ids.roll(1) == END) & (torch.arange(len(ids)) > 0)

    assert begins.any()
    assert (positions[begins] == 0).all()
    assert (labels[begins] == -100).all()
    assert (positions[1:] - positions[:-1])[~begins[1:] & (torch.arange(1, 32) != 16)].eq(1).all()
    assert torch.equal(labels[1:][~begins[1:]], ids[1:][~begins[1:]])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_has_the_shares_of_its_weights_in_tokens(tmp_path, rows, streaming):
    other = _table(tmp_path / "other.parquet", range(1000, 1060))
    documents = _documents(islice(_open(rows, other, weights="3,1", streaming=streaming), 200))
    of_other = sum(len(text) + 1 for text in documents if len(text.split(">")[0]) > 4)

    assert of_other / sum(len(text) + 1 for text in documents) == pytest.approx(0.25, abs=0.01)


def test_it_shows_some_text_and_counts_the_tokens(rows):
    lines = _open(rows).describe().splitlines()
    assert len(lines) == 4
    assert "tokens to train on" in lines[0]
    assert all("<" in line for line in lines[1:])


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_is_said(tmp_path, rows, streaming):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "no.jsonl").touch()
    table = _table(tmp_path / "rows.parquet", range(NUM_ROWS))
    whole = Path(table).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "void.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    (tmp_path / "set").mkdir()
    _write(tmp_path / "set" / "rows.jsonl", range(NUM_ROWS))
    named = {"dataset": str(tmp_path / "set"), "named": str(tmp_path / "set")}
    for data, changed, error, words in (
        ([str(tmp_path / "gone.jsonl")], {}, DataError, "gone.jsonl' does not exist"),
        ([rows], {"text_field": "body"}, DataError, "fields are id, text"),
        ([table], {"text_field": "body"}, DataError, "fields are id, text"),
        ([str(tmp_path / "cut.parquet")], {}, DataError, "cut.parquet: "),
        ([rows], {"text_field": "id"}, DataError, "int64, not text"),
        ([str(tmp_path / "bad.jsonl")], {}, DataError, "bad.jsonl, line 2"),
        ([str(tmp_path / "empty")], {}, DataError, "no file with text"),
        ([str(tmp_path / "empty" / "no.jsonl")], {}, DataError, "no file with text"),
        ([str(tmp_path / "void.jsonl")], {}, DataError, "no row with text"),
        ([], {**named, "split": "nothing"}, DataError, "data.split"),
        ([rows], {"weights": "1,2"}, ConfigError, "2 numbers for 1 data sets"),
        ([rows], {"weights": "1,-2"}, ConfigError, "numbers above 0"),
        ([rows], {"held_out": 1e-9}, DataError, "held out"),
        ([], {}, ConfigError, "--data"),
        ([], {"dataset": "nobody/has-it"}, DataError, "--allow-download"),
    ):
        with pytest.raises(error) as caught:
            _open(*data, streaming=streaming, **changed)
        assert words in f"{caught.value} {caught.value.hint}"


def test_a_folder_that_only_others_have_named_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    _write(tmp_path / "some" / "rows.jsonl", range(NUM_ROWS))
    (tmp_path / "words.txt").write_text("a secret")
    for name in (str(tmp_path / "some"), "some", "./some", "../nowhere", "text", "json:x"):
        with pytest.raises(ConfigError, match="nobody has named on this machine"):
            _open(dataset=name)
    stated = stated_here(load(None, [f"task.settings.data.dataset={tmp_path / 'some'}"]))
    assert "rows held out" in _open(dataset=stated.dataset, named=stated.dataset).describe()


def test_blocks_are_read_here_until_a_process_is_up_and_none_twice():
    up, relay = threading.Event(), Relay(iter(range(100)))
    here, theirs = relay.here(), relay.handed_over(up)
    assert [next(here), next(here)] == [0, 1]
    up.set()
    assert [next(theirs), next(theirs)] == [2, 3]
    assert list(here) == []
    closed = Relay(iter(range(100)))
    closed.close()
    assert list(closed.handed_over(up)) == []
    failed = Relay(iter(range(100)))
    failed.loaded.set_exception(OSError("no process can be started"))
    assert list(failed.here()) == []
    with pytest.raises(OSError, match="no process"):
        next(failed.theirs())


@pytest.mark.slow
@pytest.mark.timeout(400)  # a process that is started imports torch and datasets
@pytest.mark.parametrize("streaming", [False, True])
def test_processes_that_read_ahead_change_nothing(rows, streaming):
    here, ahead = _open(rows, streaming=streaming), _open(rows, streaming=streaming, prefetch=2)
    list(islice(ahead, 7))
    again = _open(rows, streaming=streaming, prefetch=1)
    again.load_state_dict(ahead.state_dict())
    ahead.close()
    list(islice(here, 7))

    assert _equal(list(islice(again, 2)), list(islice(here, 2)))
    _wait_for(again._readers[0]._relay.loaded.done)
    assert _equal(list(islice(again, 300)), list(islice(here, 300)))
    again.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_reads_ahead_ends_with_the_one_that_trains_even_if_that_is_killed_at_once(rows):
    code = (
        "import sys, itertools; from tests.unit.workers.hf.test_data import _open\n"
        "if __name__ == '__main__': list(itertools.islice(_open(sys.argv[1], prefetch=1), 1_000_000))"
    )
    trains = subprocess.Popen([sys.executable, "-c", code, rows])
    try:
        _wait_for(lambda: _spawned(trains.pid))
        spawned = _spawned(trains.pid)
    finally:
        trains.kill()
        trains.wait()
    _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in spawned))


def _spawned(parent: int) -> list[int]:
    """The processes of its own that another one has started to read ahead."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"\nPPid:\t{parent}\n" in (entry / "status").read_text()
            if is_child and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _wait_for(condition):
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)

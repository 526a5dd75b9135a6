"""What a folder remembers of its run: read back as it was, bounded, and not believed when it is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from decentral.adapters.identity import peer_id_of
from decentral.errors import ConfigError, ExitCode
from decentral.run.book import MAX_ADDRESSES, Book, read_book
from decentral.run.folder import RUN
from decentral.types import PeerId


def peer(number: int) -> PeerId:
    return peer_id_of(bytes([number]) * 50)


def at(number: int, port: int = 31337) -> str:
    return f"/ip4/203.0.113.{number}/tcp/{port}/p2p/{peer(number)}"


def texts(book: Book) -> list[str]:
    return [address.multiaddr() for address in book.addresses]


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    book = Book("demo-1", 31337)
    book.heard([at(1), at(1, port=5)])
    book.heard([at(2)])
    book.save(tmp_path)
    read = read_book(tmp_path)
    assert read == book
    assert read.peers() == [peer(2), peer(1)]
    assert read_book(tmp_path / "nothing") is None


def test_a_worker_has_its_last_addresses_and_no_more_than_two() -> None:
    book = Book("demo-1", 0)
    book.heard([at(1)])
    book.heard([at(2)])
    book.heard([at(1, port=port) for port in (7, 8, 9)])
    assert texts(book) == [at(1, 7), at(1, 8), at(2)]
    book.heard([])
    assert texts(book) == [at(1, 7), at(1, 8), at(2)]


def test_those_heard_of_last_are_kept() -> None:
    book = Book("demo-1", 0)
    for number in range(MAX_ADDRESSES + 5):
        book.heard([at(number)])
    assert book.peers() == [peer(number) for number in reversed(range(5, MAX_ADDRESSES + 5))]


GOOD: dict[str, Any] = {"format": 1, "run": "demo-1", "port": 31337, "addresses": [at(1)]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Input data was truncated"),
        (b"\xff\xfe\x00", ""),
        (b"[" * 40_000, ""),
        (b" " * 70_000, "more than 65536 bytes"),
        (json.dumps(GOOD | {"format": 2}).encode(), "of format 2, and this release reads 1"),
        (json.dumps(GOOD | {"run": ""}).encode(), "run"),
        (json.dumps(GOOD | {"run": "../up"}).encode(), "run"),
        (json.dumps(GOOD | {"port": 65_536}).encode(), "port"),
        (json.dumps(GOOD | {"port": True}).encode(), "port"),
        (json.dumps(GOOD | {"more": 1}).encode(), "more"),
        (json.dumps(GOOD | {"addresses": ["203.0.113.7:31337"]}).encode(), "does not say which worker is there"),
        (json.dumps(GOOD | {"addresses": ["rm -rf"]}).encode(), "has no port"),
        (json.dumps(GOOD | {"addresses": [7]}).encode(), "addresses"),
    ],
)
def test_what_no_worker_writes_is_damaged(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / RUN).write_bytes(data)
    with pytest.raises(ConfigError, match=r"run\.json is damaged: ") as caught:
        read_book(tmp_path)
    assert says in caught.value.message
    assert "--join ADDR" in caught.value.hint
    assert caught.value.exit_code == ExitCode.CONFIG


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    with pytest.raises(ConfigError, match=r"Cannot read .*run\.json"):
        read_book(tmp_path)


def test_it_appears_whole(tmp_path: Path) -> None:
    Book("demo-1", 1).save(tmp_path)
    (tmp_path / f"{RUN}.part").mkdir()  # nothing can be written aside
    with pytest.raises(OSError, match="directory"):
        Book("demo-1", 2).save(tmp_path)
    assert read_book(tmp_path) == Book("demo-1", 1)

import logging
import stat
from pathlib import Path

import pytest

from decentral.adapters.hivemind_light import P2P, PeerID
from decentral.adapters.identity import IdentityFile, KeyIdentity, unpack
from decentral.errors import ExitCode, IdentityError


def test_a_missing_file_is_created_private_and_read_back_as_the_same_peer(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "id.key"
    first = IdentityFile(path)
    assert first.is_new
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    first.close()
    first.close()
    again = IdentityFile(path)
    assert not again.is_new
    assert again.identity.peer_id == first.identity.peer_id
    assert first.identity.verify(again.identity.peer_id, b"x", again.identity.sign(b"x"))
    again.close()


def test_files_are_interchangeable_with_hivemind(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    P2P.generate_identity(str(theirs))
    file = IdentityFile(theirs)
    assert file.identity.peer_id == PeerID.from_identity(theirs.read_bytes()).to_base58()
    assert PeerID.from_identity(file.identity.packed()).to_base58() == file.identity.peer_id
    file.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"-----BEGIN PRIVATE KEY-----\n", "it is a PEM file"),
        (b"garbage", "no private key"),
        (b"\x08\x00\x12\x03abc", "no private key"),
        (bytes(100_000), "no private key"),
    ],
)
def test_what_is_no_identity_is_said_to_be_none(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "id.key"
    path.write_bytes(content)
    with pytest.raises(IdentityError, match=why) as caught:
        IdentityFile(path)
    assert str(path) in caught.value.message
    assert caught.value.exit_code is ExitCode.IDENTITY
    assert path.read_bytes() == content


def test_unreadable_and_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="directory"):
        IdentityFile(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match="Cannot write"):
        IdentityFile(tmp_path / "file" / "id.key")


def test_one_file_serves_one_worker_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "id.key"
    first = IdentityFile(path)
    with pytest.raises(IdentityError, match="in use by another worker on this machine"):
        IdentityFile(path)
    first.close()
    IdentityFile(path).close()


def test_a_key_that_others_can_read_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "id.key"
    KeyIdentity.generate().save(path)
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        IdentityFile(path).close()
    assert f"chmod 600 {path}" in caplog.text


def test_unpack_inverts_packed() -> None:
    identity = KeyIdentity.generate()
    assert unpack(identity.packed()).peer_id == identity.peer_id

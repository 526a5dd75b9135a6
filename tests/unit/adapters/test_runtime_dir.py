import os
import tempfile
from pathlib import Path

import pytest

from decentral.adapters.runtime_dir import RuntimeDir


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("decentral.adapters.runtime_dir._MAX_PARENT_BYTES", 1000)
    return tmp_path


def abandon(folder: RuntimeDir) -> None:
    """What a kill does: the kernel closes the files, nobody removes the folder."""
    os.close(folder._lock)


def test_a_folder_is_private_and_goes_on_close(parent: Path) -> None:
    folder = RuntimeDir()
    assert folder.path.parent == parent
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.close()
    folder.close()
    assert list(parent.iterdir()) == []


def test_the_next_node_removes_what_a_killed_one_left_and_nothing_else(parent: Path) -> None:
    live, dead, young = RuntimeDir(), RuntimeDir(), RuntimeDir()
    other = parent / "decentral-node-without-lock"
    other.mkdir()
    abandon(dead)
    abandon(young)
    for folder in (live.path, dead.path, other):
        os.utime(folder, (0, 0))
    RuntimeDir().close()
    assert set(parent.iterdir()) == {live.path, young.path, other}
    live.close()


def test_sockets_fit_under_any_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = RuntimeDir()
    assert len(os.fsencode(folder.path / "p2pclient-AAAAAAAAAAA.sock")) <= 107
    folder.close()

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from decentral.state import files
from decentral.state.files import load_weights, save_weights


def test_values_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([-1.5])}
    save_weights(path, tensors, {"round": "7", "digest": "abc"})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "round": "7", "digest": "abc"}


def test_views_into_one_vector_are_saved_as_they_are(tmp_path: Path) -> None:
    """Anchors are views into one fragment, and may not be contiguous."""
    path = tmp_path / "model.safetensors"
    whole = torch.arange(12.0)
    save_weights(path, {"a": whole[:4].view(2, 2), "b": whole[4:].view(2, 4).t()}, {})
    loaded = load_file(path)
    assert loaded["a"].tolist() == [[0, 1], [2, 3]]
    assert loaded["b"].tolist() == [[4, 8], [5, 9], [6, 10], [7, 11]]


def test_a_later_save_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for value in (1.0, 2.0):
        save_weights(path, {"a": torch.tensor([value])}, {})
    assert load_file(path)["a"].item() == 2.0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("when", ["before", "half", "library", "rename"])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, {"a": torch.tensor([1.0])}, {})
    before = path.read_bytes()

    def full_disk(*arguments: object) -> None:
        if when == "half":
            (tmp_path / "model.safetensors.part").write_bytes(b"half a file")
        if when == "library":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((files.os, "replace") if when == "rename" else (files, "save_file")), full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, {"a": torch.tensor([2.0])}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_weights(tmp_path / "gone" / "model.safetensors", {"a": torch.ones(1)}, {})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "residual.safetensors"
    save_weights(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5)}, {"run": "demo-1"})
    tensors, metadata = load_weights(path)
    assert {name: value.tolist() for name, value in tensors.items()} == {"a": [[0, 1, 2], [3, 4, 5]], "b": 1.5}
    assert metadata == {"format": "pt", "run": "demo-1"}


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "residual.safetensors"
    with pytest.raises(FileNotFoundError):
        load_weights(path)
    save_weights(path, {"a": torch.tensor([1.0, float("nan")])}, {})
    with pytest.raises(OSError, match="a has values that are not finite"):
        load_weights(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(OSError, match="not a file of tensors"):
        load_weights(path)

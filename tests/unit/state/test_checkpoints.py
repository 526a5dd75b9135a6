"""Checkpoints on disk: what is kept, and that no damage and no end in the middle costs more than the newest one."""

import dataclasses
import itertools
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from decentral.errors import ConfigError
from decentral.state.checkpoints import folder as checkpoints
from decentral.state.checkpoints import manifest
from decentral.state.checkpoints.checkpoint import About, StateError, read, read_weights
from decentral.state.checkpoints.folder import Checkpoints, newest
from decentral.state.checkpoints.manifest import BEST, CHECKPOINTS, FILES, LATEST, MANIFEST, MODEL, found_in, pointed_at
from decentral.state.worker_state import WorkerState

RUN = "demo-1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def state(step: int = 500, value: float = 1.0, **changes: Any) -> WorkerState:
    parameters = {"a": torch.full((2, 3), value), "b.c": torch.tensor([-value])}
    made = WorkerState(
        step=step,
        round=step // 100,
        tokens=10 * step,
        digest=f"digest-{value}",
        closed=False,
        anchors=parameters,
        outer={f"0/{name}": tensor / 2 for name, tensor in parameters.items()},
        own={f"local/{name}": tensor + 1 for name, tensor in parameters.items()},
        facts={"rounds": [5, 5], "pending": {"0": {"weight": 1.5}}},
        trainer={"optimizer": {"a": {"step": torch.tensor(7.0)}}, "position": 12, "words": ["x", ("y", 2)]},
    )
    return dataclasses.replace(made, **changes)


def keeper(base: Path, keep: int = 3, run: str = RUN) -> Checkpoints:
    return Checkpoints(base, About(run, "diloco", 2000), keep, wall=lambda: 1000.0)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, through all that a state may hold."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, WorkerState):
        return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b or (a != a and b != b))


def names(base: Path) -> set[str]:
    return {path.name for path in (base / CHECKPOINTS).iterdir()}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    anchor_N = torch.arange(6.0)
    views = {"a": anchor_N[:4].view(2, 2).t(), "b": anchor_N[4:], "none": torch.empty(0)}
    twice = {"local/b": anchor_N[4:], "lead/b": anchor_N[4:], "local/nan": torch.tensor(math.nan)}
    saved = state(anchors=views, own=twice, outer={}, val_loss=2.5, closed=True)
    folder = Path(keeper(tmp_path).save(saved).path)
    assert folder == tmp_path / "checkpoints" / "step_000500"
    assert equal(read(folder), saved)
    assert newest(tmp_path, RUN)[0] == folder
    found = manifest.read(folder)
    assert (found.run, found.method, found.rounds, found.time, found.val_loss) == (RUN, "diloco", 2000, 1000.0, 2.5)
    assert found.size_bytes == sum((folder / name).stat().st_size for name in FILES)


def test_the_newest_weights_are_in_the_workers_folder_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = keeper(tmp_path).save
    first = Path(save(state(1, 1.0)).path)
    assert (tmp_path / MODEL).samefile(first / MODEL)
    second = Path(save(state(2, 2.0)).path)
    assert (tmp_path / MODEL).samefile(second / MODEL)

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoints.os, "link", no_links)
    save(state(3, 3.0))
    assert load_file(tmp_path / MODEL)["b.c"].tolist() == [-3.0]
    assert load_file(second / MODEL)["b.c"].tolist() == [-2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINTS, MODEL]
    assert read_weights(first)[1] | {"decentral": ""} == {
        "run": RUN,
        "step": "1",
        "round": "0",
        "digest": "digest-1.0",
        "decentral": "",
        "format": "pt",
    }


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    save = keeper(tmp_path, keep=2).save
    for step, loss in ((1, 3.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 2.5), (6, math.nan), (7, 2.0)):
        save(state(step, float(step), val_loss=loss))
    assert names(tmp_path) == {"step_000003", "step_000006", "step_000007", LATEST, BEST}
    assert (pointed_at(tmp_path, LATEST), pointed_at(tmp_path, BEST)) == ("step_000007", "step_000003")


def test_a_run_that_went_back_goes_on_from_where_it_is(tmp_path: Path) -> None:
    """The newest one is the one written last, whatever its step."""
    save = keeper(tmp_path).save
    save(state(900, 1.0))
    save(state(500, 2.0))
    assert newest(tmp_path, RUN)[1].step == 500


def test_a_checkpoint_of_the_same_step_is_replaced_unless_it_is_the_best(tmp_path: Path) -> None:
    save = keeper(tmp_path).save
    save(state(5, 1.0))
    save(state(5, 2.0, val_loss=1.5))
    assert names(tmp_path) == {"step_000005", LATEST, BEST}
    save(state(5, 2.0, closed=True))  # the same anchors, whose loss is known
    assert names(tmp_path) == {"step_000005", LATEST, BEST}
    assert (newest(tmp_path, RUN)[1].val_loss, newest(tmp_path, RUN)[1].closed) == (1.5, True)
    for _ in range(2):
        save(state(5, 3.0))
        assert names(tmp_path) == {"step_000005", "step_000005-2", LATEST, BEST}
        assert newest(tmp_path, RUN)[1].anchors["b.c"].item() == -3.0
        assert pointed_at(tmp_path, BEST) == "step_000005"
    save(state(5, 4.0, val_loss=1.0))
    assert read(tmp_path / CHECKPOINTS / pointed_at(tmp_path, BEST)).anchors["b.c"].item() == -4.0


def test_other_runs_are_left_alone_and_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper(tmp_path, run="other-1").save(state(1, val_loss=0.1))
    for step in (2, 3, 4):
        keeper(tmp_path, keep=1).save(state(step, val_loss=5.0))
    assert names(tmp_path) == {"step_000001", "step_000002", "step_000004", LATEST, BEST}
    assert pointed_at(tmp_path, BEST) == "step_000002"
    with pytest.raises(ConfigError, match=r"no checkpoint of demo-9 .*step_000004: it is of run demo-1; .*other-1"):
        newest(tmp_path, "demo-9")
    assert caplog.text.count("cannot be used") == 3


def test_another_format_is_refused_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper(tmp_path).save(state(1))
    with monkeypatch.context() as patch:
        body = json.loads((tmp_path / CHECKPOINTS / "step_000001" / MANIFEST).read_text())
        patch.setattr(manifest, "FORMAT", 7)
        newer = tmp_path / CHECKPOINTS / "step_000002"
        shutil.copytree(newer.with_name("step_000001"), newer)
        body = {**body, "format": 7, "version": "9.9"}
        del body["seal"]
        (newer / MANIFEST).write_text(json.dumps({**body, "seal": manifest._seal(body)}))
    with pytest.raises(ConfigError, match=r"step_000002 has format 7, and this .* reads format 1 alone") as found:
        newest(tmp_path, RUN)
    assert "decentral 9.9 wrote it" in found.value.hint
    keeper(tmp_path, keep=1).save(state(3))
    assert names(tmp_path) >= {"step_000002", "step_000003"}


def test_nothing_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    save = keeper(tmp_path).save
    save(state(1))
    nan = {"a": torch.tensor([1.0, math.nan])}
    for bad in (state(2, anchors=nan), state(2, outer={"0/a": nan["a"]}), state(2, facts={"loss": math.nan})):
        with pytest.raises(StateError):
            save(bad)
        assert names(tmp_path) == {"step_000001", LATEST}


class Opaque:
    pass


def test_what_only_code_could_read_back_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save = keeper(tmp_path).save
    for step, bad in ((1, Opaque()), (2, lambda: None)):
        folder = Path(save(state(step, trainer={"loader": bad})).path)
        assert read(folder).trainer == {}
    assert caplog.text.count("the inner optimizer starts anew") == 1
    assert "test_checkpoints.Opaque" in caplog.text


def damaged(path: Path, kind: int, chance: random.Random) -> None:
    """One of the ways in which a disk or a person spoils a file."""
    data = bytearray(path.read_bytes())
    if kind == 0:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[chance.randrange(len(data)) :]
    elif kind == 2:
        data += bytes(chance.randrange(1, 100))
    elif kind == 3:
        start = chance.randrange(len(data))
        data[start : start + 16] = chance.randbytes(len(data[start : start + 16]))
    path.unlink()
    if kind == 4:
        return
    if kind == 5:
        path.mkdir()
    elif kind == 6:
        os.mkfifo(path)
    else:
        path.write_bytes(b"[" * 100_000 if kind == 7 else b'{"format": 1e999}' if kind == 8 else bytes(data))


@pytest.mark.parametrize("seeds", [range(9), pytest.param(range(9, 90), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, name: str, seeds: range, caplog: pytest.LogCaptureFixture
) -> None:
    good = state(1, val_loss=3.0)
    keeper(tmp_path).save(good)
    spoilt = Path(keeper(tmp_path).save(state(2, 2.0, val_loss=2.0)).path)
    whole = spoilt.with_name("whole")
    shutil.copytree(spoilt, whole)
    for seed in seeds:
        shutil.rmtree(spoilt)
        shutil.copytree(whole, spoilt)
        damaged(spoilt / name, seed % 9, random.Random(seed))
        caplog.clear()
        folder, found = newest(tmp_path, RUN)
        assert (folder.name, equal(found, good)) == ("step_000001", True), seed
        assert f"checkpoint {spoilt} cannot be used: " in caplog.text, seed
        if name == MODEL:
            with pytest.raises(OSError, match=name):
                read_weights(spoilt)
        elif name != MANIFEST:
            assert read_weights(spoilt)[0]["b.c"].item() == -2.0
    shutil.rmtree(spoilt.with_name("step_000001"))
    with pytest.raises(ConfigError, match=r"no checkpoint of demo-1 in .*step_000002: "):
        newest(tmp_path, RUN)


def test_a_damaged_one_goes_when_there_are_enough_newer_ones(tmp_path: Path) -> None:
    save = keeper(tmp_path, keep=2).save
    (Path(save(state(1)).path) / MANIFEST).write_bytes(b"{")
    save(state(2))
    assert "step_000001" in names(tmp_path)
    save(state(3))
    assert names(tmp_path) == {"step_000002", "step_000003", LATEST}


@pytest.mark.parametrize("name", ["write_text", "fsync", "rename", "replace", "save_file", "torch"])
def test_a_full_disk_at_any_moment_keeps_what_there_was(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that writes fails once at each of its turns; what is there afterwards is whole, and nothing else is."""
    for turn in range(30):
        base = tmp_path / str(turn)
        base.mkdir()
        good = state(1, val_loss=3.0)
        keeper(base).save(good)
        with monkeypatch.context() as patch:
            left = [turn]

            def counted(real: Any, left: list[int] = left) -> Any:
                def call(*arguments: Any, **named: Any) -> Any:
                    left[0] -= 1
                    if left[0] == -1:
                        raise RuntimeError("file write failed") if name == "torch" else OSError(28, "No space left")
                    return real(*arguments, **named)

                return call

            where, what = {
                "write_text": (Path, "write_text"),
                "save_file": (checkpoints.manifests, "write"),
                "torch": (torch, "save"),
            }.get(name, (os, name))
            patch.setattr(where, what, counted(getattr(where, what)))
            try:
                keeper(base).save(state(2, 2.0, val_loss=2.0))
            except OSError:
                fired = True
            else:
                fired = False
        found = newest(base, RUN)[1]
        assert equal(found, good) or found.step == 2
        assert not [path for path in (base / CHECKPOINTS).iterdir() if path.name.startswith(".")], turn
        if not fired:
            assert turn > 0
            return
    raise AssertionError("never came to its end")


class Killed(BaseException):
    """Nothing is done any more, not even what cleans up."""


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_at_any_moment_costs_at_most_the_newest(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call that changes names on the disk, for a new checkpoint and for one in place of another."""
    first, second = state(1, val_loss=3.0), state(step, 2.0, val_loss=2.0)
    for turn in itertools.count():
        base = tmp_path / str(turn)
        base.mkdir()
        keeper(base, keep=1).save(first)
        with monkeypatch.context() as patch:
            left = [turn]

            def mortal(real: Any, left: list[int] = left) -> Any:
                def call(*arguments: Any, **named: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed
                    return real(*arguments, **named)

                return call

            for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "scandir"):
                patch.setattr(os, name, mortal(getattr(os, name)))
            try:
                keeper(base, keep=1).save(second)
                killed = False
            except Killed:
                killed = True
        folder, found = newest(base, RUN)
        assert equal(found, first) or equal(found, second), turn
        assert folder.name in {"step_000001", "step_000002"}
        assert load_file(base / MODEL)["b.c"].item() in {-1.0, -2.0}
        keeper(base, keep=1).save(state(3, val_loss=1.0))
        assert names(base) == {"step_000003", LATEST, BEST}, turn
        if not killed:
            assert equal(found, second)
            assert turn > 15
            return


def test_an_end_in_the_middle_is_put_in_order(tmp_path: Path) -> None:
    """Killed while writing, and between the two renames of a replacement."""
    folder = Path(keeper(tmp_path).save(state(1)).path)
    half = folder.with_name(".step_000002.part")
    half.mkdir()
    (half / MODEL).write_bytes(b"half")
    os.rename(folder, folder.with_name(".step_000001.old"))
    assert found_in(tmp_path) == []
    assert newest(tmp_path, RUN)[0] == folder
    assert names(tmp_path) == {"step_000001", LATEST}


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no checkpoint of demo-1") as found:
        newest(tmp_path, RUN)
    assert "another worker of this run" in found.value.hint
    (tmp_path / CHECKPOINTS).write_text("a file")
    assert found_in(tmp_path) == []
    with pytest.raises(OSError, match="exists"):
        keeper(tmp_path).save(state(1))

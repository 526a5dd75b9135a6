"""What a player of faults on processes says that it cannot do, and what it does to folders."""

import os
from pathlib import Path

import pytest

from decentral.sim.faults import Fault, Kind
from scripts.benches.chaos import drawn
from scripts.benches.lib.command import BenchError
from scripts.benches.lib.faults import Player, damage, fill, small_disks, unable, wipe
from scripts.benches.lib.processes import Swarm

EVERY = (
    Fault(Kind.KILL, 1.0, (0,)),
    Fault(Kind.DUPLICATE, 1.0, (), 1.0, 0.1),
    Fault(Kind.CLOCK, 1.0, (0,), amount=5.0),
    Fault(Kind.MUTE, 1.0, (0,), 1.0),
    Fault(Kind.DISK_FULL, 1.0, (0,), 1.0),
)


def test_what_cannot_be_done_is_said_with_the_reason() -> None:
    said = unable(EVERY, links=False, disks=False)
    assert [line.split(":")[0] for line in said] == ["duplicate", "clock-jump", "mute", "disk-full"]
    assert "TCP" in said[0]
    assert "--links" in said[2]
    assert len(unable(EVERY, links=True, disks=True)) == 2
    assert unable(EVERY[:1], links=False, disks=False) == []


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoints/step_{step:06d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(1000))
    return path


def test_the_newest_checkpoint_is_damaged_and_no_other(tmp_path: Path) -> None:
    assert not damage(tmp_path, Kind.TORN)
    first = checkpoint(tmp_path, 5)
    assert not damage(tmp_path, Kind.TORN), "there would be nothing to go on from"
    second = checkpoint(tmp_path, 10)
    assert damage(tmp_path, Kind.FLIPPED)
    assert (second / "model.safetensors").read_bytes().count(0) == 999
    assert damage(tmp_path, Kind.TORN)
    assert (second / "model.safetensors").stat().st_size == 500
    assert (first / "model.safetensors").read_bytes() == bytes(1000)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_can_be_full_and_what_is_on_it_stays(tmp_path: Path) -> None:
    folder = tmp_path / "worker0"
    try:
        with small_disks([folder]):
            (folder / "journal.jsonl").write_text("before")
            fill(folder)
            with pytest.raises(OSError, match="No space left"):
                (folder / "checkpoint").write_bytes(bytes(1 << 20))
    except BenchError as err:
        pytest.skip(str(err))
    assert (folder / "journal.jsonl").read_text() == "before"
    assert not (folder / "filler").exists()


def test_a_disk_is_wiped_but_for_what_the_bench_reads(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    for name in ("run.json", "identity.key", "journal.jsonl", "stdout.txt"):
        (tmp_path / name).touch()
    wipe(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "stdout.txt"]


def test_faults_of_machines_that_do_not_run_have_no_effect_and_the_script_goes_on(tmp_path: Path) -> None:
    swarm, looks = Swarm(tmp_path, []), []
    swarm.add()
    checkpoint(swarm.workers[0].folder, 5)
    checkpoint(swarm.workers[0].folder, 10)
    script = (Fault(Kind.KILL, 0.0, (0,)), Fault(Kind.PAUSE, 0.0, (0,), 0.3), Fault(Kind.TORN, 0.1, (0,)))
    player = Player(swarm, script)
    player.play(lambda: looks.append(1))
    assert player.fired == [script[2]]
    assert looks
    assert player.is_quiet


@pytest.mark.parametrize("seed", range(20))
def test_drawn_scripts_can_be_carried_out(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        minutes, workers, deaths, links = 3.0 + seed, 4 + seed % 5, seed % 4, seed % 2 == 1
        stages = 2 if seed % 5 == 0 else 0

    monkeypatch.setattr(os, "geteuid", lambda: seed % 3)
    Options.seed = seed  # type: ignore[attr-defined]
    script = drawn(Options())  # type: ignore[arg-type]
    assert unable(script, links=Options.links, disks=seed % 3 == 0) == []
    assert all(fault.end_s <= 60 * Options.minutes for fault in script)
    deaths = [fault for fault in script if fault.kind is Kind.KILL and len(fault.machines) == Options.workers]
    assert len(deaths) == Options.deaths
    if Options.stages:  # whoever stays away may have the only checkpoint of a stage
        for death in deaths:
            starts = [fault for fault in script if fault.kind is Kind.START and fault.at_s > death.at_s]
            assert {number for fault in starts for number in fault.machines} == {*range(Options.workers)}

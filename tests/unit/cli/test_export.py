"""``decentral export`` on weights made by hand, and on a swarm of the memory network."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from decentral.cli.app import app
from decentral.config.file import to_toml
from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.errors import ExitCode, UnreachableError
from decentral.outer.rule import OuterState
from decentral.run import fetch
from decentral.run.tasks import build_trainer
from decentral.sim.loop import run as simulate
from decentral.sim.world import World, peer_id
from decentral.state.average import Replica
from decentral.state.download.donor import Donor
from decentral.state.files import save_weights
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.presence import Presence, State
from decentral.tensors.layout import Layout
from tests.support.later import later

NUMEL = 6


def swarm_of(method: str) -> SwarmConfig:
    stated = ["task.factory=decentral.workers.toy:build", f"task.settings.numel={NUMEL}", f"method.name={method}"]
    return resolve(load(None, stated).swarm)


def weights(value: float) -> dict[str, Tensor]:
    """The hidden vector of the toy task, moved by ``value``: a loss of half its square."""
    hidden_M = torch.randn(NUMEL, generator=torch.Generator().manual_seed(0))
    return {f"layers.{i}.weight": piece for i, piece in enumerate((hidden_M + value).tensor_split(4))}


def offset(path: Path) -> float:
    """What ``weights`` was given to make this file."""
    return float((load_file(path)["layers.0.weight"] - weights(0)["layers.0.weight"]).mean())


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata())


def made(folder: Path, offsets: list[float], *, method: str = "noloco", rounds: list[int] | None = None) -> Path:
    """The folder of a local run whose workers' weights are off by ``offsets``."""
    swarm = swarm_of(method)
    for index, value in enumerate(offsets):
        worker = folder / "workers" / str(index)
        worker.mkdir(parents=True)
        (worker / "config.toml").write_text(to_toml(swarm))
        about = {"run": "demo-1", "round": str(rounds[index] if rounds else 40), "digest": f"d{value}"}
        save_weights(worker / "model.safetensors", weights(value), about)
    (folder / "config.toml").write_text(to_toml(swarm))
    return folder


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def test_replicas_of_a_gossip_are_averaged(tmp_path: Path, out: Path) -> None:
    found = export(made(tmp_path / "run", [1.0, -1.0, 3.0]), "--out", out)
    assert found.exit_code == 0, found.output
    header, *rows, last = [line.split() for line in found.stdout.splitlines()]
    assert header == ["replica", "round", "loss"]
    assert [row[:3] for row in rows] == [
        ["0", "40", "0.500"],
        ["1", "40", "0.500"],
        ["2", "40", "4.500"],
        ["average", "40", "0.500"],
    ]
    assert rows[3][3:5] == ["taken;", "spread"]
    assert " ".join(last) == f"wrote {out}: average of 3 replicas, round 40, loss 0.500"
    assert offset(out) == pytest.approx(1.0)
    about = metadata(out)
    assert about.pop("decentral")
    assert about == {"format": "pt", "run": "demo-1", "round": "40", "average_of": "0,1,2"}


@pytest.mark.parametrize(("take", "expected"), [("best", 0.5), ("newest", -1.0), ("2", 2.0)])
def test_one_replica_is_taken_with_all_that_is_known_of_it(
    tmp_path: Path, out: Path, take: str, expected: float
) -> None:
    run = made(tmp_path / "run", [0.5, -1.0, 2.0], rounds=[40, 41, 40])
    found = export(run, "--take", take, "--out", out)
    assert found.exit_code == 0, found.output
    taken = [line.split()[0] for line in found.stdout.splitlines() if line.rstrip().endswith("taken")]
    assert [metadata(out)["replica"]] == taken
    assert metadata(out)["digest"] == f"d{expected}"
    assert offset(out) == pytest.approx(expected)


def test_what_was_stopped_early_does_not_spoil_an_all_reduce(tmp_path: Path, out: Path) -> None:
    """A worker killed a round before the end has weights that differ; the newest have its work in them."""
    found = export(made(tmp_path / "run", [1.0, 2.0], method="diloco", rounds=[39, 40]), "--out", out)
    assert found.exit_code == 0, found.output
    assert offset(out) == pytest.approx(2.0)


def test_equal_replicas_are_one(tmp_path: Path, out: Path) -> None:
    found = export(made(tmp_path / "run", [1.0, 1.0]), "--out", out)
    assert found.stdout.splitlines()[-1].endswith("replica 0 (all 2 are equal), round 40, loss 0.500")
    assert "average" not in found.stdout


def test_a_worker_lost_long_ago_counts_only_if_it_is_named(tmp_path: Path, out: Path) -> None:
    run = made(tmp_path / "run", [0.0, 1.0, 5.0], rounds=[40, 40, 3])
    found = export(run, "--out", out)
    assert "37 rounds behind" in found.stdout
    assert offset(out) == pytest.approx(0.5)
    export(run, run / "workers" / "2", "--out", out)
    assert offset(out) == pytest.approx(2.0)


def test_folders_and_files_may_be_mixed_and_count_once(tmp_path: Path, out: Path) -> None:
    run = made(tmp_path / "run", [0.0, 1.0])
    one = run / "workers" / "1"
    found = export(run / "workers" / "0", one, one / "model.safetensors", "--out", out)
    assert found.exit_code == 0, found.output
    assert offset(out) == pytest.approx(0.5)


def test_a_file_in_a_run_that_is_cut_off_is_named_and_left_out(tmp_path: Path, out: Path) -> None:
    run = made(tmp_path / "run", [0.0, 1.0, 2.0])
    torn = run / "workers" / "1" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-3])
    found = export(run, "--out", out)
    assert found.exit_code == 0
    assert str(torn) in found.stderr
    assert offset(out) == pytest.approx(1.0)
    assert export(torn, "--out", out).exit_code == ExitCode.CONFIG


def test_weights_by_themselves_need_no_task_without_losses(tmp_path: Path, out: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0)):
        save_weights(tmp_path / f"{name}.safetensors", {"anything": torch.full((2,), value)}, {})
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    found = export(*files, "--no-loss", "--out", out)
    assert found.exit_code == 0, found.output
    assert load_file(out)["anything"].tolist() == [0.5, 0.5]
    found = export(*files, "--out", out)
    assert found.exit_code == ExitCode.CONFIG
    assert "There is no configuration beside" in found.stderr
    assert "--no-loss" in found.stderr


def test_what_cannot_be_exported_is_refused_and_leaves_what_was_there(tmp_path: Path, out: Path) -> None:
    out.write_text("before")
    run = made(tmp_path / "run", [0.0, 1.0])
    other = tmp_path / "other.safetensors"
    refusals: list[tuple[list[object], ExitCode, str]] = [
        ([""], ExitCode.USAGE, "A source is empty."),
        (["nothing-here"], ExitCode.USAGE, "There is nothing at 'nothing-here', and it is no address."),
        (["a:b:c"], ExitCode.USAGE, "is ambiguous"),
        ([tmp_path / "gone.safetensors"], ExitCode.CONFIG, "gone.safetensors does not exist"),
        ([tmp_path], ExitCode.CONFIG, "There are no weights"),
        ([run, "--take", "2"], ExitCode.USAGE, "There is no replica '2'; there are 0, 1."),
        ([run, "--take", "best", "--no-loss"], ExitCode.USAGE, "--take best goes by the losses"),
        ([run, "--device", "tpu"], ExitCode.CONFIG, "worker.device"),
        ([run, other], ExitCode.MISMATCH, "These are replicas of different runs: 0 is of demo-1, "),
    ]
    save_weights(other, weights(0.0), {"run": "demo-2"})
    for arguments, code, message in refusals:
        found = export(*arguments, "--out", out)
        assert (found.exit_code, found.stdout) == (code, ""), arguments
        assert message in found.stderr
    save_weights(other, weights(0.0) | {"layers.0.weight": torch.ones(3)}, {"run": "demo-1"})
    assert "parameter 'layers.0.weight' has shape [3]" in export(run, other, "--out", out).stderr
    save_weights(other, weights(math.nan), {})
    assert "has values that are not finite" in export(run, other, "--out", out).stderr
    assert out.read_text() == "before"


def test_another_model_than_the_task_is_refused(tmp_path: Path, out: Path) -> None:
    run = made(tmp_path / "run", [0.0])
    file = run / "workers" / "0" / "model.safetensors"
    save_weights(file, {"x": torch.ones(1)}, {})
    found = export(run, "--out", out)
    assert found.exit_code == ExitCode.MISMATCH
    assert "another model than the configured task" in found.stderr


def test_a_run_without_weights_says_when_there_will_be_some(tmp_path: Path, out: Path) -> None:
    (tmp_path / "run" / "workers" / "0").mkdir(parents=True)
    found = export(tmp_path / "run", "--out", out)
    assert found.exit_code == ExitCode.USAGE
    assert "once a minute" in found.stderr


def test_a_target_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run", [0.0])
    for target, message in (
        (tmp_path, "is no empty folder"),
        (tmp_path / "run" / "x", "makes none"),
        (tmp_path / "gone" / "x", "does not exist"),
    ):
        found = export(run, "--out", target)
        assert found.exit_code == ExitCode.CONFIG
        assert message in found.stderr


def test_addresses_go_to_the_swarm_with_its_own_configuration(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = swarm_of("noloco")
    asked = []

    async def fetch_from(addresses: list[str], own: WorkerConfig, say: object) -> fetch.Fetched:
        asked.append((addresses, own.device, own.data))
        replicas = [
            Replica(name, "demo-1", 40, lambda v=v: weights(v)) for name, v in (("aaaaaa", 3.0), ("bbbbbb", 5.0))
        ]
        return fetch.Fetched(swarm, build_trainer(swarm, WorkerConfig(), 0), replicas)

    monkeypatch.setattr(fetch, "fetch", fetch_from)
    run = made(tmp_path / "run", [1.0])
    found = export("203.0.113.7:31337", run, "/ip4/203.0.113.7/tcp/4", "--data", "x", "--out", out)
    assert found.exit_code == 0, found.output
    assert asked == [(["203.0.113.7:31337", "/ip4/203.0.113.7/tcp/4"], "cpu", ("x",))]
    assert offset(out) == pytest.approx(3.0)
    assert metadata(out)["average_of"] == "0,aaaaaa,bbbbbb"


class TestFetching:
    """From donors on the memory network, each with an anchor of its own."""

    ASKER = peer_id(99)

    def play(self, method: str, states: dict[int, State], *, gone: int | None = None, silent: int | None = None):
        """What an asker gets from workers whose weights are off by their number, and what is said meanwhile."""
        swarm = swarm_of(method)
        trainer = build_trainer(swarm, WorkerConfig(), 0)
        layout = Layout.of(trainer.parameters())
        said: list[str] = []

        async def main() -> list[Replica]:
            world = World(0)
            records = []
            for number, state in states.items():
                peer = world.add(peer_id(number))
                anchor_N = layout.gather(weights(number), 0)
                own = FragmentState.of(7 + number, anchor_N, OuterState((torch.zeros(NUMEL),)))
                snapshot = Snapshot(0, (own,))
                current = later(lambda snapshot=snapshot: snapshot)
                await Donor(peer.transport, layout.signature, current, peer.clock).start()
                digest = "" if method == "noloco" else f"digest {number > 0}"
                record = Presence(peer.peer_id, "demo-1", 1, state, 7 + number, 0, digest)
                records.append((record, 99.0 if number == silent else 0.5))
            asker = world.add(self.ASKER)
            if gone is not None:
                world.crash(peer_id(gone))
            parameters = trainer.parameters()
            ports = (asker.transport, asker.clock)
            return await fetch.fetch_replicas(*ports, records, "demo-1", swarm, parameters, said.append)

        return simulate(main(), until_s=300.0), said

    def test_each_worker_of_a_gossip_gives_its_own(self) -> None:
        states = {0: State.TRAINING, 1: State.SYNCING, 2: State.DONE, 3: State.JOINING, 4: State.TRAINING}
        replicas, said = self.play("noloco", states, gone=1, silent=4)
        assert [replica.name for replica in replicas] == ["m-0000", "m-0002"]
        assert [replica.round for replica in replicas] == [7, 9]
        assert not any(replica.named for replica in replicas)
        for replica, number in zip(replicas, (0, 2), strict=True):
            loaded = replica.load()
            assert all(torch.equal(loaded[name], value) for name, value in weights(number).items())
        first, problem = said
        assert first == "downloading 48B from each of 3 workers"
        assert problem.startswith("left out: m-0001: ")

    def test_by_all_reduce_one_is_enough_and_the_next_stands_in(self) -> None:
        states = dict.fromkeys(range(3), State.TRAINING)
        replicas, said = self.play("diloco", states)
        assert [replica.name for replica in replicas] == ["m-0002"]
        assert said == ["downloading 48B from 3 workers: by all-reduce all hold the same"]
        replicas, _ = self.play("diloco", states, gone=2)
        assert [replica.name for replica in replicas] == ["m-0001"]

    def test_nobody_left_is_an_error(self) -> None:
        for method in ("noloco", "diloco"):
            with pytest.raises(UnreachableError, match="None of the 1 live workers of demo-1 gave its weights"):
                self.play(method, {0: State.TRAINING}, gone=0)

"""The parts of ``decentral local`` that need no swarm."""

import asyncio
import functools
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from decentral.adapters.identity import KeyIdentity
from decentral.cli.app import app
from decentral.cli.local import children, outcome
from decentral.cli.local.command import rounds_for
from decentral.cli.local.processes import Processes, processes_for
from decentral.cli.local.run import LocalRun
from decentral.config.file import to_toml
from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load, with_values
from decentral.errors import ConfigError, DecentralError, ExitCode
from decentral.monitor.events import (
    StretchDone,
    Validated,
)
from decentral.monitor.journal import JsonLinesJournal
from decentral.monitor.report import StatusReport
from decentral.monitor.status import summarize
from decentral.ports.trainer import Seat, StepReport
from decentral.run.folder import MODEL, PRESENCE
from decentral.run.sizing import measure
from decentral.state.average import Chosen, Replica
from decentral.swarm.presence import Metrics, Presence, State, encode
from decentral.types import PeerId
from decentral.workers import toy

A = PeerId("peer-a")


@functools.cache
def identity(index: int) -> KeyIdentity:
    """Of a worker."""
    return KeyIdentity.generate()


def write(path: Path, *events, start: float = 100.0) -> Path:
    times = iter(range(len(events)))
    journal = JsonLinesJournal(path, lambda: start + 2.0 * next(times), 1_000_000)
    for event in events:
        journal.record(event)
    journal.close()
    return path


class FakeTrainer:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def train_steps(self, first_step: int, count: int) -> StepReport:
        self.steps += range(first_step, first_step + count)
        return StepReport(tokens=64 * count, loss=1.0, grad_norm=1.0)


def test_the_pace_leaves_out_the_first_step():
    trainer = FakeTrainer()
    times = iter([10.0, 16.0])
    pace = measure(trainer, steps=3, clock=lambda: next(times))
    assert (pace.step_s, pace.tokens_per_step) == (2.0, 64)
    assert trainer.steps == [0, 1, 2, 3]


def test_rounds_fill_the_time_and_are_at_least_one():
    swarm = load(None, ["method.inner_steps=10"]).swarm
    assert rounds_for(106.0, 1.0, swarm, 1_000_000) == 10
    assert rounds_for(0.1, 1.0, swarm, 1_000_000) == 1


class TestOutcome:
    def test_journals_are_merged_by_time_with_the_worker_named(self, tmp_path):
        one = write(tmp_path / "1", Validated(1, 1.0), Validated(2, 1.0), start=100.0)
        two = write(tmp_path / "2", Validated(3, 1.0), start=101.0)
        merged = outcome.merge_journals([one, two, tmp_path / "none"], tmp_path / "all.jsonl")
        assert [(event["worker"], event["round"]) for event in merged] == [(0, 1), (1, 3), (0, 2)]
        assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()] == merged

    def test_a_file_that_fails_half_way_does_not_appear(self, tmp_path):
        (tmp_path / "x").write_text("old")

        def fail_half_way() -> None:
            with outcome.whole_file(tmp_path / "x") as file:
                file.write("new")
                raise OSError("disk")

        with pytest.raises(OSError, match="disk"):
            fail_half_way()
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    def test_the_loss_curve_is_a_png_and_nothing_gives_none(self, tmp_path):
        assert not outcome.draw_losses([], 25, tmp_path / "loss.png")
        assert not (tmp_path / "loss.png").exists()
        journal = write(tmp_path / "j", StretchDone(0, 25, 10, 3.0, 1.0), Validated(1, 2.9), Validated(2, math.nan))
        events = outcome.merge_journals([journal], tmp_path / "all")
        assert outcome.draw_losses(events, 25, tmp_path / "loss.png")
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_there_is_no_loss_curve_and_one_line_says_so(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        assert not outcome.draw_losses([{"event": "stretch_done"}], 25, tmp_path / "loss.png")
        assert "pip install 'decentral[plot]'" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_of_a_pipeline_the_heads_alone_have_a_loss(self, tmp_path):
        journal = JsonLinesJournal(tmp_path / "j", lambda: 100.0, 1_000_000)
        for stage in range(3):
            journal.of_stage(stage).record(StretchDone(0, 25, 250, 3.0, 1.0))
        journal.close()
        events = outcome.merge_journals([tmp_path / "j"], tmp_path / "all")
        assert outcome.draw_losses(events, 25, tmp_path / "loss.png")
        assert not outcome.draw_losses([event for event in events if event["stage"]], 25, tmp_path / "none.png")

    def test_the_summary_tells_what_was_kept_and_what_it_cost(self, tmp_path):
        metrics = Metrics(tokens=250, sent_bytes=50, dp_bytes=100_000)
        presence = Presence(A, "demo", 1, State.DONE, 40, 0, "", metrics=metrics)
        totals = summarize(children_facts(), [(presence, 0.0)], ttl_s=6.0).totals
        chosen = Chosen({}, (Replica("0", "demo-1", 40, dict),), 0.25)
        trainer = toy.build({}, Seat(0, 1, 10))
        text = outcome.summary(tmp_path, chosen, "", trainer, totals, 4, 61.0)
        assert "validation loss  0.250 nats per token, after round 40" in text
        assert "tokens           250 by 4 workers in 61 s" in text
        assert "sent 50B (data-parallel 100kB, 2000x)" in text
        assert str(tmp_path) in text
        assert "sample" not in text

    def test_without_weights_the_summary_says_so(self, tmp_path):
        totals = summarize(children_facts(), [], ttl_s=6.0).totals
        text = outcome.summary(tmp_path, None, "", toy.build({}, Seat(0, 1, 1)), totals, 4, 1.0)
        assert "weights          none were saved" in text


class TestStart:
    """What ``local`` does before the first worker trains."""

    def test_every_worker_gets_the_cap_of_the_upload(self, tmp_path, monkeypatch):
        told: list[list[str]] = []

        class Said:
            async def first_line(self, timeout_s: float) -> str:
                return "decentral worker --join 127.0.0.1:1"

        async def start(index, arguments, folder, env):
            told.append(list(arguments))
            return Said()

        monkeypatch.setattr("decentral.cli.local.run.start", start)
        loaded = load(None, ["task.factory=decentral.workers.toy:build", "worker.max_upload=20mbit"])
        trainer = toy.build({}, Seat(0, 1, 10))
        asyncio.run(LocalRun(loaded.swarm, loaded.worker, Processes(3), tmp_path, trainer)._start())
        caps = [arguments[arguments.index("--max-upload") + 1] for arguments in told]
        assert [load(None, [], {"worker.max_upload": cap}).worker.max_upload for cap in caps] == [2_500_000] * 3

    def test_what_is_this_machines_own_holds_for_the_run_and_for_no_worker_alone(self, tmp_path, monkeypatch):
        made = []

        class Run:
            def __init__(self, *arguments) -> None:
                made.append(arguments)

            async def run(self) -> int:
                return 0

        monkeypatch.setattr("decentral.cli.local.run.LocalRun", Run)
        (tmp_path / "data").write_text("x")
        own = WorkerConfig(
            task="decentral.workers.toy:build",
            data=(str(tmp_path / "data"),),
            identity="a.key",
            announce="a:1",
            threads=3,
        )
        (tmp_path / "run.toml").write_text(to_toml(with_values(SwarmConfig(), {"task.factory": ""}), own))
        arguments = ["local", "--config", str(tmp_path / "run.toml"), "--tokens", "1", "--out", str(tmp_path / "out")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        swarm, one, *_ = made[0]
        assert (swarm.task.factory, swarm.data.paths) == (own.task, own.data)
        assert swarm.task.settings["numel"] == 1000
        assert one == WorkerConfig(threads=3, out=str(tmp_path / "out"), task=own.task, data=own.data)

    def test_a_pipeline_has_spares(self, tmp_path, monkeypatch):
        started: list[list[str]] = []

        class Said:
            async def first_line(self, timeout_s: float) -> str:
                return "decentral worker --join 127.0.0.1:1"

        async def start(index, arguments, folder, env):
            started.append(list(arguments))
            return Said()

        monkeypatch.setattr("decentral.cli.local.run.start", start)
        loaded = load(None, ["task.factory=decentral.workers.toy:build", "pipeline.stages=2"])
        processes = processes_for(loaded.swarm.pipeline, None, 1)
        run = LocalRun(loaded.swarm, loaded.worker, processes, tmp_path, toy.build({}, Seat(0, 1, 10)))
        asyncio.run(asyncio.wait_for(run._start(), 10))
        assert ["--new" in arguments for arguments in started] == [True, False, False, False]
        assert [arguments[-2:] == ["--stage", "spare"] for arguments in started] == [False, False, False, True]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--fragments", "6"], "6 fragments asked for, but the model has 5 layers"),
            (["--fragments", "paper", "--overlap", "5"], "method.delay_steps is 5, but with 2 fragments"),
        ],
    )
    def test_a_cut_that_the_model_does_not_allow_is_refused_before(self, tmp_path, monkeypatch, flags, message):
        monkeypatch.chdir(tmp_path)
        toy_of_five = [
            "task.factory=decentral.workers.toy:build",
            "task.settings.num_layers=5",
            "method.inner_steps=10",
        ]
        settings = [part for setting in toy_of_five for part in ("--set", setting)]
        result = CliRunner().invoke(app, ["local", *settings, *flags])
        assert result.exit_code == ExitCode.CONFIG
        assert message in result.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("place", ["model.safetensors", "workers/1/model.safetensors"])
    def test_a_folder_with_a_run_in_it_is_refused_or_replaced(self, tmp_path, monkeypatch, place):
        found: list[bool] = []

        class Run:
            def __init__(self, swarm, own, processes, folder, *_) -> None:
                found.append((folder / place).exists())

            async def run(self) -> int:
                return 0

        monkeypatch.setattr("decentral.cli.local.run.LocalRun", Run)
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        arguments = [
            "local",
            "--set",
            "task.factory=decentral.workers.toy:build",
            "--tokens",
            "1",
            "--out",
            str(tmp_path),
        ]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == ExitCode.USAGE
        assert f"There is a run in {tmp_path}." in result.stderr
        assert all(way in result.stderr.replace("\n", " ") for way in ("--resume", "another folder", "--overwrite"))
        assert (tmp_path / place).exists()
        assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
        assert found == [False]


class TestReport:
    """What a local run shows of its workers while they train."""

    def report(self, tmp_path: Path, told: Sequence[tuple[Presence, int | None]], *flags: str) -> StatusReport:
        """Of workers that have these records in their folders, and ended with these codes."""
        loaded = load(None, ["task.factory=decentral.workers.toy:build", *flags])
        processes = processes_for(loaded.swarm.pipeline, None if flags else 2, None)
        run = LocalRun(loaded.swarm, loaded.worker, processes, tmp_path, toy.build({}, Seat(0, 1, 10)))
        for index, (presence, code) in enumerate(told):
            folder = tmp_path / "workers" / str(index)
            (folder / PRESENCE).write_bytes(encode(presence, identity(index)))
            run._children.append(child_of(folder, "", code))
        return run._report()

    def test_is_what_they_said_of_themselves_last(self, tmp_path):
        first = Presence(identity(0).peer_id, "demo-1", 7, State.TRAINING, 3, 0, "", metrics=Metrics(tokens=250))
        last = Presence(identity(1).peer_id, "demo-1", 7, State.DONE, 3, 0, "", metrics=Metrics(tokens=50))
        report = self.report(tmp_path, [(first, None), (last, 0)])
        assert (report.run.run_id, report.totals.round, report.totals.tokens) == ("demo-1", 3, 300)
        assert sorted(row.state for row in report.workers) == ["done", "training"]

    def test_who_was_killed_is_lost_at_once_and_by_what_is_said(self, tmp_path):
        one = Presence(identity(0).peer_id, "demo-1", 7, State.TRAINING, 3, 0, "")
        (row,) = self.report(tmp_path, [(one, -signal.SIGKILL)]).workers
        assert (row.state, row.reason) == ("lost", "was killed by SIGKILL")

    def test_of_a_pipeline_the_stages_and_the_tokens_of_its_head(self, tmp_path):
        head = Presence(identity(0).peer_id, "d", 7, State.TRAINING, 3, 0, "", holds="0", metrics=Metrics(tokens=250))
        stage = Presence(identity(1).peer_id, "d", 7, State.TRAINING, 3, 0, "", holds="1", metrics=Metrics(tokens=250))
        report = self.report(tmp_path, [(head, None), (stage, None)], "pipeline.stages=2")
        assert [len(row.holders) for row in report.stages] == [1, 1, 0]
        assert report.totals.tokens == 250

    def test_what_no_worker_signed_is_not_shown(self, tmp_path):
        other = Presence(identity(1).peer_id, "demo-1", 7, State.TRAINING, 3, 0, "")
        assert self.report(tmp_path, [(other, None)]).workers == ()

    def test_nor_what_is_left_of_an_earlier_life(self, tmp_path):
        old = tmp_path / "workers" / "0" / PRESENCE
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old")
        self.report(tmp_path, [])
        assert not old.exists()


class TestResult:
    """What ``local`` makes of its workers' weights: numbers apart from the toy's hidden vector, zero."""

    def end(self, tmp_path: Path, method: str, weights: dict[int, float], take: str | None = None) -> LocalRun:
        """The end of a run whose worker ``round % 10`` has the weights of ``round``."""
        settings = [f"method.name={method}", "task.factory=decentral.workers.toy:build", "task.settings.numel=4"]
        loaded = load(None, [*settings, "worker.threads=1"])
        swarm = resolve(loaded.swarm)
        trainer = toy.build({"numel": 4, "num_layers": 1}, Seat(0, 1, 10))
        hidden = torch.randn(4, generator=torch.Generator().manual_seed(0))
        run = LocalRun(swarm, loaded.worker, Processes(3), tmp_path, trainer, take)
        for round_, value in weights.items():
            file = tmp_path / "workers" / str(round_ % 10) / MODEL
            save_file({"layers.0.weight": hidden + value}, file, {"run": "demo-1", "round": str(round_), "digest": "d"})
        run._finish(61.0)
        return run

    def kept(self, tmp_path: Path) -> float:
        hidden = torch.randn(4, generator=torch.Generator().manual_seed(0))
        return round(float((load_file(tmp_path / MODEL)["layers.0.weight"] - hidden).mean()), 4)

    def test_of_a_gossip_the_average_with_the_loss_of_each(self, tmp_path, capsys):
        self.end(tmp_path, "noloco", {40: 1.0, 41: -1.0, 42: 3.0})
        printed = capsys.readouterr().out
        assert [line.split()[:3] for line in printed.splitlines()[1:5]] == [
            ["0", "40", "0.500"],
            ["1", "41", "0.500"],
            ["2", "42", "4.500"],
            ["average", "42", "0.500"],
        ]
        assert "validation loss  0.500 nats per token, average of 3 replicas after round 42" in printed
        assert self.kept(tmp_path) == 1.0

    @pytest.mark.parametrize(("take", "value", "name"), [("best", 0.5, "1"), ("0", 1.0, "0"), ("newest", 3.0, "")])
    def test_or_the_one_that_was_asked_for(self, tmp_path, capsys, take, value, name):
        self.end(tmp_path, "noloco", {40: 1.0, 41: 0.5, 42: 3.0}, take)
        told = f"{value**2 / 2:.3f} nats per token, {f'replica {name} ' if name else ''}after round"
        assert told in capsys.readouterr().out
        assert self.kept(tmp_path) == value

    def test_of_an_all_reduce_the_newest_and_nothing_is_said_of_the_others(self, tmp_path, capsys):
        self.end(tmp_path, "diloco", {40: 1.0, 41: 2.0, 32: 3.0})
        printed = capsys.readouterr().out
        assert printed.startswith("validation loss  2.000 nats per token, after round 41\ntokens")
        assert self.kept(tmp_path) == 2.0

    def test_a_file_that_is_cut_off_is_left_out(self, tmp_path, capsys):
        torn = tmp_path / "workers" / "0" / MODEL
        torn.parent.mkdir(parents=True)
        torn.write_bytes(b"half")
        self.end(tmp_path, "noloco", {41: 2.0})
        assert str(torn) in capsys.readouterr().err
        assert self.kept(tmp_path) == 2.0

    def end_of_pipeline(self, tmp_path: Path, saved: list[tuple[int, int, float, int]]) -> LocalRun:
        """The end of a run whose worker, stage, distance from the hidden vector and round are in ``saved``."""
        toy_of_three = [
            "task.factory=decentral.workers.toy:build",
            "task.settings.numel=6",
            "task.settings.num_layers=3",
        ]
        loaded = load(None, [*toy_of_three, "worker.threads=1", "pipeline.stages=2"])
        trainer = toy.build({"numel": 6, "num_layers": 3}, Seat(0, 1, 10))
        processes = processes_for(loaded.swarm.pipeline, None, None)
        run = LocalRun(loaded.swarm, loaded.worker, processes, tmp_path, trainer)
        hidden = torch.randn(6, generator=torch.Generator().manual_seed(0)).chunk(3)
        for worker, stage, value, round_ in saved:
            about = {"run": "demo-1", "round": str(round_), "stage": str(stage), "stages": "2"}
            weights = {f"layers.{stage}.weight": hidden[stage] + value}
            file = tmp_path / "workers" / str(worker) / f"stage-{stage}" / "model.safetensors"
            file.parent.mkdir(parents=True)
            save_file(weights, file, about)
        run._finish(61.0)
        return run

    def test_of_a_pipeline_the_newest_of_each_stage_together(self, tmp_path, capsys):
        self.end_of_pipeline(tmp_path, [(0, 0, 2.0, 40), (1, 1, 2.0, 40), (2, 2, 9.0, 3), (1, 2, 2.0, 40)])
        printed = capsys.readouterr()
        assert "model put together of 2 stages and the head\n" in printed.err
        assert printed.out.startswith("validation loss  2.000 nats per token, after round 40\ntokens")
        hidden = torch.randn(6, generator=torch.Generator().manual_seed(0)).chunk(3)
        written = load_file(tmp_path / MODEL)
        assert [round(float((written[f"layers.{s}.weight"] - hidden[s]).mean()), 3) for s in range(3)] == [2.0] * 3

    @pytest.mark.parametrize("saved", [[], [(0, 0, 2.0, 40), (1, 1, 2.0, 40)]])
    def test_of_a_pipeline_that_lacks_a_stage_no_model_is_left(self, tmp_path, capsys, saved):
        self.end_of_pipeline(tmp_path, saved)
        printed = capsys.readouterr()
        assert "weights          none were saved" in printed.out
        assert ("nobody has saved stage 2" in printed.err) is bool(saved)
        assert not (tmp_path / MODEL).exists()

    def test_the_trainer_samples_from_what_was_kept(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(toy.ToyTrainer, "sample", lambda self: f"loss {self.validate():.3f}", raising=False)
        self.end(tmp_path, "noloco", {40: 1.0, 41: 0.5, 42: 3.0}, "best")
        assert capsys.readouterr().out.endswith("sample:\nloss 0.125\n")


def children_facts():
    from decentral.monitor.report import RunFacts

    return RunFacts("demo", "diloco", "fp32", 40, 1, "0", "c")


def child_of(tmp_path: Path, log: str, code: int | None) -> children.Child:
    (tmp_path / "log.txt").write_text(log)

    class Ended:
        returncode = code

    return children.Child(2, tmp_path, Ended())


class TestChildren:
    def test_the_error_of_a_worker_is_passed_on_with_its_code(self, tmp_path):
        log = "03:16 INFO x\nerror: Port 4 is taken.\nBy someone.\nhint: Use --port 0.\n"
        error = child_of(tmp_path, log, 9).error()
        assert error.message == "Worker 2 ended with exit code 9: Port 4 is taken.\nBy someone."
        assert (error.hint, error.exit_code) == ("Use --port 0.\n".strip(), ExitCode.PORT_TAKEN)

    def test_a_worker_without_last_words_is_quoted(self, tmp_path):
        error = child_of(tmp_path, "one\ntwo\n", -signal.SIGKILL).error()
        assert error.message == "Worker 2 was killed by SIGKILL: one\ntwo"
        assert error.exit_code is ExitCode.INTERNAL
        assert str(tmp_path) in error.hint

    def test_a_worker_that_refuses_its_arguments_ends_with_its_own_error(self, tmp_path):
        async def scenario() -> children.Child:
            child = await children.start(0, ["worker", "--new", "--join", "x"], tmp_path, {})
            with pytest.raises(DecentralError) as caught:
                await child.first_line(60.0)
            assert "--new and --join exclude each other." in caught.value.message
            assert caught.value.exit_code is ExitCode.USAGE
            return child

        assert asyncio.run(scenario()).code == ExitCode.USAGE

    def test_who_does_not_leave_is_killed_and_nobody_is_left(self, tmp_path):
        async def child(index: int, code: str) -> children.Child:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, start_new_session=True
            )
            started = children.Child(index, tmp_path, process)
            assert await started.first_line(60.0) == "up"
            return started

        async def scenario() -> list[int | None]:
            # Sets a handler: in a shell's background SIGINT is ignored from the start, and would never be waited for.
            polite = await child(
                0,
                "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); print('up', flush=True); "
                "signal.pause()",
            )
            deaf = await child(
                1,
                "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); "
                "time.sleep(600)",
            )
            await children.stop([polite], 60.0)  # returns when it has left, however long a busy machine takes
            await children.stop([deaf], 0.5)
            await children.stop([polite, deaf], 0.5)
            return [polite.code, deaf.code]

        assert asyncio.run(scenario()) == [0, -signal.SIGKILL]


def test_an_unwritable_journal_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError):
        JsonLinesJournal(tmp_path, lambda: 0.0, 1_000_000)

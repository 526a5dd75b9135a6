"""The run of ``decentral local``: start the workers, show what they do, gather what they leave.

It follows what the workers write into their folders, the records of themselves and their journals, and never asks them
anything, so a worker that hangs cannot hold it up.
"""

import asyncio
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from decentral import __version__
from decentral.adapters.identity import KeyIdentity
from decentral.cli import assemble, result
from decentral.cli.command import INVITATION
from decentral.cli.local import outcome
from decentral.cli.local.children import Child, ending, own_flags, pass_on, start, stop
from decentral.cli.local.processes import Processes
from decentral.cli.render import console, run_line, view
from decentral.cli.signals import stopping
from decentral.cli.sources import from_paths, parts_from_paths
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.dashboard.place import serve
from decentral.engine.background import unless
from decentral.errors import ConfigError, DecentralError, ExitCode, FrameError
from decentral.metrics.log_to import LogTo
from decentral.monitor.history import History
from decentral.monitor.journal import JournalReader
from decentral.monitor.report import StatusReport
from decentral.ports.trainer import Trainer
from decentral.run.asking import report_of
from decentral.run.disk import cannot_write
from decentral.run.folder import CONFIG, JOURNAL, MODEL, PRESENCE, WORKERS, save_config
from decentral.run.tasks import publisher_of
from decentral.run.telemetry import log_to
from decentral.run.watch import write_report
from decentral.state.average import NEWEST, Chosen, Replica, choose, survey
from decentral.swarm.presence import MAX_RECORD_BYTES, Presence, State, decode
from decentral.types import PeerId

#: Importing torch and opening a node on a busy machine.
_START_S = 120.0
#: After the first worker has finished, the others may take so long.
_FINISH_S = 60.0
#: After they were asked to leave.
_LEAVE_S = 25.0
_REFRESH_S = 0.5
#: Between two lines of progress in a pipe.
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class GoingOn:
    """A run that was stopped."""

    run: str
    """Its id."""
    indices: tuple[int, ...]
    """Of the workers that have a checkpoint of it, at least one."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a run that went to its end came to."""

    loss: float
    """Of the model that was kept."""
    sent_bytes: int
    """By all workers."""
    dp_bytes: int
    """That data-parallel training would have sent for the same steps."""
    seconds: float


class LocalRun:
    """One run of a local swarm.

    Args:
        swarm: complete configuration of the run.
        own: of each worker.
        processes: to start.
        folder: of the run; exists.
        trainer: the task in this process; validates and samples at the end.
        take: what becomes the model of the run (see ``average.choose``); ``None`` for the method's default.
        going_on: the run that goes on, and the workers that do so from their folders; the others join them.
    """

    def __init__(
        self,
        swarm: SwarmConfig,
        own: WorkerConfig,
        processes: Processes,
        folder: Path,
        trainer: Trainer,
        take: str | None = None,
        going_on: GoingOn | None = None,
    ) -> None:
        self._take = take
        # Of this process, which sees the whole run, not of each worker.
        self._dashboard, self._log_to = own.dashboard, own.log_to
        own = own.model_copy(update={"dashboard": "", "log_to": (), "metrics": ""})
        self._logs: LogTo | None = None
        self._history = History()
        self._peers = [PeerId("") for _ in range(processes.size)]
        """Of the workers, as far as their journals have told."""
        self._going_on = going_on
        self._swarm, self._own, self._folder, self._trainer = swarm, own, folder, trainer
        self._processes = processes
        self._folders = [folder / WORKERS / str(index) for index in range(processes.size)]
        for worker in self._folders:
            worker.mkdir(parents=True, exist_ok=True)
            (worker / PRESENCE).unlink(missing_ok=True)  # of an earlier life
        self._readers = [JournalReader(worker / JOURNAL) for worker in self._folders]
        self._children: list[Child] = []
        self._up: list[Child] = []
        """Those that listen to signals: others would be ended by one."""
        self._beside: list[asyncio.Task[None]] = []
        self.done: Done | None = None
        """After ``run``; ``None`` if it was interrupted, or left no model of its last round."""
        self._screen = console(sys.stderr)

    async def run(self) -> int:
        """Run to the end or until Ctrl-C, and print the summary.

        Raises:
            DecentralError: all workers failed; with the error of the first, of those that could not save if there are.
            DiskError: the result cannot be written.
        """
        save_config(self._folder, self._going_on.run if self._going_on else None, self._swarm, self._own)
        self._say(f"{self._processes.describe()}, {self._swarm.run.rounds} rounds, in {self._folder}")
        with contextlib.ExitStack() as resources:
            if self._dashboard:
                server = serve(self._history, self._dashboard)
                resources.callback(server.close)
                self._say(f"page: {server.url}")
            return await self._run()

    async def _run(self) -> int:
        began = time.monotonic()
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        with stopping(
            lambda: loop.call_soon_threadsafe(stopped.set),
            lambda: loop.call_soon_threadsafe(lambda: pass_on(self._up, signal.SIGUSR1)),
        ):
            try:
                await unless(stopped, self._start())
                await self._follow(stopped)
            finally:
                if self._logs is not None:
                    await asyncio.to_thread(self._logs.close)
                await _cancel(self._beside)
                await stop(self._children, _LEAVE_S)
        seconds = time.monotonic() - began
        failed = [child for child in self._children if child.code != ExitCode.OK]
        unsaved = [child for child in failed if child.code == ExitCode.DISK]
        if len(failed) == len(self._children) and (unsaved or not stopped.is_set()):
            raise (unsaved or failed)[0].error()
        asked = (ExitCode.INTERRUPTED, -signal.SIGINT) if stopped.is_set() else ()
        for child in failed:
            if child.code not in asked:
                self._say(child.error().message)
        try:
            chosen = self._finish(seconds)
        except OSError as err:
            raise cannot_write(self._folder / MODEL, 0, err) from err
        if chosen is None and unsaved:
            raise unsaved[0].error()
        return ExitCode.OK

    async def _start(self) -> None:
        """Start the founder, or those who go on from their folders, and then those who join them."""
        own, common = self._own, own_flags(self._own)
        mine = [
            *("--set", f"worker.task={json.dumps(own.task)}"),
            *("--set", f"worker.data={json.dumps(own.data)}", "--set", f"worker.model={json.dumps(own.model)}"),
            *("--set", f"worker.tokenizer={json.dumps(own.tokenizer)}"),
            *("--set", f"worker.dataset={json.dumps(own.dataset)}"),
        ]
        config = ["--config", str(self._folder / CONFIG)]
        first = self._going_on.indices if self._going_on else (0,)
        for index in first:  # at once: those who go on wait for each other before they say that they are there
            folder = str(self._folders[index])
            begin = ["--resume", folder] if self._going_on else ["--new", "--out", folder]
            await self._start_one(index, ["worker", *begin, *config, *common])
        line = await self._children[0].first_line(_START_S)
        address = line.partition(" --join ")[2]
        if not address:
            raise DecentralError(f"Worker {first[0]} began with {line!r} instead of the command that joins it.")
        self._up.append(self._children[0])
        for index in sorted(set(range(len(self._folders))) - {*first}):
            stage = self._processes.stage(index)
            # The token goes by the environment: command lines are for everybody on this machine to read.
            place, _, token = address.partition("#")
            joining = ["worker", "--join", place, "--out", str(self._folders[index]), *common, *mine]
            await self._start_one(index, [*joining, *(["--stage", stage] if stage else [])], {INVITATION: token})
        self._beside = [asyncio.create_task(self._listen(child)) for child in self._children[1:]]

    async def _start_one(self, index: int, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        env = {"OMP_NUM_THREADS": str(self._own.threads), **(env or {})}
        self._children.append(await start(index, arguments, self._folders[index], env))

    async def _listen(self, child: Child) -> None:
        """Note that a worker is up."""
        with contextlib.suppress(DecentralError):  # how it ended is told when all have
            await child.first_line(_START_S)
            self._up.append(child)

    async def _follow(self, stopped: asyncio.Event) -> None:
        """Show progress until all workers have ended, the last stragglers are given up, or ``stopped`` is set."""
        bar = Progress(
            TextColumn("round {task.completed:.0f} of {task.total:.0f}"),
            BarColumn(None),
            TimeElapsedColumn(),
            console=self._screen,
            expand=True,
        )
        task = bar.add_task("", total=self._swarm.run.rounds)
        live = Live(console=self._screen, auto_refresh=False) if self._screen.is_terminal else None
        finished_at, line_at = math.inf, 0.0
        with live or contextlib.nullcontext():
            while not stopped.is_set():
                report, now = self._report(), time.monotonic()
                self._history.sample(time.time(), report)
                self._log(report)
                bar.update(task, completed=report.totals.round)
                if live is not None:
                    shown = view(report, self._screen.width) if report.workers else "starting ..."
                    live.update(Group(shown, bar), refresh=True)
                elif report.workers and now >= line_at:
                    self._screen.print(run_line(report), soft_wrap=True)
                    line_at = now + _LINE_EVERY_S
                codes = [child.code for child in self._children]
                if ExitCode.OK in codes:
                    finished_at = min(finished_at, now)
                if None not in codes or now > finished_at + _FINISH_S:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), _REFRESH_S)

    def _log(self, report: StatusReport) -> None:
        """Tell experiment loggers, as soon as the run has its id."""
        if self._log_to and report.workers:
            self._logs = self._logs or log_to(self._log_to, report.run.run_id, self._folder, self._swarm, None)
            self._logs.take(report)

    def _report(self) -> StatusReport:
        """What the workers said of themselves last, and how those ended that have."""
        self._read()
        rows, ended = [], {}
        for child in self._children:
            if (told := _told(child)) is not None:
                rows.append(told)
                if child.code:
                    ended[told[0].peer] = ending(child.code)
        return report_of(self._swarm, rows[0][0].run if rows else self._swarm.run.name, __version__, rows, ended=ended)

    def _read(self) -> None:
        """Take in what the journals have told since the last time."""
        for index, reader in enumerate(self._readers):
            for event in reader.read():
                if event["event"] == "started":
                    self._peers[index] = PeerId(event["peer"])
                self._history.take(event, self._peers[index])

    def _finish(self, seconds: float) -> Chosen | None:
        """Write what the run leaves and print the summary; returns the model that was kept, if there is any."""
        import torch

        torch.set_num_threads(self._own.threads * len(self._folders))
        journals = [worker / JOURNAL for worker in self._folders]
        events = outcome.merge_journals(journals, self._folder / JOURNAL)
        outcome.draw_losses(events, self._swarm.method.inner_steps, self._folder / "loss.png")
        chosen, what = self._keep_model()
        report = self._report()
        self._history.sample(time.time(), report)
        write_report(self._folder, self._history, report.run.run_id)
        totals = report.totals
        print(outcome.summary(self._folder, chosen, what, self._trainer, totals, len(self._folders), seconds))
        if chosen is not None and chosen.round >= self._swarm.run.rounds:
            self.done = Done(chosen.loss, totals.sent_bytes, totals.dp_bytes, seconds)
        return chosen

    def _keep_model(self) -> tuple[Chosen | None, str]:
        """Make one model of the workers' replicas; the trainer has it afterwards. With it, what was chosen in words."""
        take = self._take or result.default_take(self._swarm)
        replicas, broken = self._replicas(take)
        for text in broken:
            self._say(f"left out: {text}")
        if not replicas:
            return None, ""
        if take == NEWEST:  # the others need not even be read
            replicas = [max(replicas, key=lambda replica: replica.round)]
        found = survey(replicas, result.measure_with(self._trainer))
        chosen = choose(found, take)
        result.write(self._folder / MODEL, chosen)
        publisher = publisher_of(self._swarm, self._own)
        if publisher is not None:
            result.publish(self._folder, chosen, self._swarm, publisher, with_weights=False)
        self._trainer.load(chosen.weights)
        if len(replicas) == 1:
            return chosen, ""
        if found.differ:
            console(sys.stdout).print(result.table(found, chosen))
        return chosen, result.words(found, chosen)

    def _replicas(self, take: str) -> tuple[list[Replica], list[str]]:
        """The models that the workers left, or the one that their stages make; and what is wrong with others."""
        if not self._processes.num_stages:
            return from_paths([str(self._folder)])
        parts, _, broken = parts_from_paths([str(self._folder)])
        if not parts:
            return [], broken
        try:
            whole, chosen = assemble.assemble(parts, take)
        except ConfigError as err:  # stopped before all were saved
            return [], [*broken, err.message]
        self._say(f"model put together of {assemble.told(chosen)}")
        return [whole], broken

    def _say(self, text: str) -> None:
        self._screen.print(text, markup=False, soft_wrap=True)


def _told(child: Child) -> tuple[Presence, float] | None:
    """What a worker said of itself last, and how many seconds ago; ``None`` before it has."""
    path = child.folder / PRESENCE
    try:
        with path.open("rb") as file:
            data, age_s = file.read(MAX_RECORD_BYTES + 1), time.time() - path.stat().st_mtime
        presence = decode(data, KeyIdentity.verify)
    except (OSError, FrameError):
        return None
    # The last words of one that goes in order stand.
    return presence, 0.0 if presence.state in (State.LEAVING, State.DONE) else max(0.0, age_s)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

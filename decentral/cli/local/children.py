"""Worker processes of a local swarm: started on a leash, stopped in order, their last words kept.

Each runs in a session of its own, so that Ctrl-C on the terminal reaches us alone and we decide what they get.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from decentral.adapters.leash import leashed
from decentral.config.rate import show_rate
from decentral.config.schema import WorkerConfig
from decentral.errors import DecentralError, ExitCode

_LOG = "log.txt"
_TAIL_BYTES = 4096
_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Child:
    """One worker process."""

    index: int
    folder: Path
    """Its ``--out``; its log is here too."""
    process: asyncio.subprocess.Process

    @property
    def code(self) -> int | None:
        """Its exit status, or ``None`` while it runs; the negative number of the signal that ended it."""
        return self.process.returncode

    async def first_line(self, timeout_s: float) -> str:
        """Its first line on stdout.

        Raises:
            DecentralError: it ended, or said nothing in time; with its own error.
        """
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise DecentralError(
                f"Worker {self.index} did not start within {timeout_s:.0f} s.", hint=f"See {self.folder / _LOG}."
            ) from None
        if not line:
            await self.process.wait()
            raise self.error()
        return line.decode().strip()

    def error(self) -> DecentralError:
        """What the worker ended with, from its exit status and the end of its log."""
        message, hint = _last_words(self.folder / _LOG)
        error = DecentralError(
            f"Worker {self.index} {ending(self.code)}" + (f": {message}" if message else "."),
            hint=hint or f"See {self.folder / _LOG}.",
        )
        if self.code in list(ExitCode) and self.code:
            error.exit_code = ExitCode(self.code)
        return error


def own_flags(own: WorkerConfig) -> list[str]:
    """What every worker of a local run is told of this machine."""
    return [
        *("--host", "127.0.0.1", "--port", "0", "--device", own.device, "--threads", str(own.threads)),
        *("--max-upload", show_rate(own.max_upload)),
        *("--checkpoint-every", own.checkpoint_every, "--keep", str(own.keep)),
        *("--set", f"worker.log_level={own.log_level}", "--set", f"worker.log_format={own.log_format}"),
        *("--set", f"worker.journal_bytes={own.journal_bytes}", "--on-preempt", own.on_preempt),
        *("--set", f"worker.preempt_notice={json.dumps(own.preempt_notice)}"),
    ]


async def start(index: int, arguments: Iterable[str], folder: Path, env: Mapping[str, str]) -> Child:
    """Start ``decentral`` with ``arguments`` as worker ``index``; call it from the main thread (see ``leash``).

    Args:
        index: for people.
        arguments: that lead it to its folder.
        folder: for what the worker writes; exists.
        env: variables to set besides our own.
    """
    with (folder / _LOG).open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *leashed([sys.executable, "-m", "decentral.cli", *arguments]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, **env},
            start_new_session=True,
        )
    return Child(index, folder, process)


async def stop(children: Iterable[Child], timeout_s: float) -> None:
    """Ask all to leave in order, kill those that have not after ``timeout_s`` seconds, and wait until all are gone."""
    running = [child for child in children if child.code is None]
    pass_on(running, signal.SIGINT)
    waits = [asyncio.create_task(child.process.wait()) for child in running]
    if not waits:
        return
    try:
        await asyncio.wait(waits, timeout=timeout_s)
    finally:
        pass_on(running, signal.SIGKILL)
    await asyncio.wait(waits)


def pass_on(children: Iterable[Child], number: signal.Signals) -> None:
    """Send a signal to all that run."""
    for child in children:
        _signal(child, number)


def _signal(child: Child, number: signal.Signals) -> None:
    if child.code is None:
        child.process.send_signal(number)


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "still runs"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _last_words(log: Path) -> tuple[str, str]:
    """The error and the hint at the end of a log; if there is no error, its last lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "", ""
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return "\n".join(lines[-_TAIL_LINES:]), ""
    words = "\n".join(lines[starts[-1] :]).removeprefix("error: ")
    message, _, hint = words.partition("\nhint: ")
    return message, hint

"""``decentral status``: is the swarm well, and who contributes?"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from decentral.cli import flags
from decentral.cli.command import show_error, with_invitation, without_token
from decentral.cli.render import console, view
from decentral.cli.signals import as_ctrl_c
from decentral.cli.watch import Screen
from decentral.errors import DecentralError, ExitCode, UnreachableError, UsageError
from decentral.metrics import loggers
from decentral.metrics.log_to import LogTo
from decentral.monitor.report import Health, StatusReport

#: Where a core is free for us. Starting Python has taken up to a second of the five that users are promised.
_DEADLINE_S = 4.0
_LOAD = Path("/proc/loadavg")
#: On a machine whose processes wait for a core, longer in proportion, and never longer than this.
_MAX_DEADLINE_S = 60.0
#: What is left of the deadline is for stopping our own node.
_ANSWER_SHARE = 0.875
_REFRESH_S = 2.0
_TIMEOUT = typer.Option(
    min=1.0, max=3600.0, help="Seconds to wait for an answer; 4 by default, more on a busy machine.", metavar="SECONDS"
)

_EXIT_CODES = {
    Health.HEALTHY: ExitCode.OK,
    Health.DEGRADED: ExitCode.DEGRADED,
    Health.EMPTY: ExitCode.EMPTY,
}


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


def status(
    addresses: flags.Addresses,
    watch: Annotated[bool, typer.Option("--watch", help="Ask every two seconds until Ctrl-C.")] = False,
    format: Annotated[Format, typer.Option(help="json is described in docs/status-schema.md.")] = Format.TABLE,
    timeout: Annotated[float | None, _TIMEOUT] = None,
    log_to: flags.LogTo = None,
    debug: flags.Debug = False,
) -> int:
    """Show the run and its workers. Exit code 0: healthy, 20: degraded, 21: empty, 5: unreachable."""
    if not all(address.strip() for address in addresses):
        raise UsageError("The address is empty.", hint="Is the variable set?")
    addresses = [with_invitation(address) for address in addresses]
    loggers.check(log_to or ())
    if log_to and not watch:
        raise UsageError("--log-to logs what --watch sees.", hint="Add --watch, or leave --log-to out.")
    timeout_s = timeout or deadline_s()
    if watch:
        with as_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(addresses, format, timeout_s, log_to or ()))
        return ExitCode.OK
    report = _ask(addresses, timeout_s)
    _show(report, format)
    return _EXIT_CODES[report.health]


def deadline_s() -> float:
    """How long to wait for an answer on this machine as busy as it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # The mean of the last minute knows little of what began a moment ago; those who want a core now do.
        mean, _, _, now, _ = _LOAD.read_text().split()
        load = max(float(mean), float(now.partition("/")[0]))
    except (OSError, ValueError):  # it does not say
        load = 0.0
    return min(_MAX_DEADLINE_S, _DEADLINE_S * max(1.0, load / cores))


def _ask(addresses: Sequence[str], timeout_s: float) -> StatusReport:
    """The swarm's answer, or an error, within the deadline."""
    from decentral.run import asking

    async def ask() -> StatusReport:
        async with asyncio.timeout(timeout_s):
            return await asking.ask_status(addresses, timeout_s=_ANSWER_SHARE * timeout_s)

    try:
        return asyncio.run(ask())
    except TimeoutError as err:
        raise UnreachableError(
            f"No answer from {_places(addresses)} within {timeout_s:.0f} s.",
            hint="Does the worker run? A firewall between may drop the packets. --timeout waits longer.",
        ) from err


def _places(addresses: Sequence[str]) -> str:
    return ", ".join(map(without_token, addresses))


def _show(report: StatusReport, format: Format, *, indent: int | None = 2) -> None:
    if format is Format.JSON:
        print(report.to_json(indent=indent), flush=True)
        return
    screen = console(sys.stdout)
    screen.print(view(report, screen.width))


def _logs(names: Sequence[str], run: str) -> LogTo:
    """Loggers of a swarm as a whole, which is all that is known of it here."""
    return LogTo(names, loggers.About(run, "swarm", Path("runs") / run, {}), None)


async def _watch(addresses: Sequence[str], format: Format, timeout_s: float, log_to: Sequence[str]) -> None:
    """Ask and show for ever, and have it logged. A swarm that cannot be reached now may come back.

    Raises:
        DecentralError: asking again would not help.
    """
    from decentral.run import asking

    terminal = console(sys.stdout)
    screen = Screen(terminal, _places(addresses))
    full = format is Format.TABLE and terminal.is_terminal and not terminal.is_dumb_terminal
    live = Live(get_renderable=screen.frame, console=terminal, screen=True, refresh_per_second=1)
    logs: LogTo | None = None
    with contextlib.ExitStack() as resources:
        if full:
            resources.enter_context(live)
        async with contextlib.aclosing(asking.follow(addresses, every_s=_REFRESH_S, timeout_s=timeout_s)) as answers:
            async for answer in answers:
                if isinstance(answer, DecentralError) and not isinstance(answer, UnreachableError):
                    raise answer
                if log_to and isinstance(answer, StatusReport):
                    if logs is None:
                        logs = resources.enter_context(contextlib.closing(_logs(log_to, answer.run.run_id)))
                    logs.take(answer)
                if full:
                    screen.take(answer)
                    live.refresh()
                elif isinstance(answer, UnreachableError):
                    show_error(answer.message, answer.hint)
                else:
                    _show(answer, format, indent=None)

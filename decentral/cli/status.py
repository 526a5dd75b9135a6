"""``decentral status``: is the swarm well, and who contributes?"""

import asyncio
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.live import Live

from decentral.cli.command import show_error, with_invitation, without_token
from decentral.cli.render import console, view
from decentral.cli.worker import DEBUG
from decentral.errors import ExitCode, UnreachableError, UsageError
from decentral.monitor.report import Health, StatusReport

#: The answer comes within this time. Starting Python has taken up to a second of the five that users are promised.
_DEADLINE_S = 4.0
#: Of that, left for stopping our own node.
_RESERVE_S = 0.5
_REFRESH_S = 2.0

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
    addresses: Annotated[list[str], typer.Argument(metavar="ADDR", help="Of any worker of the swarm.")],
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")] = False,
    format: Annotated[Format, typer.Option(help="json is described in docs/status-schema.md.")] = Format.TABLE,
    debug: Annotated[bool, DEBUG] = False,
) -> int:
    """Show the run and its workers. Exit code 0: healthy, 20: degraded, 21: empty, 5: unreachable."""
    if not all(address.strip() for address in addresses):
        raise UsageError("The address is empty.", hint="Is the variable set?")
    addresses = [with_invitation(address) for address in addresses]
    if watch:
        return _watch(addresses, format)
    report = _ask(addresses)
    _show(report, format)
    return _EXIT_CODES[report.health]


def _ask(addresses: Sequence[str]) -> StatusReport:
    """The swarm's answer, or an error, within the deadline."""
    started = time.monotonic()
    from decentral.run import asking

    left_s = max(_DEADLINE_S - (time.monotonic() - started), 1.0)

    async def ask() -> StatusReport:
        async with asyncio.timeout(left_s):
            return await asking.ask_status(addresses, timeout_s=max(left_s - _RESERVE_S, 0.5))

    try:
        return asyncio.run(ask())
    except TimeoutError as err:
        raise UnreachableError(
            f"No answer from {', '.join(map(without_token, addresses))} within {_DEADLINE_S:.0f} s.",
            hint="Does the worker run? A firewall between may drop the packets.",
        ) from err


def _show(report: StatusReport, format: Format) -> None:
    if format is Format.JSON:
        print(report.to_json(), flush=True)
        return
    screen = console(sys.stdout)
    screen.print(view(report, screen.width))


def _watch(addresses: Sequence[str], format: Format) -> int:
    """Ask and show until Ctrl-C, which is the ordinary end. A swarm that cannot be reached now may come back."""
    screen = console(sys.stdout)
    try:
        if format is Format.TABLE and screen.is_terminal:
            with Live(console=screen, auto_refresh=False) as live:
                while True:
                    try:
                        live.update(view(_ask(addresses), screen.width), refresh=True)
                    except UnreachableError as err:
                        live.update(f"{time.strftime('%H:%M:%S')} {err.message}", refresh=True)
                    time.sleep(_REFRESH_S)
        while True:
            try:
                report = _ask(addresses)
                if format is Format.JSON:
                    print(report.to_json(indent=None), flush=True)
                else:
                    _show(report, format)
            except UnreachableError as err:
                show_error(err.message, err.hint)
            time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        return ExitCode.OK

"""``decentral dashboard``: a page of a swarm, served by a machine that need not take part in it."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from decentral.cli import flags
from decentral.cli.command import with_invitation
from decentral.cli.signals import as_ctrl_c
from decentral.dashboard.place import AUTO, check, serve
from decentral.errors import ExitCode, UsageError
from decentral.monitor.history import History
from decentral.monitor.report import StatusReport

_EVERY_S = 2.0
_FIRST_S = 10.0
_AT = typer.Option("--at", help="Where to serve it: on loopback, or with a token on HOST.", metavar="[HOST:]PORT")


def dashboard(
    addresses: flags.Addresses,
    at: Annotated[str, _AT] = AUTO,
    debug: flags.Debug = False,
) -> int:
    """Serve a page that shows a swarm while it runs, until Ctrl-C. Its address is the first line on stdout."""
    if not all(address.strip() for address in addresses):
        raise UsageError("The address is empty.", hint="Is the variable set?")
    check(at)
    with as_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve([with_invitation(address) for address in addresses], at))
    return ExitCode.OK


async def _serve(addresses: Sequence[str], at: str) -> None:
    from decentral.run.asking import ask_status, follow

    history = History()
    history.sample(time.time(), await ask_status(addresses, timeout_s=_FIRST_S))
    server = serve(history, at)
    try:
        print(server.url, flush=True)
        async with contextlib.aclosing(follow(addresses, every_s=_EVERY_S)) as answers:
            async for answer in answers:
                if isinstance(answer, StatusReport):
                    history.sample(time.time(), answer)
    finally:
        server.close()

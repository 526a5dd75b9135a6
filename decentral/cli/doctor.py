"""``decentral doctor``: can a worker on this machine do its part?"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from decentral.cli import flags
from decentral.cli.command import with_invitation
from decentral.cli.render import console, printable
from decentral.errors import ExitCode, UsageError
from decentral.run.findings import Finding, Mark, as_json

_ADDRESSES = typer.Argument(metavar="ADDR", help="Of any worker of the swarm, to be dialled back by.")
_PORT = typer.Option(help="Port on which a worker listens, or is to listen.", min=1, max=65_535)
_OUT = typer.Option(help="Folder in which it keeps its run.", metavar="DIR")
_DEVICE = typer.Option(help="Where it computes: cpu, mps, cuda or cuda:N.")
_JSON = typer.Option("--json", help="For programs; described in docs/operating.md.")

_COLOURS = {Mark.FINE: "green", Mark.NOTE: "yellow", Mark.MEND: "red"}


def doctor(
    addresses: Annotated[list[str] | None, _ADDRESSES] = None,
    port: Annotated[int, _PORT] = 31_337,
    out: Annotated[Path, _OUT] = Path("runs"),
    device: Annotated[str, _DEVICE] = "",
    as_json_: Annotated[bool, _JSON] = False,
    debug: flags.Debug = False,
) -> int:
    """Look at this machine and, with ADDR, at its network; each finding comes with its fix.

    Exit code 0: fine, 20: something is to be mended.
    """
    from decentral.run.doctor import Patient, examine

    if not all(address.strip() for address in addresses or ()):
        raise UsageError("The address is empty.", hint="Is the variable set?")
    asked = [with_invitation(address) for address in addresses or ()]
    findings = asyncio.run(examine(Patient(asked, port, out, device)))
    if as_json_:
        print(json.dumps(as_json(findings), indent=2), flush=True)
    else:
        console(sys.stdout).print(_table(findings))
    return ExitCode.DEGRADED if any(finding.mark is Mark.MEND for finding in findings) else ExitCode.OK


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = Text(finding.mark, _COLOURS[finding.mark])
        table.add_row(mark, finding.about, Text(printable(finding.text)))
        if finding.fix:
            table.add_row("", "", Text(f"fix: {printable(finding.fix)}", "bold"))
    return table

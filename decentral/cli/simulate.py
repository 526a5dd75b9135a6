"""``decentral simulate``: a swarm of a scenario's file on virtual time, and what came of it."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from decentral.cli import flags
from decentral.cli.render import console
from decentral.cli.status import Format
from decentral.errors import ExitCode
from decentral.monitor.figures import age, amount, loss, percent, traffic

if TYPE_CHECKING:  # imports torch, which `decentral --help` must not wait for
    from decentral.run.simulation import Played


def simulate(
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", help="A file, or one that comes along; those without.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="So many machines, in the file's proportions.")] = None,
    assignments: flags.Set = None,
    format: Annotated[Format, typer.Option(help="json is described in docs/simulator.md.")] = Format.TABLE,
    debug: flags.Debug = False,
) -> int:
    """Play a scenario on virtual time, with the engine of real workers: machines, lines, regions, churn."""
    from decentral.run.scenario_file import read, shipped

    screen = console(sys.stdout)
    if scenario is None:
        screen.print(_columns(shipped()))
        return ExitCode.OK
    file = read(scenario, assignments or (), workers)
    from decentral.run.simulation import play, record_of

    played = play(file)
    if format is Format.JSON:
        print(json.dumps({"schema_version": 1, **record_of(played)}, indent=2, allow_nan=False), flush=True)
        return ExitCode.OK
    screen.print(_columns(_figures(played)))
    return ExitCode.OK


def _figures(played: "Played") -> dict[str, str]:
    """All that came of it, in words."""
    needed = 20.0 * played.parameters
    figures = {
        "scenario": f"{played.name}: {played.machines} machines, {amount(played.parameters)} parameters, "
        f"{played.method}, {played.rounds} rounds",
        "tokens": f"{amount(played.tokens)} in {age(played.virtual_s)}, {amount(played.tokens_per_s)} a second; "
        f"{amount(needed)}, 20 a parameter, take {age(needed / played.tokens_per_s)}",
        "time in compute": percent(played.utilisation),
        "bytes": traffic(played.sent_bytes, played.dp_bytes),
        "rounds": f"{amount(played.mixed)} counted in, {played.lost} for nothing ({percent(played.lost_share)}); "
        f"{played.members:.1f} members on average",
        "machines lost": f"{played.deaths}",
        "simulated in": f"{played.wall_s:.1f} s, {played.cpu_s:.1f} s of a processor",
    }
    if played.loss == played.loss:  # not NaN
        figures["loss"] = loss(played.loss)
    return figures


def _columns(lines: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("text")
    for name, text in lines.items():
        table.add_row(name, text)
    return table

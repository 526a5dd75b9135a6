"""``decentral simulate``: what to expect, by arithmetic, before any machine is rented."""

import json
import math
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from decentral.cli.command import Command
from decentral.cli.render import console
from decentral.cli.status import Format
from decentral.cli.worker import DEBUG
from decentral.config.rate import show_rate, to_bytes_per_s
from decentral.errors import ExitCode, UsageError
from decentral.monitor.figures import amount, percent
from decentral.sim.table4 import TARGETS, compare
from decentral.sim.utilisation import Model, Swarm, bandwidth_for, methods, utilisation

simulate = typer.Typer(
    help="What to expect of a link or a method, by arithmetic.", no_args_is_help=True, rich_markup_mode=None
)

#: The utilisation for which a bandwidth is named.
_ENOUGH = 0.95


@simulate.callback()
def _root() -> None:
    """A group even with one command in it."""


@simulate.command("utilisation", cls=Command)
def show(
    parameters: Annotated[float | None, typer.Option(help="Of the model, such as 1e9.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of the model.")] = None,
    step_time: Annotated[float | None, typer.Option(help="Seconds of an inner step.")] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="Of each worker's line, in each direction: 100mbit.", metavar="RATE")
    ] = None,
    workers: Annotated[int, typer.Option(help="That mix with each other.")] = 2,
    latency: Annotated[float, typer.Option(help="Of a round trip, in seconds.")] = 0.0,
    inner_steps: Annotated[int, typer.Option(help="Between two syncs of the same part of the model.")] = 100,
    overlap: Annotated[int, typer.Option(help="Inner steps that a result may take, where there is overlap.")] = 1,
    format: Annotated[Format, typer.Option(help="json is described in docs/algorithms/utilisation.md.")] = Format.TABLE,
    debug: Annotated[bool, DEBUG] = False,
) -> int:
    """Show how much of their time workers compute, for a model and a line; without them, the paper's table and ours."""
    asked = {"--parameters": parameters, "--layers": layers, "--step-time": step_time, "--bandwidth": bandwidth}
    missing = [flag for flag, value in asked.items() if value is None]
    if len(missing) < len(asked) and missing:
        raise UsageError(
            f"{' and '.join(missing)} must be given too.",
            hint="All four of " + ", ".join(asked) + " describe your case; without any, the paper's is shown.",
        )
    try:
        if parameters is None or layers is None or step_time is None or bandwidth is None:
            if (workers, latency, inner_steps) != (2, 0.0, 100):
                raise UsageError(
                    "--workers, --latency and --inner-steps are for your own model; the paper's table has its own.",
                    hint="Add " + ", ".join(asked) + ".",
                )
            return _published(overlap, format)
        model, swarm = Model(parameters, layers, step_time), Swarm(workers, latency)
        return _own(model, swarm, 8 * to_bytes_per_s(bandwidth), inner_steps, overlap, format)
    except ValueError as err:
        raise UsageError(f"{err}.") from err


def _own(model: Model, swarm: Swarm, bits_per_s: float, inner_steps: int, overlap: int, format: Format) -> int:
    """The user's own model on the user's own line."""
    rows: list[dict[str, Any]] = []
    for method in methods(inner_steps, overlap):
        share = utilisation(model, method, bits_per_s, swarm)
        needed = bandwidth_for(_ENOUGH, model, method, swarm)
        rows.append({"method": method.name, "utilisation": share, "bits_per_s_for_95": needed})
    if format is Format.JSON:
        for row in rows:
            row["bits_per_s_for_95"] = row["bits_per_s_for_95"] if math.isfinite(row["bits_per_s_for_95"]) else None
        print(json.dumps({"schema_version": 1, "rows": rows}, indent=2), flush=True)
        return ExitCode.OK
    table = _table("method", f"with {show_rate(bits_per_s / 8)}", f"{_ENOUGH:.0%} needs")
    for row in rows:
        table.add_row(row["method"], percent(row["utilisation"]), _rate(row["bits_per_s_for_95"]))
    screen = console(sys.stdout)
    screen.print(f"share of time in compute: {amount(model.parameters)} parameters, {swarm.workers} workers")
    screen.print(table)
    return ExitCode.OK


def _published(overlap: int, format: Format) -> int:
    """The paper's three models."""
    rows = compare(overlap)
    if format is Format.JSON:
        listed = [
            {"model": row.model, "method": row.method, "gbit_per_s": row.ours, "published": row.published}
            for row in rows
        ]
        print(json.dumps({"schema_version": 1, "targets": TARGETS, "rows": listed}, indent=2), flush=True)
        return ExitCode.OK
    table = _table("model", "method", *(f"{target:.0%}" for target in TARGETS), "ratio")
    for row in rows:
        cells = [f"{our:.3g} ({theirs:g})" for our, theirs in zip(row.ours, row.published, strict=True)]
        table.add_row(row.model, row.method, *cells, f"{min(row.ratios):.2f}-{max(row.ratios):.2f}")
    screen = console(sys.stdout)
    screen.print("Gbit/s for a share of time in compute: by our model (and as printed in arXiv 2501.18512, table 4)")
    screen.print(table)
    return ExitCode.OK


def _table(*names: str) -> Table:
    """Words to the left, figures to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in names:
        words = name in ("model", "method")
        table.add_column(name, no_wrap=words, justify="left" if words else "right")
    return table


def _rate(bits_per_s: float) -> str:
    """A rate with three digits; latency can put it out of reach."""
    return show_rate(float(f"{bits_per_s:.3g}") / 8) if math.isfinite(bits_per_s) else "out of reach"

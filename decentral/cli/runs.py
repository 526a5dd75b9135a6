"""``decentral runs``: which runs lie in a folder, their checkpoints, and the command that goes on with each."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from decentral.cli import flags
from decentral.cli.render import console, printable
from decentral.cli.status import Format
from decentral.errors import ConfigError, ExitCode, UsageError
from decentral.monitor.figures import age, loss, size
from decentral.run.listing import Checkpoint, RunFolder, WorkerFolder, is_finished, runs_in

#: Of the JSON. Adding a field is compatible, anything else raises it.
SCHEMA = 1

_FOLDER = typer.Argument(metavar="DIR", help="Of a worker, of a local run, or with many of these.")
_VERIFY = typer.Option("--verify", help="Read every file and compare its digest, not only its size.")


def runs(
    folder: Annotated[Path, _FOLDER] = Path("runs"),
    verify: Annotated[bool, _VERIFY] = False,
    format: Annotated[Format, typer.Option(help="json is described in docs/resuming.md.")] = Format.TABLE,
    debug: flags.Debug = False,
) -> int:
    """List runs, their checkpoints, and what can be resumed. Exit code 0: all whole, 20: some damaged, 21: none."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", hint="Give the folder of a run: decentral runs DIR.")
    try:
        found = runs_in(folder, digests=verify)
    except OSError as err:
        raise ConfigError(f"Cannot read {folder}: {err.strerror or err}.") from err
    if format is Format.JSON:
        print(json.dumps(as_json(found), indent=2, allow_nan=False))
    else:
        _show(found, folder)
    if not found:
        return ExitCode.EMPTY
    damaged = any(one.problem for run in found for worker in run.workers for one in worker.checkpoints)
    return ExitCode.DEGRADED if damaged else ExitCode.OK


def as_json(found: list[RunFolder]) -> dict[str, object]:
    """All of it, as numbers and texts."""
    return {"schema": SCHEMA, "runs": [{**asdict(run), "resume": run.resume} for run in found]}


def _show(found: list[RunFolder], folder: Path) -> None:
    screen = console(sys.stdout)
    for run in found:
        for worker in run.workers:
            screen.print(_title(worker), overflow="fold")
            if worker.checkpoints:
                screen.print(_table(worker))
        screen.print(Text(_next(run)), overflow="fold")
        screen.print()
    if not found:
        print(f"no run in {folder}", file=sys.stderr)


def _title(worker: WorkerFolder) -> Text:
    parts = [worker.path, worker.run or "of an unknown run", *([worker.method] if worker.method else [])]
    if not worker.checkpoints:
        parts.append("no checkpoint" + (", weights alone" if worker.weights else ""))
    return Text(printable("  ".join(parts)), style="bold")


def _table(worker: WorkerFolder) -> Table:
    """A row for each checkpoint, the newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("  checkpoint", no_wrap=True)
    for name in ("step", "round", "val loss", "size", "age"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("", overflow="fold")
    for one in worker.checkpoints:
        style = "yellow" if one.problem else "default"
        table.add_row(f"  {one.name}", *_figures(one), Text(printable(_notes(one, worker)), style=style))
    return table


def _figures(one: Checkpoint) -> tuple[str, ...]:
    return (
        "-" if one.step is None else str(one.step),
        "-" if one.round is None else f"{one.round} of {one.rounds}",
        "-" if one.val_loss is None else loss(one.val_loss),
        size(one.size_bytes),
        "-" if one.time is None else age(time.time() - one.time),
    )


def _notes(one: Checkpoint, worker: WorkerFolder) -> str:
    parts = [
        name for name, is_so in (("latest", one.latest), ("best", one.best), ("finished", is_finished(one))) if is_so
    ]
    if one.run and one.run != worker.run:
        parts.append(f"of {one.run}")
    if one.problem:
        parts.append(f"cannot be used: {one.problem}")
    return ", ".join(parts)


def _next(run: RunFolder) -> str:
    """What can be done with it."""
    if run.resume:
        return f"  resume: {run.resume}"
    if any(worker.newest for worker in run.workers):
        return "  finished: nothing is left to resume"
    return "  nothing to resume from"

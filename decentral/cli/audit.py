"""``decentral audit``: who did what in which round, from the journals of several workers of one run."""

import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from decentral.cli import flags
from decentral.cli.render import console, printable
from decentral.cli.status import Format
from decentral.config.names import ALL_REDUCE, METHODS
from decentral.errors import ConfigError, ExitCode, MismatchError, UsageError
from decentral.monitor.audit import Audit, Difference, Key, Kind, Said, WorkerAccount
from decentral.monitor.audit import audit as audited
from decentral.monitor.figures import finding
from decentral.monitor.journal import JournalReader
from decentral.monitor.stages import name_of
from decentral.run.folder import CONFIG, JOURNAL, WORKERS, folders_of
from decentral.types import PeerId, short_id

#: Of the JSON. Adding a field is compatible, anything else raises it.
SCHEMA = 1
#: Differences that are shown at most; the JSON has all.
_MAX_SHOWN = 50

_FOLDERS = typer.Argument(metavar="DIR...", help="Of workers or of a local run, or their journals; all of one run.")
_ROUND = typer.Option("--round", metavar="R", help="Show what everybody says of this round.", min=0)


def audit(
    folders: Annotated[list[Path], _FOLDERS],
    round: Annotated[int | None, _ROUND] = None,
    format: Annotated[Format, typer.Option(help="json is described in docs/journal.md.")] = Format.TABLE,
    debug: flags.Debug = False,
) -> int:
    """Put the journals of several workers side by side: what each did, who was restrained, who contradicts whom.

    Exit code 0: they agree, 20: some contradict each other, 21: there is nothing in them.
    """
    journals = [path for folder in folders for path in _journals_in(folder)]
    run, lines = _read(journals)
    try:
        found = audited(run, lines, common_anchor=all(_has_common_anchor(path) for path in journals))
    except (TypeError, ValueError, AttributeError) as err:
        raise ConfigError(
            f"A journal has a line that no release of decentral writes: {err}.",
            hint="Leave out the journals of those you do not trust, one after the other.",
        ) from err
    if format is Format.JSON:
        print(json.dumps(as_json(found, round), indent=2, allow_nan=False))
    elif round is None:
        _show(found)
    else:
        _show_round(found, round)
    if not found.syncs:
        return ExitCode.EMPTY
    return ExitCode.DEGRADED if found.contradicts else ExitCode.OK


def as_json(found: Audit, round: int | None) -> dict[str, Any]:
    """All of it, or what is said of one round, as numbers and texts."""
    return {
        "schema": SCHEMA,
        "run": found.run,
        "workers": [asdict(one) for one in found.workers],
        "differences": [
            {**each.key._asdict(), "kind": each.kind, "sides": [{"says": says, "by": by} for says, by in each.sides]}
            for each in found.differences
        ],
        "syncs": [
            {**key._asdict(), "said": {peer: _plain(one) for peer, one in said.items()}}
            for key, said in found.syncs.items()
            if round is None or key.round == round
        ],
    }


def _plain(said: Said) -> dict[str, Any]:
    return {**asdict(said), "members": sorted(said.members)}


def _journals_in(folder: Path) -> list[Path]:
    """Raises UsageError: there is none."""
    if folder.is_file():
        return [folder]
    workers = folders_of(folder)[1:] if (folder / WORKERS).is_dir() else [folder]
    found = [path / JOURNAL for path in workers if (path / JOURNAL).is_file()]
    if not found:
        raise UsageError(
            f"There is no journal in {folder}.", hint="Give the folders of workers (--out), or that of a local run."
        )
    return found


def _read(journals: Sequence[Path]) -> tuple[str, dict[PeerId, list[dict[str, Any]]]]:
    """Run and lines by worker.

    Raises:
        ConfigError: a journal cannot be read, or does not say whose it is.
        MismatchError: they are of several runs.
    """
    runs: dict[str, Path] = {}
    lines: dict[PeerId, list[dict[str, Any]]] = {}
    for path in journals:
        try:
            own = JournalReader(path).read()
        except OSError as err:
            raise ConfigError(f"Cannot read {path}: {err.strerror or err}.") from err
        started = [line for line in own if line["event"] == "started"]
        if not started:
            raise ConfigError(
                f"{path} does not say whose it is: the line of its start is not there any more.",
                hint="A longer journal keeps it (worker.journal_bytes). Leave this one out.",
            )
        # What is older is of an earlier run in the same folder.
        run, peer = str(started[-1].get("run")), PeerId(str(started[-1].get("peer")))
        first = next(number for number, line in enumerate(own) if line["event"] == "started" and line.get("run") == run)
        runs.setdefault(run, path)
        lines.setdefault(peer, []).extend(own[first:])
    if len(runs) > 1:
        told = " and ".join(f"{path} of {run}" for run, path in runs.items())
        raise MismatchError(f"These are journals of several runs: {told}.", hint="Give those of one run.")
    return next(iter(runs)), lines


def _has_common_anchor(journal: Path) -> bool:
    """Whether members of a round have one anchor after it, by the configuration beside a journal, if there is any."""
    try:
        with (journal.parent / CONFIG).open("rb") as file:
            name = tomllib.load(file)["method"]["name"]
        return METHODS[name].family in ALL_REDUCE
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _show(found: Audit) -> None:
    screen = console(sys.stdout)
    rounds = [key.round for key in found.syncs]
    span = f", rounds {min(rounds)} to {max(rounds)}" if rounds else ", no round"
    own = sum(worker.has_journal for worker in found.workers)
    screen.print(Text(printable(f"{found.run}: {own} of {len(found.workers)} workers' journals{span}"), style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("worker", no_wrap=True)
    for name in ("rounds", "mixed", "aborted", "repaired", "sat out"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("what others say", overflow="fold")
    for worker in found.workers:
        table.add_row(*_row(worker))
    screen.print(table)
    for each in found.differences[:_MAX_SHOWN]:
        style = "default" if each.kind is Kind.APART else "yellow"
        screen.print(Text(printable(f"{_name(each.key)}: {_told(each)}"), style=style), overflow="fold")
    if (more := len(found.differences) - _MAX_SHOWN) > 0:
        screen.print(Text(f"and {more} more: --format json has all"))
    if not found.contradicts:
        screen.print(Text("no contradictions"))


def _told(each: Difference) -> str:
    """In words."""
    match each.kind:
        case Kind.ANCHORS:
            return "different anchors: " + "; ".join(f"{_names(peers)} have {digest}" for digest, peers in each.sides)
        case Kind.MEMBERS:
            named = [(peers, [PeerId(peer) for peer in says.split(", ")]) for says, peers in each.sides]
            return "different members: " + "; ".join(
                f"{_names(peers)} say {_names(members)}" for peers, members in named
            )
        case Kind.APART:
            return "groups that mixed apart: " + "; ".join(_names(peers) for _, peers in each.sides)


def _row(worker: WorkerAccount) -> tuple[str, ...]:
    said = [f"{finding(kind)} in {count}" for kind, count in worker.restrained.items()]
    said += [f"{reason} in {count}" for reason, count in worker.absent.items()]
    if not worker.has_journal:
        return short_id(worker.peer), "-", "-", "-", "-", "-", printable(", ".join(["no journal given", *said]))
    counts = (worker.mixed, worker.aborted, worker.repaired, worker.sat_out)
    span = "-" if worker.first is None else f"{worker.first}-{worker.last}"
    return short_id(worker.peer), span, *map(str, counts), printable(", ".join(said))


def _show_round(found: Audit, round: int) -> None:
    screen = console(sys.stdout)
    for key, said in found.syncs.items():
        if key.round != round:
            continue
        screen.print(Text(printable(_name(key)), style="bold"))
        for peer, one in said.items():
            screen.print(Text(printable(f"  {short_id(peer)}  {_sentence(one)}")), overflow="fold")


def _sentence(said: Said) -> str:
    parts = [said.outcome]
    if said.outcome == "mixed":
        norm = "" if said.delta_norm is None else f", norm of the mean {said.delta_norm:.4g}"
        parts = [f"mixed with {_names(sorted(said.members))}, anchor {said.digest}{norm}"]
    elif said.reason:
        parts = [f"{said.outcome}: {said.reason}"]
    parts += [f"{short_id(peer)}: {finding(kind)}" for peer, kind in said.restrained.items()]
    parts += [f"{short_id(peer)} was missing: {why}" for peer, why in said.absent.items()]
    return "; ".join(parts)


def _names(peers: Sequence[PeerId]) -> str:
    return ", ".join(map(short_id, peers)) or "nobody"


def _name(key: Key) -> str:
    stage = f" of {name_of(key.stage)}" if key.stage >= 0 else ""
    return f"round {key.round}" + (f", fragment {key.fragment}" if key.fragment > 0 else "") + stage

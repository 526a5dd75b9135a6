"""What a status report looks like on a terminal or in a pipe.

Texts in a report come from strangers: nothing that is not printable reaches the terminal.
"""

import math
from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from decentral.monitor.figures import amount, loss, mbit, percent, size, traffic
from decentral.monitor.report import Health, RunFacts, StageRow, StatusReport, WorkerRow
from decentral.types import short_id

_WHY = "why not contributing"
#: Columns that are left out one after the other until the table fits; the reasons then follow it.
_EXPENDABLE = (_WHY, "up mbit/s mean/peak", "launches", "in", "out", "overlap", "seen", "partner", "spread")
#: Between two columns.
_GAP = 2
#: From this width on, what happened to a stage has a column of its own; below it follows the table.
_WIDE = 110
#: Of an id in a report, which may be longer than ours are.
_ID_WIDTH = 6
#: A worker without a partner in more than this share of its rounds is shown as such; a few happen to everybody.
_ALONE_SHARE = 0.1
#: Holders of a stage that are shown by their ids.
_HOLDERS = 3
#: Of a table in a pipe: wide enough that nothing is cut.
_PIPE_WIDTH = 400
#: Of its time that a worker waits for data from which on it is worth a line.
_STARVED_SHARE = 0.02

_COLOURS = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.EMPTY: "red"}


def console(file: IO[str]) -> Console:
    """A console that cuts nothing and uses no colour unless ``file`` is a terminal."""
    return Console(file=file, highlight=False, width=None if file.isatty() else _PIPE_WIDTH)


def view(report: StatusReport, width: int, max_workers: int | None = None) -> Group:
    """The line of the run, a row for each stage and each worker, why some do not contribute, and what went wrong.

    Args:
        report: to show.
        width: of the terminal.
        max_workers: where there are more, those who are not well are shown first, and the others are counted.
    """
    workers, num_more = report.workers, 0
    if max_workers is not None and len(workers) > max_workers:
        num_more = len(workers) - max_workers
        workers = tuple(sorted(workers, key=lambda row: row.healthy)[:max_workers])
    parts: list[Text | Table] = [run_line(report)]
    if report.stages:
        parts.append(_stages(report.stages, width))
    if width < _WIDE:
        parts += [_text(note, style) for row in report.stages for note, style in [_event(row)] if note]
    columns = _columns(report, workers, width)
    if workers:
        parts.append(_table(columns))
    if num_more:
        parts.append(_text(f"and {num_more} more", "dim"))
    if _WHY not in columns:
        parts += [_text(f"{row.id}: {_trouble(row)}", _colour(row)) for row in workers if not row.healthy]
    restrained = sorted({peer for row in workers for peer in row.restrained})
    if restrained:
        parts.append(_text(f"cut down or left out in the last round: {', '.join(restrained)}", "yellow"))
    if report.banned:
        parts.append(_text(f"banned: {', '.join(map(short_id, report.banned))}", "yellow"))
    starved = [row for row in workers if row.data_share >= _STARVED_SHARE]
    parts += [_text(f"{row.id}: waits for data {row.data_share:.0%} of its time", "default") for row in starved]
    if report.run.gossip:
        parts += [_text(f"{row.id}: {trouble}", "default") for row in workers if (trouble := _lone(row))]
    return Group(*parts)


def run_line(report: StatusReport) -> Text:
    """The run in one line."""
    run, totals = report.run, report.totals
    stages = [f"{run.num_stages} stages"] if run.num_stages else []
    parts = [
        ", ".join([f"{run.run_id}: {run.method}", run.codec, *stages, *_pace(report.workers)]),
        f"round {totals.round} of {run.rounds}",
        f"{amount(totals.tokens)} tokens",
        f"loss {loss(totals.loss)}" + (f" (val {loss(totals.val_loss)})" if math.isfinite(totals.val_loss) else ""),
        f"{amount(totals.tokens_per_s)} tokens/s",
        *([f"spread {percent(totals.spread)}"] if run.gossip else []),
        traffic(totals.sent_bytes, totals.dp_bytes),
        *([f"activations {size(totals.activation_bytes)}"] if run.num_stages else []),
        *([f"{amount(totals.resent)} sent again"] if totals.resent else []),
    ]
    line = Text(f"{report.health.value}  ", style=_COLOURS[report.health])
    return line.append_text(_text(" | ".join(parts), "default"))


def _pace(workers: Sequence[WorkerRow]) -> list[str]:
    """Overlap and launches a round, as far as they are the same for all; nothing of workers that block."""
    delays, groups = _same([row.delay_steps for row in workers]), _same([row.num_groups for row in workers])
    return [
        *([f"overlap {amount(delays)} steps"] if delays else []),
        *([f"{amount(groups)} launches a round"] if groups and groups > 1 else []),
    ]


def _same(values: Sequence[int]) -> int | None:
    """What all have; ``None`` if they differ."""
    return values[0] if len(set(values)) == 1 else None


def _stages(stages: Sequence[StageRow], width: int) -> Table:
    """The head and every stage, in a line each."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("holders", no_wrap=True)
    for name in ("load", "queue", "ms each", "lost", "healed"):
        table.add_column(name, no_wrap=True, justify="right")
    if width >= _WIDE:
        table.add_column("what happened")
    for row in stages:
        ids = ", ".join(id[:_ID_WIDTH] for id in row.holders[:_HOLDERS])
        more = f" +{len(row.holders) - _HOLDERS}" if len(row.holders) > _HOLDERS else ""
        load = "-" if math.isnan(row.load) else f"{row.load:.0%}"
        each = "-" if math.isnan(row.microbatch_s) else f"{min(1000 * row.microbatch_s, 99_999):.0f}"
        counts = [amount(count) for count in (row.failures, row.recoveries)]
        note, style = _event(row)
        name = "head" if row.stage == 0 else str(row.stage)
        table.add_row(
            *(_text(cell, style if row.reason else "default") for cell in (name, f"{ids}{more}" or "nobody")),
            *(load, amount(row.queue), each, *counts),
            *([_text(note, style)] if width >= _WIDE else []),
        )
    return table


def _event(row: StageRow) -> tuple[str, str]:
    """Why a stage has no holder, or how it came back last, and the colour for that."""
    if row.reason:
        return row.reason, "yellow"
    return row.recovery, "default"


def _columns(report: StatusReport, workers: Sequence[WorkerRow], width: int) -> dict[str, list[Text]]:
    """The cells of the workers by the name of their column: as many columns as there is room for."""
    columns: dict[str, list[Text]] = {}
    for row in workers:
        for name, cell in _cells(row, report.run).items():
            columns.setdefault(name, []).append(cell)
    pace = {
        "overlap": [row.delay_steps for row in report.workers],
        "launches": [row.num_groups for row in report.workers],
    }
    for name, values in pace.items():
        if workers and _same(values) is not None:  # the line of the run has it
            columns.pop(name)
    for name in _EXPENDABLE:
        widths = [max(len(name), *(cell.cell_len for cell in cells)) for name, cells in columns.items()]
        if sum(widths) + _GAP * (len(widths) - 1) <= width:
            break
        columns.pop(name, None)
    return columns


def _table(columns: Mapping[str, Sequence[Text]]) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name in ("worker", "stage", "state", _WHY) else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _place(row: WorkerRow) -> str:
    """The stages of a worker: what it holds, else what it is about to hold."""
    if row.holds or not row.takes:
        return ranges(row.holds) or "spare"
    return f"takes {ranges(row.takes)}"


def ranges(stages: Sequence[int]) -> str:
    """Numbers in rising order, such as ``0,2-4``."""
    parts: list[list[int]] = []
    for stage in stages:
        if parts and stage == parts[-1][-1] + 1:
            parts[-1].append(stage)
        else:
            parts.append([stage])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _cells(row: WorkerRow, run: RunFacts) -> dict[str, Text]:
    """All that there is to show of a worker, by the name of its column, in their order."""
    shares = (row.compute_share, row.waiting_share, row.transfer_share)
    texts = {
        **({"stage": _place(row)} if run.num_stages else {}),
        "state": row.state,
        "round": str(row.round),
        "loss": loss(row.loss),
        "tok/s": amount(row.tokens_per_s),
        **({"partner": _partner(row.partners), "spread": percent(row.spread)} if run.gossip else {}),
        "work/wait/move": "/".join(f"{share:.0%}" for share in shares),
        "in": size(row.received_bytes),
        "out": size(row.sent_bytes),
        "up mbit/s mean/peak": f"{mbit(row.sent_bytes_per_s)}/{mbit(row.peak_sent_bytes_per_s)}",
        "overlap": amount(row.delay_steps),
        "launches": amount(row.num_groups),
        "seen": f"{min(row.age_s, 99_999):.0f}s",
        _WHY: _trouble(row),
    }
    coloured = ("state", _WHY)
    cells = {name: _text(text, _colour(row) if name in coloured else "default") for name, text in texts.items()}
    return {"worker": _text(row.id, "default"), **cells}


def _partner(partners: Sequence[str]) -> str:
    """The first partner, and how many more there were."""
    if not partners:
        return "-"
    return partners[0][:_ID_WIDTH] + (f"+{len(partners) - 1}" if len(partners) > 1 else "")


def _lone(row: WorkerRow) -> str:
    """What did not work between a worker and its partners; empty if all did."""
    rounds = row.rounds_in + row.rounds_out
    often = row.rounds_alone > _ALONE_SHARE * rounds
    parts = [f"alone in {amount(row.rounds_alone)} of {amount(rounds)} rounds"] if often else []
    if row.one_sided:
        parts.append(f"swaps not confirmed: {amount(row.one_sided)}")
    if row.avoids:
        parts.append(f"avoids {', '.join(row.avoids)}")
    return "; ".join(parts)


def _trouble(row: WorkerRow) -> str:
    """Why a worker does not contribute, or what is wrong although it does."""
    return row.reason or (f"contributes, but {row.note}" if row.note else "")


def _colour(row: WorkerRow) -> str:
    return "green" if row.contributes and row.healthy else "default" if row.healthy else "yellow"


def _text(text: str, style: str) -> Text:
    return Text(printable(text), style=style)


def printable(text: str) -> str:
    """A stranger's text in one line that does nothing to a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)

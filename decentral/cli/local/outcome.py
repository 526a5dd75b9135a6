"""What a local run leaves behind beside its weights: one journal, a loss curve, and a summary for people."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from decentral.monitor.figures import amount, loss, traffic
from decentral.monitor.journal import JournalReader
from decentral.monitor.report import Totals
from decentral.ports.trainer import Trainer
from decentral.run.folder import whole_file
from decentral.state.average import Chosen


def merge_journals(journals: Sequence[Path], target: Path) -> list[dict[str, Any]]:
    """Write all events in the order of time, each with the ``worker`` it is from, to ``target``; also return them."""
    merged = [{"worker": index, **event} for index, path in enumerate(journals) for event in JournalReader(path).read()]
    merged.sort(key=lambda event: float(event["time"]))
    with whole_file(target) as file:
        file.writelines(json.dumps(event) + "\n" for event in merged)
    return merged


def draw_losses(events: Sequence[dict[str, Any]], inner_steps: int, target: Path) -> bool:
    """Draw training loss (a thin line for each worker) and validation loss (dots) over global inner steps.

    Of a pipeline the heads alone have a loss of their own.

    Returns:
        Whether it was drawn: there must be something to draw, and matplotlib, which a lean install leaves out.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        typer.echo(f"no {target.name}: it takes matplotlib (pip install 'decentral[plot]')", err=True)
        return False

    lines: dict[int, list[tuple[int, float]]] = {}
    dots: list[tuple[int, float]] = []
    for event in events:
        if event["event"] == "stretch_done" and event["loss"] is not None and not event.get("stage"):
            lines.setdefault(event["worker"], []).append((event["step"], event["loss"]))
        if event["event"] == "validated" and event["val_loss"] is not None:
            dots.append((event["round"] * inner_steps, event["val_loss"]))
    if not lines and not dots:
        return False

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    axes = figure.add_subplot()
    for worker, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), linewidth=0.8, alpha=0.7, label=f"worker {worker}, training")
    if dots:
        axes.plot(*zip(*sorted(dots), strict=True), "ko-", markersize=4, linewidth=1, label="validation")
    axes.set_xlabel("inner steps")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with whole_file(target, "wb") as file:
        figure.savefig(file, dpi=120, format="png")
    return True


def summary(
    folder: Path, chosen: Chosen | None, what: str, trainer: Trainer, totals: Totals, num_workers: int, seconds: float
) -> str:
    """The end of a run in a few lines, with a sample if the task can give one.

    Args:
        folder: of the run.
        chosen: the weights that were kept; ``None`` if there are none.
        what: they are, if there was a choice.
        trainer: has these weights.
        totals: of all workers.
        num_workers: that there were.
        seconds: that the run took.
    """
    rows = [
        ("tokens", f"{amount(totals.tokens)} by {num_workers} workers in {seconds:.0f} s"),
        ("bytes", traffic(totals.sent_bytes, totals.dp_bytes)),
        ("run folder", str(folder)),
    ]
    sample = ""
    if chosen is None:
        rows.insert(0, ("weights", "none were saved"))
    else:
        of = f"{what} " if what else ""
        rows.insert(0, ("validation loss", f"{loss(chosen.loss)} nats per token, {of}after round {chosen.round}"))
        draw: Callable[[], str] | None = getattr(trainer, "sample", None)
        sample = f"\nsample:\n{draw().strip()}" if draw is not None else ""
    return "\n".join(f"{name:17}{value}" for name, value in rows) + sample

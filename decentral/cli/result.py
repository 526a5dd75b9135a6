"""One model out of a run's replicas, as ``export`` and the end of ``local`` make it: measured, shown, written."""

import math
from pathlib import Path

from rich.table import Table
from rich.text import Text

from decentral import __version__
from decentral.config.names import Family
from decentral.config.schema import SwarmConfig
from decentral.errors import ConfigError
from decentral.monitor.figures import loss
from decentral.ports.trainer import Lineage, Publisher, Trainer
from decentral.state.average import AVERAGE, NEWEST, Chosen, Measure, Survey, Weights, ensure_same_shapes, shapes_of
from decentral.state.files import save_weights


def default_take(swarm: SwarmConfig | None) -> str:
    """What to take if the user does not say: replicas of a gossip are averaged.

    Those of an all-reduce are equal, unless some were stopped early; then the newest has all of the run in it. Without
    a configuration, replicas that differ are taken for a gossip's.
    """
    return NEWEST if swarm is not None and swarm.method.family is not Family.GOSSIP else AVERAGE


def measure_with(trainer: Trainer) -> Measure:
    """The validation loss of any weights, by the task's trainer, which has them afterwards."""
    shapes = shapes_of(trainer.parameters())

    def measure(weights: Weights) -> float:
        ensure_same_shapes("What was found", weights, "the configured task", shapes)
        trainer.load(weights)
        value = trainer.validate()
        return value if math.isfinite(value) else math.nan

    return measure


def table(survey: Survey, chosen: Chosen) -> Table:
    """A row for each replica, one for their average if they differ, and what was taken."""
    averaged = len(chosen.sources) > 1
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    shown.add_column("replica", no_wrap=True)
    for name in ("round", "loss"):
        shown.add_column(name, no_wrap=True, justify="right")
    shown.add_column("", no_wrap=True)
    for row in survey.rows:
        notes = ["taken"] if row.replica in chosen.sources and not averaged else []
        notes += [f"not in the average: {row.left_out}"] if row.left_out else []
        shown.add_row(Text(row.replica.name), str(row.replica.round), loss(row.loss), "; ".join(notes))
    if survey.differ:
        newest = max(replica.round for replica in survey.averaged)
        notes = ["taken"] if averaged else []
        shown.add_row(
            AVERAGE, str(newest), loss(survey.average_loss), "; ".join([*notes, f"spread {100 * survey.spread:.3g} %"])
        )
    return shown


def words(survey: Survey, chosen: Chosen) -> str:
    """What was taken."""
    if len(chosen.sources) > 1:
        return f"average of {len(chosen.sources)} replicas"
    one, averaged = chosen.sources[0], survey.averaged
    equal = not survey.differ and one in averaged and len(averaged) > 1
    return f"replica {one.name}" + (f" (all {len(averaged)} are equal)" if equal else "")


def publish(folder: Path, chosen: Chosen, swarm: SwarmConfig, publisher: Publisher, *, with_weights: bool) -> None:
    """Fill a folder with what other libraries read of the weights.

    Args:
        folder: made if it does not exist.
        chosen: the weights.
        swarm: of the run.
        publisher: of the task.
        with_weights: whether the weights are to be written as well; else they are there.

    Raises:
        ConfigError: it cannot be written.
    """
    about = Lineage(chosen.sources[0].run, swarm.method.name, chosen.round, chosen.loss)
    try:
        folder.mkdir(exist_ok=True)
        publisher(folder, about, chosen.weights if with_weights else None)
    except OSError as err:
        raise ConfigError(f"Cannot write to {folder}: {err.strerror or err}.") from err


def write(path: Path, chosen: Chosen) -> None:
    """Write the weights and what they are; what was at ``path`` is replaced only when all is written.

    Raises:
        ConfigError: it cannot be written.
    """
    first, *others = chosen.sources
    metadata = {"run": first.run, "round": str(chosen.round), "decentral": __version__}
    if others:
        metadata["average_of"] = ",".join(replica.name for replica in chosen.sources)
    else:
        metadata |= {"digest": first.digest, "replica": first.name}
    try:
        save_weights(path, chosen.weights, metadata)
    except OSError as err:
        raise ConfigError(
            f"Cannot write {path}: {err.strerror or err}.", hint="What was there before is intact."
        ) from err

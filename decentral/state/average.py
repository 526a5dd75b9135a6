"""One model out of the replicas that a run leaves: which belong together, how far apart they are, and the choice.

The replicas of a gossip differ, those of an all-reduce are equal. Weights and losses come through functions, one
replica after the other, so that no more than a few models are in memory at once. Nothing here knows a file, a peer or a
task.

Legend: P = the shape of each parameter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.errors import ConfigError, DivergedError, MismatchError, UsageError
from decentral.tensors.digest import digest

#: What may be taken, beside a replica by its name.
AVERAGE, BEST, NEWEST = "average", "best", "newest"
#: A replica so many rounds behind the newest, or such a share of all rounds, still counts: no two workers end at once.
_FRESH_ROUNDS = 2
_FRESH_SHARE = 0.1

Weights = Mapping[str, Tensor]
#: The validation loss of weights, nats per token; NaN if it is not finite.
Measure = Callable[[Weights], float]


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker's weights, wherever they are."""

    name: str
    """For people, and to choose it by."""
    run: str
    """Which run it is of; empty if unknown."""
    round: int
    """The next round of its worker."""
    load: Callable[[], Weights]
    """Its weights, float32 on the CPU. Raises ``OSError`` if they cannot be had or are not finite."""
    digest: str = ""
    """Of its anchor and outer state, as its worker says; empty if unknown."""
    named: bool = False
    """Whether the user asked for this very one, which then counts however old it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one replica."""

    replica: Replica
    loss: float
    """Validation loss; NaN if it was not measured or is not finite."""
    left_out: str = ""
    """Why it is not in the average; empty if it is."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Replicas side by side."""

    rows: tuple[Row, ...]
    differ: bool
    """Whether the replicas in the average are not all equal."""
    average: Weights
    """Their mean."""
    average_loss: float
    """Validation loss of the mean."""
    spread: float
    """See ``RunningMean.spread``."""

    @property
    def averaged(self) -> tuple[Replica, ...]:
        """The replicas in the average."""
        return tuple(row.replica for row in self.rows if not row.left_out)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What becomes the model of the run."""

    weights: Weights
    sources: tuple[Replica, ...]
    """The replica taken, or those averaged."""
    loss: float
    """Validation loss; NaN if it was not measured or is not finite."""

    @property
    def round(self) -> int:
        """The next round of the newest source."""
        return max(replica.round for replica in self.sources)


class RunningMean:
    """Mean of named tensors that come one after the other, and how far they are from it.

        m_n = m_{n-1} + (x_n - m_{n-1}) / n
        s_n = s_{n-1} + <x_n - m_{n-1}, x_n - m_n>

    in float64, over all values together. Equal replicas give exactly themselves and a spread of exactly 0.

    Source: B. P. Welford, Technometrics 4 (1962) 419, for vectors in place of numbers; no other differences.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean_P: dict[str, Tensor] = {}
        self._squares = 0.0

    def add(self, weights: Weights) -> None:
        """Count one more replica, of the same names and shapes as those before."""
        self._count += 1
        for name, value_P in weights.items():
            x_P = value_P.to(torch.float64)
            if self._count == 1:
                self._mean_P[name] = x_P
                continue
            mean_P = self._mean_P[name]
            step_P = x_P - mean_P
            mean_P += step_P / self._count
            self._squares += float((step_P * (x_P - mean_P)).sum())

    def mean(self) -> dict[str, Tensor]:
        """The mean so far, float32."""
        return {name: mean_P.to(torch.float32) for name, mean_P in self._mean_P.items()}

    def spread(self) -> float:
        """How far two replicas are apart: sqrt(2 s_n / (n - 1)) / |m_n|.

        This is the RMS of the difference of two replicas, over all pairs, over the RMS of the mean: for comparison with
        what swaps find during a run. From their mean replicas are sqrt(2n / (n - 1)) times less far away.
        """
        if self._squares == 0:
            return 0.0
        norm = math.hypot(*(float(mean_P.norm()) for mean_P in self._mean_P.values()))
        return math.sqrt(2 * self._squares / (self._count - 1)) / norm if norm else math.inf


def survey(replicas: Sequence[Replica], measure: Measure | None) -> Survey:
    """Look at each replica and at their mean.

    A replica that is more than a tenth of the newest one's rounds behind it (and more than 2) was lost long before the
    end: it is shown and left out of the mean, unless the user named it.

    Args:
        replicas: at least one.
        measure: the loss of weights; ``None`` to do without losses.

    Raises:
        MismatchError: replicas of different runs, or with different parameters.
        ConfigError: weights that cannot be had or are not finite.
    """
    ensure_one_run(replicas)
    newest = max(replica.round for replica in replicas)
    losses: dict[str, float] = {}  # by content: equal weights are measured once
    fresh: set[str] = set()
    rows: list[Row] = []
    mean = RunningMean()
    shapes: dict[str, tuple[int, ...]] = {}
    for replica in replicas:
        weights = _loaded(replica)
        shapes = shapes or shapes_of(weights)
        ensure_same_shapes(replica.name, weights, replicas[0].name, shapes)
        content = digest(*(weights[name] for name in sorted(weights)))
        if content not in losses:
            losses[content] = math.nan if measure is None else measure(weights)
        behind = newest - replica.round
        if behind > max(_FRESH_ROUNDS, _FRESH_SHARE * newest) and not replica.named:
            rows.append(Row(replica, losses[content], f"{behind} rounds behind"))
            continue
        rows.append(Row(replica, losses[content]))
        fresh.add(content)
        mean.add(weights)
    average, differ = mean.mean(), len(fresh) > 1
    average_loss = losses[fresh.pop()] if not differ else math.nan if measure is None else measure(average)
    return Survey(tuple(rows), differ, average, average_loss, mean.spread())


def choose(survey: Survey, take: str) -> Chosen:
    """What the user wants of it.

    Args:
        survey: of the replicas.
        take: ``average``; ``best``, the replica with the lowest loss; ``newest``, the replica of the highest round; or
            a replica's name. If all replicas in the average are equal, the average is the newest of them.

    Raises:
        UsageError: there is no such replica, or more than one.
        DivergedError: no replica has a finite loss to go by.
        ConfigError: its weights cannot be had.
    """
    if take == AVERAGE and survey.differ:
        return Chosen(survey.average, survey.averaged, survey.average_loss)
    if take in (AVERAGE, NEWEST):
        row = max(survey.rows, key=lambda row: row.replica.round)
    elif take == BEST:
        measured = [row for row in survey.rows if not math.isnan(row.loss)]
        if not measured:
            raise DivergedError("No replica has a finite loss, so none is the best.", hint="Take the average, or one.")
        row = min(measured, key=lambda row: row.loss)
    else:
        found = [row for row in survey.rows if row.replica.name == take]
        if len(found) != 1:
            names = ", ".join(row.replica.name for row in survey.rows)
            problem = f"More than one replica is called {take!r}" if found else f"There is no replica {take!r}"
            raise UsageError(f"{problem}; there are {names}.", hint=f"Or take {AVERAGE}, {BEST} or {NEWEST}.")
        row = found[0]
    return Chosen(_loaded(row.replica), (row.replica,), row.loss)


def ensure_one_run(replicas: Sequence[Replica]) -> None:
    """Refuse replicas of different runs; one whose run is unknown goes with any.

    Raises:
        MismatchError: names two runs and a replica of each.
    """
    runs: dict[str, str] = {}
    for replica in replicas:
        if replica.run:
            runs.setdefault(replica.run, replica.name)
    if len(runs) > 1:
        parts = [f"{name} is of {run}" for run, name in runs.items()]
        raise MismatchError(
            f"These are replicas of different runs: {', '.join(parts)}.",
            hint="Only replicas of one run can be averaged or compared; name those of one.",
        )


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name."""
    return {name: tuple(value_P.shape) for name, value_P in weights.items()}


def ensure_same_shapes(name: str, weights: Weights, other: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not of a model of these shapes.

    Args:
        name: whose ``weights`` they are, for the message.
        weights: to be checked.
        other: whose ``shapes`` they are.
        shapes: by name, in any order.

    Raises:
        MismatchError: names the first parameter, by name, that one of them lacks or that has another shape.
    """
    mine = shapes_of(weights)
    for parameter in sorted(mine.keys() | shapes.keys()):
        here, there = mine.get(parameter), shapes.get(parameter)
        if here != there:
            raise MismatchError(
                f"{name} is another model than {other}: parameter {parameter!r} "
                f"{_shape(here)} in the one and {_shape(there)} in the other.",
                hint="Is it of the same run, with the same configuration?",
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "does not exist" if shape is None else f"has shape {list(shape)}"


def _loaded(replica: Replica) -> Weights:
    try:
        return replica.load()
    except OSError as err:
        raise ConfigError(
            f"The weights of replica {replica.name} cannot be used: {err.strerror or err}.",
            hint="To leave it out, name the others one by one.",
        ) from err

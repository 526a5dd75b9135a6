"""Where the figures of a plan come from: a number, a task's settings, a trainer on this machine, a swarm that lives.

What follows from them is ``run.planning``.
"""

import dataclasses
import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decentral.config.resolve import import_task, may_import
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError
from decentral.ports.trainer import Size
from decentral.tensors.partition import most_fragments

if TYPE_CHECKING:
    from decentral.ports.trainer import Trainer
    from decentral.run.planning import Choice

#: What is assumed of a line that nobody has measured: a home line's uplink, and the way across a continent.
HOME_BYTES_PER_S: Final = 20e6 / 8
HOME_ROUND_TRIP_S: Final = 0.05
#: What is assumed of a swarm that has yet to come together.
SOME_WORKERS: Final = 8
#: Of a model by its number of parameters alone.
TOKENS_PER_STEP: Final = 8192
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmbgt]?)", re.IGNORECASE)
#: Values of a layer over the cube of the number of layers, in models of GPT's shape: 12 widths squared, 64 a layer.
_PER_LAYER_CUBED = 12 * 64**2
#: Of the thread that reads it: nanoseconds on a core, nanoseconds of waiting for one.
_SCHEDULED: Final = Path("/proc/thread-self/schedstat")
#: Steps that are timed; one that takes longer than this is enough.
_STEPS, _LONG_STEP_S = 4, 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one worker alone trains on this machine."""

    step_s: float
    tokens_per_step: int


def measure(trainer: "Trainer", *, steps: int, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Time ``steps`` inner steps after a first one that warms up. The trainer's parameters change."""
    tokens = trainer.train_steps(0, 1).tokens
    began = clock()
    trainer.train_steps(1, steps)
    return Pace((clock() - began) / steps, tokens)


def number(text: str) -> float | None:
    """A count as people write it, such as 135m, 1.1b or 2e9; ``None`` if it is none."""
    found = _NUMBER.fullmatch(text.strip())
    return None if found is None else float(found[1]) * _FACTORS[found[2].lower()]


def size_by_number(parameters: float) -> Size:
    """Of a model of which nothing is known but its parameters: the layers are those of GPT's shape.

    Raises:
        ConfigError: there is none.
    """
    if not 1 <= parameters < 1e15:
        raise ConfigError(f"A model of {parameters:g} parameters cannot be planned for.", hint="Such as 135m or 1.1b.")
    layers = max(1, round((parameters / _PER_LAYER_CUBED) ** (1 / 3)))
    return Size(int(parameters), layers, TOKENS_PER_STEP)


def size_of_task(swarm: SwarmConfig, own: WorkerConfig) -> Size | None:
    """What the task says of its settings; ``None`` if it does not say, or is not to be imported here.

    Raises:
        ConfigError: the task cannot be imported, or refuses its settings.
    """
    factory = swarm.task.factory
    if not factory or not may_import(factory, own):
        return None
    module, _ = import_task(factory)
    tell: Callable[[Mapping[str, Any]], Size] | None = getattr(module, "size", None)
    return None if tell is None else tell(swarm.task.settings)


def measured(swarm: SwarmConfig, own: WorkerConfig) -> tuple[Size, float]:
    """A task as it trains on this machine, and the seconds of a step. Builds a trainer, which is given up again.

    Raises:
        DecentralError: see ``build_trainer``.
        TrainerError: the task failed.
    """
    import torch

    from decentral.run.tasks import build_trainer, marked

    if own.threads:
        torch.set_num_threads(own.threads)
    trainer = build_trainer(swarm, own, stream_seed=0, founding=True)
    parameters = trainer.parameters()
    step_s, tokens = math.inf, 1
    for step in range(_STEPS):  # the fastest counts: the first ones warm up, and whatever else runs here may end
        began, waited_s = time.perf_counter(), waited_for_core_s()
        tokens = marked(f"taking inner step {step}", functools.partial(trainer.train_steps, step, 1)).tokens
        took_s = time.perf_counter() - began
        step_s = min(step_s, took_s - (waited_for_core_s() - waited_s))
        if took_s > _LONG_STEP_S:
            break
    numel = sum(value.numel() for value in parameters.values())
    return Size(numel, max(1, most_fragments(parameters)), max(1, tokens)), max(step_s, 1e-6)


def waited_for_core_s() -> float:
    """For how long this thread was ready to run and had no core so far, as others had them all; 0 if nobody says."""
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or one that does not count
        return 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a swarm that lives tells of itself."""

    swarm: SwarmConfig
    workers: int
    """That take part in rounds."""
    seconds_per_token: float
    """In inner steps, of the slowest; NaN if nobody has trained."""
    bytes_per_s: float
    """The most that the slowest line has carried in any second or two: it may be able to carry more. NaN if unknown."""
    round_trip_s: float
    """Between two workers and back, the median of those that are known; NaN if none is."""


async def seen(addresses: Sequence[str], *, timeout_s: float) -> Seen:
    """Ask the first worker of ``addresses`` that answers.

    Raises:
        DecentralError: nobody can be asked.
    """
    from decentral.run.asking import ask_swarm

    swarm, report = await ask_swarm(addresses, timeout_s=timeout_s)
    rows = [row for row in report.workers if row.contributes]
    paces = [row.compute_share * row.wall_s / row.tokens for row in rows if row.tokens and row.wall_s]
    lines = [row.peak_sent_bytes_per_s for row in rows if row.peak_sent_bytes_per_s]
    ways = [link.round_trip_s for row in rows for link in row.links if not math.isnan(link.round_trip_s)]
    round_trip_s = statistics.median(ways) if ways else math.nan
    return Seen(swarm, len(rows), max(paces, default=math.nan), min(lines, default=math.nan), round_trip_s)


def choice_of_founder(
    swarm: SwarmConfig, stated: Mapping[str, Any], own: WorkerConfig, *, alone: bool
) -> "tuple[Choice, str] | None":
    """The method for a swarm whose founder has not stated one, and in words what it was chosen for.

    The line is that of ``--max-upload``, or a home line: whoever joins later may have no better one.

    Args:
        swarm: resolved, as the founder stated it.
        stated: by dotted key.
        own: this machine's.
        alone: whether this process trains by itself; of several that train together the step is not measured.

    Returns:
        ``None`` if the founder has chosen, or nothing can be said: of a pipeline, whose stages sync by themselves, or
        of a task that says nothing of its size.
    """
    from decentral.run.planning import DECIDED, Case, choose

    if swarm.pipeline.stages or DECIDED & stated.keys():
        return None
    size, step_s = measured(swarm, own) if alone else (size_of_task(swarm, own), 1.0)
    if size is None:
        return None
    workers = max(swarm.run.min_workers, SOME_WORKERS)
    line = own.max_upload or HOME_BYTES_PER_S
    steps = swarm.run.rounds * swarm.method.inner_steps
    case = Case(size, step_s, workers, line, HOME_ROUND_TRIP_S, steps * workers * size.tokens_per_step)
    choice = choose(case, stated)
    values = choice.values
    if "run.rounds" in stated:
        values = {key: value for key, value in values.items() if key != "run.rounds"}
    from decentral.config.rate import show_rate
    from decentral.monitor.figures import amount

    words = (
        f"{amount(size.parameters)} values, {'steps' if alone else 'supposed steps'} of {step_s:.2g} s, {workers} "
        f"workers on lines of {show_rate(line)}"
    )
    return dataclasses.replace(choice, values=values), words

"""What a local run is compared with: one worker alone, and data-parallel training with the tokens of the whole swarm.

Both are workers of swarms of one, in processes of their own beside each other, with the run's own task, settings and
number of steps. The second takes the batches of all workers in every step, which is what data-parallel training
computes; what it would have sent is arithmetic (see ``Meter``). It knows nothing of how the swarm ran.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from decentral.cli import result
from decentral.cli.local.children import Child, own_flags, start, stop
from decentral.cli.local.processes import Processes
from decentral.cli.local.run import Done
from decentral.cli.signals import stopping
from decentral.cli.sources import from_paths
from decentral.config.method import MethodSection
from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import with_values
from decentral.engine.background import unless
from decentral.errors import DecentralError, UsageError
from decentral.monitor.figures import loss, size
from decentral.ports.trainer import Trainer
from decentral.run.folder import CONFIG, WORKERS, save_config
from decentral.state.average import survey

ALONE: Final = "alone"
DATA_PARALLEL: Final = "data-parallel"
CONTROLS: Final = "controls"
_BATCH: Final = "batch_sequences"
#: Importing torch, and opening a node; the training takes about as long as the swarm did, or this much longer.
_START_S, _LONGER = 120.0, 10.0
_LEAVE_S = 10.0


@dataclass(frozen=True, slots=True)
class Control:
    """A run to compare with."""

    name: str
    swarm: SwarmConfig
    """Of a single worker."""
    threads: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Losses on the same held-out data, and bytes."""

    alone: float
    swarm: float
    data_parallel: float
    sent_bytes: int
    """By all workers of the swarm."""
    dp_bytes: int
    """That data-parallel training of as many workers sends."""

    @property
    def kept(self) -> float:
        """Share of the gain; NaN if data-parallel training gains nothing over one worker."""
        gain = self.alone - self.data_parallel
        return (self.alone - self.swarm) / gain if gain > 0 else math.nan


def check(swarm: SwarmConfig, processes: Processes) -> None:
    """Refuse a run that nothing of the kind can be compared with, before anything is started.

    Raises:
        UsageError: it is a pipeline, has one worker, or its task has no batch to make larger.
    """
    if processes.num_stages or processes.size < 2:
        what = "is a pipeline" if processes.num_stages else "has one worker"
        raise UsageError(f"--compare is for a swarm, and this run {what}.", hint="Leave --compare out.")
    if _BATCH not in swarm.task.settings:
        hint = f"Leave --compare out, or give the task a setting {_BATCH}: sequences of a step."
        raise UsageError(f"--compare cannot train {swarm.task.factory} data-parallel: it has no {_BATCH}.", hint=hint)


def controls_of(swarm: SwarmConfig, num_workers: int, threads: int, cores: int) -> tuple[Control, Control]:
    """One worker alone for as many steps, and one that takes the batches of all workers in each.

    Args:
        swarm: resolved.
        num_workers: of the run.
        threads: of each of them.
        cores: that both controls share.
    """
    # Of one worker alone, plain averaging leaves the weights as they are.
    method = MethodSection(name="local-sgd", inner_steps=swarm.method.inner_steps, codec="fp32")
    single = swarm.model_copy(update={"method": method})
    # Looks at the held-out text on the way would be for nobody.
    common = {"run.min_workers": 1, "eval_every_rounds": swarm.run.rounds}
    names = [{"run.name": f"{swarm.run.name[:48]}-{name}"} for name in (ALONE, DATA_PARALLEL)]
    wide = {"task.settings." + _BATCH: num_workers * swarm.task.settings[_BATCH]}
    alone = resolve(with_values(single, {**common, **names[0]}))
    whole = resolve(with_values(single, {**common, **names[1], **wide}))
    return Control(ALONE, alone, threads), Control(DATA_PARALLEL, whole, max(threads, cores - threads))


def step_s(alone_s: float, num_workers: int, threads: int, cores: int) -> float:
    """How long a step of both controls takes, beside each other: that of the larger one.

    Args:
        alone_s: of one worker that has ``threads`` for itself.
        num_workers: whose batches the larger one takes.
        threads: of a worker.
        cores: of the machine.
    """
    return num_workers * alone_s * threads / max(threads, cores - threads)


async def train(
    controls: Sequence[Control], own: WorkerConfig, folder: Path, stopped: asyncio.Event, timeout_s: float
) -> dict[str, Path] | None:
    """Train all of them at once, each in a folder of its own below ``folder``.

    Returns:
        Their folders; ``None`` if ``stopped`` was set before they were done.

    Raises:
        DecentralError: one failed, with its own error, or took longer than ``timeout_s`` seconds.
    """
    children = []
    try:
        for index, control in enumerate(controls):
            run = folder / CONTROLS / control.name
            place = run / WORKERS / "0"  # as in any local run
            place.mkdir(parents=True, exist_ok=True)
            # A worker of its own: nobody else is told of it.
            mine = own.model_copy(update={"threads": control.threads, "dashboard": "", "log_to": (), "metrics": ""})
            save_config(run, None, control.swarm, mine)
            arguments = ["worker", "--new", "--overwrite", "--out", str(place), "--config", str(run / CONFIG)]
            env = {"OMP_NUM_THREADS": str(control.threads)}
            children.append(await start(index, [*arguments, *own_flags(mine)], place, env))
        try:
            await asyncio.wait_for(unless(stopped, _ended(children)), timeout_s)
        except TimeoutError:
            hint = f"See {folder / CONTROLS}; the swarm's own result is there."
            raise DecentralError(f"What to compare with took longer than {timeout_s:.0f} s.", hint=hint) from None
        if stopped.is_set():
            return None
        for child in children:
            if child.code:
                raise child.error()
    finally:
        await stop(children, _LEAVE_S)
    return {control.name: child.folder for control, child in zip(controls, children, strict=True)}


async def compare(
    controls: Sequence[Control], own: WorkerConfig, folder: Path, trainer: Trainer, done: Done
) -> Comparison | None:
    """Train the controls of a run that went to its end, and put them beside it.

    Args:
        controls: see ``controls_of``.
        own: of each worker of the run.
        folder: of the run.
        trainer: the task in this process, to measure with.
        done: what the run came to.

    Returns:
        ``None`` if it was interrupted.

    Raises:
        DecentralError: a control failed, with its own error, or took too long.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    with stopping(lambda: loop.call_soon_threadsafe(stopped.set), lambda: None):
        folders = await train(controls, own, folder, stopped, _START_S + _LONGER * done.seconds)
    if folders is None:
        return None
    replicas, _ = from_paths([str(folders[name]) for name in (ALONE, DATA_PARALLEL)])
    measure = result.measure_with(trainer)
    alone, whole = (survey([replica], measure).rows[0].loss for replica in replicas)
    return Comparison(alone, done.loss, whole, done.sent_bytes, done.dp_bytes)


async def _ended(children: Sequence[Child]) -> None:
    await asyncio.gather(*(child.process.wait() for child in children))


def told(found: Comparison, num_workers: int, num_steps: int) -> str:
    """The comparison for people, in a line each."""
    rows = [
        (ALONE, f"{loss(found.alone)}  one worker, {num_steps:,} steps"),
        ("swarm", f"{loss(found.swarm)}  {num_workers} workers, as many steps each, sent {size(found.sent_bytes)}"),
        (
            DATA_PARALLEL,
            f"{loss(found.data_parallel)}  the batches of all {num_workers} in every step, which takes "
            f"{size(found.dp_bytes)}",
        ),
    ]
    ratio = found.dp_bytes / found.sent_bytes if found.sent_bytes else math.nan
    share = f"{found.kept:.0%} of what data-parallel training gains over one worker, for {ratio:.0f}x fewer bytes"
    rows.append(("kept", share if math.isfinite(found.kept) else "nothing: one worker alone does as well"))
    return "\n".join(f"{name:17}{value}" for name, value in rows)

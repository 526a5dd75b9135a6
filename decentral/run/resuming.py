"""A worker's folder taken up again: its run, its settings, and the state to go on from.

What the folder says is read and checked here, before anything is opened; finding the others is ``connect``'s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral.config.resolve import stated_here
from decentral.config.schema import SwarmConfig, WorkerConfig, flatten, show
from decentral.config.settings import Settings, load, with_values
from decentral.errors import ConfigError, UsageError
from decentral.run.access import read_access
from decentral.run.book import Book, read_book
from decentral.run.connection import Resumption, Start
from decentral.run.folder import CONFIG, RUN
from decentral.state.checkpoints.folder import newest_manifest

#: What to do where a folder has not all stages of a run that is to go on without them.
_GATHER = (
    "A whole model is put together in one folder: copy the folders stage-* of other workers of the run into {folder}. "
    "Where others have done so and live, --join ADDR --out {folder}. In stages it goes on from everybody's disk."
)


def take_up(
    folder: Path,
    join: Sequence[str],
    settle: Callable[[SwarmConfig, WorkerConfig], SwarmConfig],
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Start:
    """What goes on from a folder.

    Args:
        folder: of a worker.
        join: addresses to ask beside those of its book.
        settle: fills in what a configuration leaves open.
        file: what is stated now, as for ``config.settings.load``.
        assignments: see ``file``.
        flags: see ``file``.

    Raises:
        ConfigError: there is no run in it, its configuration is broken, or no checkpoint is whole.
        UsageError: the run is over.
    """
    book = _book(folder)
    setting = go_on(folder, settle, file, assignments, flags)
    # A pipeline's stages are found in the folder by those who take them (``store``), and those of others may have less.
    step = None
    if not setting.swarm.pipeline.stages:
        if setting.before.pipeline.stages:
            # It builds the task's blocks, which a run that always had the whole model may not have.
            from decentral.run.whole import put_together

            put_together([folder], book.run, setting.before, setting.own, _GATHER.format(folder=folder))
        last = newest_manifest(folder, book.run)
        refuse_the_end(folder, book.run, setting, last.round, last.step)
        step = last.step
    # Of this machine alone: what is stated of the swarm may make sense only with the folder's settings.
    mine = [text for text in assignments if text.startswith("worker.")]
    any_port = not load(file, mine, {"worker.port": (flags or {}).get("worker.port")}).worker.port
    access = None if setting.swarm.run.public else read_access(folder)
    resumption = Resumption(book, step, setting.changes, any_port, access)
    return Start(setting.swarm, setting.own, join, setting.explicit, resumption=resumption)


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings with which a run goes on."""

    swarm: SwarmConfig
    before: SwarmConfig
    """As it was until now."""
    own: WorkerConfig
    explicit: Mapping[str, Any]
    """See ``Settings``."""
    changes: tuple[str, ...]
    """A line for each of the swarm's that is another one from now on."""
    same_rounds: bool
    """Whether rounds are as long as before."""


def go_on(
    folder: Path,
    settle: Callable[[SwarmConfig, WorkerConfig], SwarmConfig],
    file: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any] | None,
) -> Setting:
    """The settings in a folder, and what is stated now above them; see ``take_up``.

    Raises:
        ConfigError: the folder's, or those of now, cannot be used.
    """
    before = load(folder / CONFIG).swarm
    settings = load(file, assignments, {**(flags or {}), "worker.out": str(folder)}, base=folder / CONFIG)
    own = stated_here(settings, before)
    # Whoever insists on a stage joins those who have the others.
    swarm = settle(_as_long(before, settings), own.model_copy(update={"stage": ""}))
    same_rounds = swarm.method.inner_steps == before.method.inner_steps
    return Setting(swarm, before, own, settings.explicit, _changes(before, swarm), same_rounds)


def refuse_the_end(folder: Path, run_id: str, setting: Setting, round: int, step: int) -> None:
    """Refuse to go on from the end of a run.

    Raises:
        UsageError: this is the end.
    """
    rounds = setting.swarm.run.rounds
    if (round if setting.same_rounds else step // setting.swarm.method.inner_steps) >= rounds:
        raise UsageError(
            f"{run_id} is over: all of its {rounds} rounds are done.",
            hint=f"Its weights are in {folder}. To train on, make it longer: --set run.rounds={2 * rounds}.",
        )


def _book(folder: Path) -> Book:
    """Raises ConfigError if there is none."""
    book = read_book(folder)
    if book is not None:
        return book
    what = f"it has no {RUN}" if folder.is_dir() else "it is no folder"
    raise ConfigError(
        f"There is no run to resume in {folder}: {what}.",
        hint=f"Begin one there with --new --out {folder}, or join one with --join ADDR --out {folder}.",
    )


def _as_long(before: SwarmConfig, settings: Settings) -> SwarmConfig:
    """The settings of now; a run whose rounds are of another length now has as many inner steps as before."""
    swarm, steps = settings.swarm, before.run.rounds * before.method.inner_steps
    if "run.rounds" in settings.explicit or swarm.method.inner_steps == before.method.inner_steps:
        return swarm
    return with_values(swarm, {"run.rounds": math.ceil(steps / swarm.method.inner_steps)})


def _changes(before: SwarmConfig, now: SwarmConfig) -> tuple[str, ...]:
    """A line for each setting that is another one now."""
    old, new = flatten(before), flatten(now)
    return tuple(
        f"{key}: {show(value)}, was {show(old[key]) if key in old else 'not set'}"
        for key, value in new.items()
        if key not in old or old[key] != value
    )

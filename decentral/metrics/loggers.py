"""Experiment loggers by name: what each library is, and how it is told figures. Each is used on one thread alone.

Where it writes to, and as whom, is each library's own to configure, by its environment variables; what we choose is how
a run is called, so that a worker that comes back goes on in the run that it had.
"""

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from decentral.errors import ConfigError

_log = logging.getLogger(__name__)
#: Where a library keeps runs of several experiments apart, unless its own variable says so.
_PROJECT = "decentral"


@dataclass(frozen=True, slots=True)
class About:
    """What is logged."""

    run: str
    """Id of the run of the swarm."""
    name: str
    """Of who logs it; of a worker its short id."""
    folder: Path
    """For what is written to this machine's disk."""
    config: Mapping[str, Any]
    """By dotted key."""


class Logger(Protocol):
    """One library's run, opened."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep figures of an inner step; steps rise."""
        ...

    def close(self) -> None:
        """Keep what is not yet kept."""
        ...


class _TensorBoard:
    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(about.folder / "tensorboard"))
        lines = [f"    {key} = {value!r}" for key, value in about.config.items()]
        self._writer.add_text("config", "\n".join(lines))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Logger``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, about: About) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            group=about.run,
            name=f"{about.run}-{about.name}",
            id=f"{about.run}-{about.name}",
            resume="allow",
            dir=str(about.folder),
            config=dict(about.config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, about: About) -> None:
        import trackio
        from trackio import run, utils

        for module in (trackio, run, utils):  # stdout is for the command that joins, and for programs that read it
            vars(module)["print"] = lambda *words, **_: _log.debug("trackio: %s", " ".join(map(str, words)))
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            group=about.run,
            name=f"{about.run}-{about.name}",
            resume="allow",
            config=dict(about.config),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, about: About) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        tags = {"decentral.run": about.run, "decentral.name": about.name}
        same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        known = self._client.search_runs([experiment], same, max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, tags=tags, run_name=f"{about.run}-{about.name}").info.run_id
        params = [Param(key, str(value)[:500]) for key, value in about.config.items()]
        for first in range(0, len(params), 100):  # it takes no more at once
            self._client.log_batch(self._run, params=params[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(name, value, now_ms, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)

    def _experiment(self, name: str) -> str:
        """Its id; made if there is none. Of workers that start together several may find none, and one makes it."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


#: By name, which also is that of the extra and of the module.
OPEN: Mapping[str, Callable[[About], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
    "mlflow": _MLflow,
}


def check(names: Iterable[str]) -> None:
    """Find out early whether the libraries are there.

    Raises:
        ConfigError: one is none of ours, or not installed.
    """
    for name in names:
        if name not in OPEN:
            raise ConfigError(f"--log-to {name} is not known.", hint=f"Take {', '.join(OPEN)}.")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--log-to {name} needs {name}, not installed here.", hint=f"pip install 'decentral[{name}]'"
            )

"""Tasks: the user's modules that make trainers, and a model whose faults are marked as its user's own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from decentral.config.resolve import import_task
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError, DecentralError, TrainerError
from decentral.ports.trainer import Claims, Model, Publisher, Stateful, Trainer
from decentral.run.options import seat_of

T = TypeVar("T")


def build_trainer(
    swarm: SwarmConfig,
    own: WorkerConfig,
    stream_seed: int,
    *,
    founding: bool = False,
    claims: Claims | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> Trainer:
    """The task's trainer, after the task has checked that this machine can run it.

    Args:
        swarm: see ``on_machine``; with the task's settings resolved.
        own: what this machine has of its own: its device, its data.
        stream_seed: of this worker's own stream of data.
        founding: whether the run has its first weights of this trainer.
        claims: see ``Seat``.
        rank: see ``Seat``, as for ``num_ranks``.
        num_ranks: see above.

    Raises:
        DecentralError: there is no task, the machine or several ranks cannot run it, or there is no data.
        TrainerError: the task failed.
    """
    module, build = import_task(swarm.task.factory)
    settings = swarm.task.settings
    known = getattr(module, "inner", ())
    if num_ranks > 1 and own.inner not in known:
        raise ConfigError(
            f"{num_ranks} processes train together with --inner {own.inner}, and of the task {swarm.task.factory} "
            + (f"{' and '.join(known)} can be had." if known else "several cannot train one model."),
            hint="Start a worker for each device; or let the task heed Seat.rank and name what it can in `inner`.",
        )
    check = getattr(module, "check", None)
    if check is not None:
        shards = {"shards": num_ranks} if num_ranks > 1 and own.inner == "fsdp" else {}
        marked("checking this machine", lambda: check(settings, own.device, **shards))
    seat = replace(seat_of(swarm, own, stream_seed, founding=founding), claims=claims)
    trainer: Trainer = marked(
        "building the trainer", lambda: build(settings, replace(seat, rank=rank, num_ranks=num_ranks, inner=own.inner))
    )
    return trainer


def description_of(trainer: Trainer) -> str:
    """What a trainer says of its model and its data, in lines; nothing if it says nothing.

    Raises:
        DecentralError: the data cannot be read.
        TrainerError: the task failed.
    """
    describe = getattr(trainer, "describe", None)
    return "" if describe is None else marked("describing the trainer", lambda: str(describe()))


def publisher_of(swarm: SwarmConfig, own: WorkerConfig) -> Publisher | None:
    """What writes the task's weights as other libraries read them; ``None`` if the task does not say.

    Args:
        swarm: see ``on_machine``; with the task's settings resolved.
        own: what this machine has of its own.

    Raises:
        DecentralError: there is no task, or it cannot do so on this machine.
        TrainerError: the task failed.
    """
    module, _ = import_task(swarm.task.factory)
    make: Callable[..., Publisher] | None = getattr(module, "publisher", None)
    if make is None:
        return None
    return marked("getting ready to publish weights", lambda: make(swarm.task.settings, seat_of(swarm, own, 0)))


def marked(doing: str, work: Callable[[], T]) -> T:
    """Call a function of the user's.

    Raises:
        TrainerError: it failed, while ``doing`` this.
        DecentralError: it raised one itself, to be shown as it is.
    """
    try:
        return work()
    except DecentralError:
        raise
    except Exception as err:
        raise TrainerError(err, doing) from err


class Guarded:
    """A model of the user's whose faults are ``TrainerError``."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def parameters(self) -> Mapping[str, Tensor]:
        """See ``Model``."""
        return marked("reading the model's parameters", self._model.parameters)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """See ``Model``."""
        marked("loading weights into the model", lambda: self._model.load(parameters))

    def validate(self) -> float:
        """See ``Model``."""
        return marked("validating", self._model.validate)

    def state_dict(self) -> Mapping[str, Any]:
        """See ``Stateful``; empty for a model that has no state of its own."""
        model = self._model
        return marked("reading the trainer's state", model.state_dict) if isinstance(model, Stateful) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Stateful``; a model that has no state of its own is left as it is."""
        model = self._model
        if isinstance(model, Stateful):
            marked("loading the trainer's state", lambda: model.load_state_dict(state))

"""Inner steps of a replica without a worker around it."""

from typing import cast

from decentral.engine.replica import Replica
from decentral.ports.trainer import Trainer


def train(replica: Replica, first_step: int, count: int) -> None:
    trainer = cast(Trainer, replica._model)
    replica.trained(trainer.train_steps(first_step, count), count)

"""A callback for the Trainer of Lightning: ``Trainer(..., callbacks=[SwarmCallback(swarm)])``."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from decentral.errors import ConfigError
from decentral.integrations.common import MicroBatches, catch_up, count_tokens, load_average, log
from decentral.run.sharing import check_processes
from decentral.run.swarm import Swarm


class SwarmCallback(Callback):
    """Makes a Trainer take part in a swarm, and stops it when the run is over.

    Afterwards the module has the swarm's weights. The swarm is left at the end of ``fit``, also if it fails.

    Args:
        swarm: of the very module that the Trainer fits.
        tokens: of a batch, which is this worker's weight; the default is ``count_tokens``.
    """

    def __init__(self, swarm: Swarm, *, tokens: Callable[[Any], int] = count_tokens) -> None:
        self._swarm = swarm
        self._tokens = tokens
        self._batches = MicroBatches()
        self._steps = 0
        self._has_average = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether a swarm and this Trainer can work together.

        Raises:
            ConfigError: they cannot.
        """
        check_processes(trainer.world_size, self._swarm.num_ranks)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether it begins at the beginning, and trains what the swarm shares.

        Raises:
            ConfigError: it goes on from a checkpoint, or trains something else.
        """
        if trainer.global_step:
            raise ConfigError(
                "The Trainer goes on from a checkpoint, which would overwrite the swarm's weights with older ones.",
                hint="Call fit() of a new Trainer, without ckpt_path: the swarm hands over the weights.",
            )
        for optimizer in trainer.optimizers:
            self._swarm.check(optimizer)
        left = self._swarm.total_steps - self._swarm.global_step
        if trainer.estimated_stepping_batches < left:
            log.warning(
                "the Trainer is for %d steps, and the swarm's run has %d left; with max_steps=swarm.total_steps it "
                "trains to the end",
                trainer.estimated_stepping_batches,
                left,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the learning rate where the run is."""
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step":
                catch_up(config.scheduler, self._swarm.global_step // config.frequency)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step if the optimizer has made one: of this batch, or of several."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        # Lightning has divided it by the number of batches that make a step.
        known = loss * trainer.accumulate_grad_batches if isinstance(loss, Tensor) and loss.numel() == 1 else None
        self._batches.add(known, self._tokens(batch))
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self._batches.report(self._swarm)
        if self._swarm.done:
            self._take_average(pl_module)  # before Lightning validates and keeps a checkpoint
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the swarm's weights into the module, and leave."""
        self._take_average(pl_module)
        self._swarm.leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave: the others do not wait for this worker."""
        self._swarm.leave()

    def _take_average(self, module: LightningModule) -> None:
        if not self._has_average:
            load_average(self._swarm, module)
            self._has_average = True

"""A callback for the Trainer of transformers: ``Trainer(..., callbacks=[SwarmCallback(swarm)])``.

The Trainer tells its callbacks neither losses nor tokens, only now and then what it logs. So both are read from the
model's own calls: its inputs, and the loss that it returns.
"""

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from decentral.errors import ConfigError
from decentral.integrations.common import MicroBatches, catch_up, count_tokens, load_average, log
from decentral.run.sharing import check_processes
from decentral.run.swarm import Swarm


class SwarmCallback(TrainerCallback):
    """Makes a Trainer take part in a swarm, and stops it when the run is over.

    Afterwards the Trainer's model has the swarm's weights, and the swarm has been left. It cannot see that ``train()``
    fails: use the swarm as a context manager around it.

    Args:
        swarm: of the very model that the Trainer trains.
    """

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._batches = MicroBatches()
        self._summed = False
        self._has_average = False
        self._hook: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Any,
        **_: Any,
    ) -> None:
        """Look whether a swarm and this Trainer can work together.

        Raises:
            ConfigError: they cannot.
        """
        check_processes(max(args.world_size, args.n_gpu), self._swarm.num_ranks)
        if state.global_step:
            raise ConfigError(
                "The Trainer resumes from a checkpoint, which would overwrite the swarm's weights with older ones.",
                hint="Call train() without resume_from_checkpoint: the swarm hands over the weights.",
            )
        if args.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end would replace the swarm's weights by a checkpoint of this worker's.",
                hint="Leave it out. After train() the model has the swarm's weights.",
            )
        self._swarm.check(optimizer)
        total_steps = self._swarm.total_steps
        if state.max_steps != total_steps:
            log.warning(
                "the Trainer is for %d steps, the swarm's run has %d; with max_steps=swarm.total_steps training and "
                "learning rate end with the run",
                state.max_steps,
                total_steps,
            )
        if args.data_seed is None and args.seed == TrainingArguments.seed:
            log.warning(
                "the Trainer has the default seed, as others in the swarm may have; with data_seed=swarm.seed each "
                "worker goes through the data in an order of its own"
            )
        if self._hook is not None:
            self._hook.remove()
        self._hook = model.register_forward_hook(self._called, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, lr_scheduler: Any, **_: Any
    ) -> None:
        """Keep the learning rate where the run is."""
        catch_up(lr_scheduler, self._swarm.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> TrainerControl:
        """Count a step of the optimizer, be it of one micro-batch or of several."""
        self._batches.report(self._swarm, summed=self._summed)
        if self._swarm.done:
            self._take_average(model)  # before the Trainer evaluates and saves for this step
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **_: Any
    ) -> None:
        """Put the swarm's weights into the model, and leave."""
        self._take_average(model)
        self._hook.remove()
        self._swarm.leave()

    def _take_average(self, model: nn.Module) -> None:
        if not self._has_average:
            load_average(self._swarm, model)
            self._has_average = True

    def _called(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The model was called; if in training, this was a micro-batch."""
        if model.training:
            inputs = kwargs.get(getattr(model, "main_input_name", "input_ids"), args or kwargs)
            self._summed = kwargs.get("num_items_in_batch") is not None
            self._batches.add(_loss(output), count_tokens(inputs))


def _loss(output: Any) -> Tensor | None:
    """What a model says of its loss; ``None`` if it does not, as when the Trainer computes it."""
    loss = output.get("loss") if hasattr(output, "get") else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None

"""What the adapters have in common: counting a step made of micro-batches, schedules, the swarm's weights at the end.

Imports torch alone, none of the libraries that the adapters are for.
"""

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decentral.run.swarm import Swarm

log = logging.getLogger("decentral")


class MicroBatches:
    """What was trained on since the last step of the optimizer."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._tokens = 0

    def add(self, loss: Tensor | None, tokens: int) -> None:
        """One more of them.

        Args:
            loss: of one value; ``None`` if it is not known. It is not waited for.
            tokens: in the batch.
        """
        self._tokens += tokens
        if loss is not None:
            self._losses.append(loss.detach().clone())

    def report(self, swarm: Swarm, *, summed: bool = False) -> None:
        """The optimizer has made its step of them: tell the swarm, and begin anew.

        Args:
            swarm: whose step it is.
            summed: each loss is divided by the tokens of the whole step already, so that the step's is their sum
                rather than their mean.
        """
        losses, tokens = self._losses, self._tokens
        self._losses, self._tokens = [], 0
        if losses:
            total = torch.stack([loss.reshape(()).float() for loss in losses]).sum()
            swarm.step(loss=total if summed else total / len(losses), tokens=tokens)
        else:
            swarm.step(tokens=tokens)


def count_tokens(batch: Any) -> int:
    """Tokens of a batch: the entries of a matrix of whole numbers; of anything else, the number of its samples.

    Args:
        batch: a tensor, or what holds some: its ``input_ids`` count if there are any, or else the first.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
        batch = batch["input_ids"]
    first = _first_tensor(batch)
    if first is None or first.dim() == 0:
        return 1
    whole = not first.is_floating_point() and not first.is_complex()
    return first.numel() if whole and first.dim() == 2 else first.shape[0]


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return next((found for part in batch if (found := _first_tensor(part)) is not None), None)
    return None


def catch_up(scheduler: Any, step: int) -> None:
    """Move a learning-rate schedule forward to where the run is: a worker that joins late begins in its middle.

    One that goes by a measured loss has no place in the run, and stays as it is.

    Args:
        scheduler: torch's or alike.
        step: of the scheduler, not of the run where it moves more rarely.
    """
    behind = step - getattr(scheduler, "last_epoch", step)
    if behind <= 0 or "metrics" in inspect.signature(scheduler.step).parameters:
        return
    with warnings.catch_warnings():
        # torch warns of a schedule that moves before the first step of the optimizer, which is the purpose here.
        warnings.filterwarnings(
            "ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before", category=UserWarning
        )
        for _ in range(behind):
            scheduler.step()


@torch.no_grad()
def load_average(swarm: Swarm, model: nn.Module) -> None:
    """Put the swarm's weights into the model, to be evaluated and saved.

    A worker that is out of the swarm keeps its own: they are ahead of the last ones that it knew of the swarm's.
    """
    if swarm.problem is not None:
        log.warning("out of the swarm (%s): the model keeps the weights of this worker alone", swarm.problem)
        return
    live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in swarm.average().items():
        live[name].copy_(value)

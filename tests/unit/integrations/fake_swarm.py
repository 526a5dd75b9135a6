"""A swarm that only counts, with the public face of ``decentral.Swarm``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from decentral.run.sharing import check_optimizer


class FakeSwarm:
    """Is ``done`` after ``total_steps``; its average is the model's own weights, all moved to one value.

    Args:
        model: of the worker.
        total_steps: of the run.
        first_step: where the run was when this worker joined.
    """

    num_ranks = 1
    seed = 2**47 + 5  # as large as they get
    run_seed = 3
    address = "/ip4/127.0.0.1/tcp/31337/p2p/Qm"
    average_value = 0.125

    def __init__(self, model: nn.Module, total_steps: int, first_step: int = 0) -> None:
        self._model = model
        self.total_steps = total_steps
        self.global_step = first_step
        self.problem: Exception | None = None
        self.losses: list[float | None] = []
        self.tokens: list[int] = []
        self.num_leaves = 0
        self.calls: list[str] = []
        self.on_step: Callable[[], None] = lambda: None

    def step(self, *, loss: Any = None, tokens: int = 1, grad_norm: float = 0.0) -> None:
        assert type(tokens) is int
        assert loss is None or (isinstance(loss, Tensor) and loss.numel() == 1)
        self.losses.append(None if loss is None else float(loss.detach()))
        self.tokens.append(tokens)
        self.global_step += 1
        self.on_step()

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        check_optimizer(optimizer, {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad})

    @property
    def done(self) -> bool:
        return self.global_step >= self.total_steps

    @property
    def progress(self) -> float:
        return min(1.0, self.global_step / self.total_steps)

    def average(self) -> dict[str, Tensor]:
        assert not self.num_leaves
        self.calls.append("average")
        shared = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        return {name: torch.full_like(p, self.average_value, dtype=torch.float32) for name, p in shared.items()}

    def leave(self) -> None:
        self.calls.append("leave")
        self.num_leaves += 1

    def __enter__(self) -> "FakeSwarm":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

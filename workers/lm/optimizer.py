"""The inner optimizer of the language model, whole or in parts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from decentral.workers.lm.settings import OptimizerConfig


def adamw(named: Mapping[str, Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone. The fused form is the fastest on every device that has it."""
    matrices = [parameter for parameter in named.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in named.values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)

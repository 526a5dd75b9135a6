"""The inner optimizer of our trainers: which one by name, with what settings, and its learning rate over the run.

Names are those of ``torch.optim``; ``bitsandbytes.NAME`` are its classes with 8-bit state. Nothing else is imported: a
name comes from the swarm's configuration.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from decentral.errors import ConfigError
from decentral.schedule.inner_lr import warmup_cosine
from decentral.workers.settings import require

MUON: Final = "Muon"
#: Where a name before the dot leads.
_PACKAGES: Final = {"bitsandbytes": "bitsandbytes.optim"}


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """An optimizer with decay on matrices alone, clipping, warm-up and a cosine over the whole run."""

    name: str = "AdamW"
    """A class of ``torch.optim``, or one with 8-bit state such as ``bitsandbytes.AdamW8bit``. ``Muon`` steps the
    matrices between embedding and output layer; AdamW has the rest."""
    learning_rate: float = 6e-3
    betas: tuple[float, float] = (0.8, 0.95)
    """Of optimizers that have them; of the AdamW beside Muon."""
    weight_decay: float = 0.1
    clip_norm: float = 2.0
    warmup_steps: int = 20
    floor_fraction: float = 0.1
    """Learning rate at the end of the run as a fraction of ``learning_rate``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the class, such as ``momentum``."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "in [0, 1)")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "above 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        require(0 <= self.floor_fraction <= 1, "optimizer.floor_fraction", self.floor_fraction, "in [0, 1]")
        if self.name != "AdamW" or self.options:  # what everybody has need not be tried
            _try(self)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the global ``step`` in a run of ``total_steps``."""
        return warmup_cosine(
            step,
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            total_steps=total_steps,
            floor_fraction=self.floor_fraction,
        )


def make_optimizers(
    named: Mapping[str, nn.Parameter], config: OptimizerConfig, ends: Set[str] = frozenset()
) -> list[torch.optim.Optimizer]:
    """The optimizer of these parameters, a model or part of one; with Muon one for the matrices and one for the rest.

    Weights decay in matrices alone. The fused form is taken wherever the class has one: it is the fastest.

    Args:
        named: the parameters.
        config: name and settings.
        ends: names of embeddings and output layers, which Muon leaves to AdamW: their rows are looked up one by one,
            so that there is no matrix to make orthogonal (Jordan et al. 2024; MuLoCo, arXiv 2505.23725).
    """
    if config.name != MUON:
        return [_made(_class_of(config.name), named.values(), config, config.options)]
    hidden = {name: value for name, value in named.items() if value.ndim == 2 and name not in ends}
    rest = [value for name, value in named.items() if name not in hidden]
    made = [_made(torch.optim.AdamW, rest, config, {})] if rest else []
    if hidden:
        # Updates of the size of AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate serves both.
        options = {"adjust_lr_fn": "match_rms_adamw", **config.options}
        made.append(_made(_class_of(MUON), hidden.values(), config, options))
    return made


def _made(
    kind: Callable[..., torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    taken = inspect.signature(kind).parameters
    settings: dict[str, Any] = {"betas": config.betas, "fused": True}
    settings = {key: value for key, value in settings.items() if key in taken} | dict(options)
    every = list(parameters)
    if "weight_decay" not in taken:
        return kind(every, lr=config.learning_rate, **settings)
    matrices = [parameter for parameter in every if parameter.ndim >= 2]
    vectors = [parameter for parameter in every if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return kind(groups, lr=config.learning_rate, **settings)


def _class_of(name: str) -> type[torch.optim.Optimizer]:
    """Raises ConfigError: there is none of that name, or its package is not installed."""
    package, _, kind = name.rpartition(".")
    if package and package not in _PACKAGES:
        raise ConfigError(
            f"optimizer.name is {name!r}", hint="It must be a class of torch.optim, such as SGD, or bitsandbytes.NAME."
        )
    try:
        module = importlib.import_module(_PACKAGES[package]) if package else torch.optim
    except ImportError as err:
        raise ConfigError(
            f"optimizer.name is {name!r}, and {package} cannot be imported: {err}", hint=f"pip install {package}"
        ) from err
    found = getattr(module, kind, None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer:
        return found
    if name == MUON:
        raise ConfigError(f"torch {torch.__version__} has no Muon", hint="Install torch 2.9 or newer.")
    known = sorted(key for key, value in vars(module).items() if isinstance(value, type) and key[0].isupper())
    raise ConfigError(f"optimizer.name is {name!r}", hint=f"{package or 'torch.optim'} has {', '.join(known)}.")


def _try(config: OptimizerConfig) -> None:
    """Take a step of a small matrix, so that what does not fit is known before a swarm is founded with it.

    Raises:
        ConfigError: with what the optimizer says, and what it takes.
    """
    kind = _class_of(config.name)
    matrix = nn.Parameter(torch.ones(2, 2))
    matrix.grad = torch.ones(2, 2)
    try:
        for optimizer in make_optimizers({"matrix": matrix}, config):
            optimizer.step()
    except (TypeError, ValueError, RuntimeError) as err:
        ours = {"self", "params", "lr", "weight_decay", "betas", "fused"}
        options = ", ".join(key for key in inspect.signature(kind).parameters if key not in ours)
        raise ConfigError(
            f"optimizer.name is {config.name!r} with options {dict(config.options)}, and it cannot take a step: {err}",
            hint=f"Its options are {options}. Those that need a closure or sparse gradients cannot be used.",
        ) from err

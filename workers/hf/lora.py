"""A low-rank adapter beside a model's frozen weights, by peft: where it is, what is shared, what must be equal."""

import warnings
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import nn
from transformers.pytorch_utils import Conv1D

from decentral.errors import ConfigError, MismatchError
from decentral.workers.hf.settings import AdapterConfig

if TYPE_CHECKING:  # an extra
    import peft

#: peft has many adapters in a model, and calls one so that is the only one.
_ONLY = ".default."


def with_adapter(model: nn.Module, config: AdapterConfig, seed: int) -> nn.Module:
    """The model with an adapter, all else frozen.

    Args:
        model: with or without values; its layers are replaced in place.
        config: of the adapter; its rank is above 0.
        seed: of the adapter's first values.

    Raises:
        ConfigError: peft is not installed, or a target matches no linear layer.
    """
    try:
        import peft
    except ImportError as err:
        raise ConfigError("--lora needs peft, which is not installed.", hint="pip install 'decentral[lora]'") from err
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers is not ours to change
        torch.manual_seed(seed)
        adapted: nn.Module = peft.get_peft_model(model, peft_config(model, config))
    return adapted


def peft_config(model: nn.Module, config: AdapterConfig) -> "peft.LoraConfig":
    """What peft is told of the adapter. Raises ``ConfigError`` for a target that matches no linear layer."""
    import peft

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"The model has no linear layer {target!r} for --lora.", hint=f"Its layers are {', '.join(known)}."
            )
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=vars(model).get("name_or_path") or None,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets or "all-linear",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
    )


def adapter_values(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters, by the names that they have in a file of peft's."""
    return {name.replace(_ONLY, "."): value for name, value in adapted.named_parameters() if value.requires_grad}


def num_adapter_values(model: nn.Module, config: AdapterConfig) -> int:
    """Of an adapter on ``model``, which has no values and is not needed any more."""
    return sum(value.numel() for value in adapter_values(with_adapter(model, config, 0)).values())


def base_digest(model: nn.Module) -> str:
    """32 hex characters of the names and values of a model's parameters, in float32."""
    digest = xxhash.xxh3_128()
    for name, value in model.named_parameters():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()


def ensure_same_base(model: nn.Module, digest: str, name: str) -> None:
    """Make sure that the frozen weights of this machine are the swarm's.

    Raises:
        MismatchError: they are others.
    """
    found = base_digest(model)
    if found != digest:
        raise MismatchError(
            f"The base weights in {name} are others here ({found}) than in the swarm ({digest}): an adapter fits the "
            "weights that it was trained beside, and no others.",
            hint="Give the swarm's own with --model, or leave that out to take those that the swarm names.",
        )

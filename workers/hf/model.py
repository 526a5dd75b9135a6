"""A model of transformers from the text that a swarm's configuration has of it, and what it takes. It loads nothing.

The text may come from a founder that nobody knows: what of it would fetch code or other weights is left out.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decentral.errors import ConfigError
from decentral.workers.hf.cutting import empty, find
from decentral.workers.hf.parts import drawn
from decentral.workers.hf.settings import HfSettings
from decentral.workers.hf.sources import config_of
from decentral.workers.machine import VALUES_PER_PARAMETER, check_device, check_memory

#: What of a configuration is about a file, about code of the hub, or about how others compute.
_LEFT_OUT = (
    "auto_map",
    "quantization_config",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "experts_implementation",
)
#: fp32 values kept for each parameter where it computes, and for the swarm where the CPU is another device.
_ON_DEVICE = 4
#: Tensors of the width that autograd keeps of a layer, roughly; and of the vocabulary, behind the last one.
_OF_A_LAYER, _OF_THE_OUTPUT = 16, 3
_DEFAULT_LEN = 1024


def architecture_of(config: PretrainedConfig) -> str:
    """The text of a configuration, after it was found to be of a causal language model.

    Raises:
        ConfigError: it is of another kind of model.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = config.architectures or []
    if causal is None or config.is_encoder_decoder or (named and causal not in named):
        raise ConfigError(
            f"The model is a {', '.join(named) or config.model_type}, and no causal language model.",
            hint=f"transformers has {causal} for {config.model_type}: name that in architectures, if it is one."
            if causal
            else "Take a model that transformers' AutoModelForCausalLM knows.",
        )
    values = _harmless(json.loads(config.to_json_string(use_diff=False)))
    return json.dumps({**values, "architectures": [causal]}, sort_keys=True, separators=(",", ":"))


def config_from(architecture: str) -> PretrainedConfig:
    """The configuration in a text of ``architecture_of``.

    Raises:
        ConfigError: it is none, or of an architecture that this release of transformers does not have.
    """
    try:
        return config_of(json.dumps(_harmless(json.loads(architecture))))
    except (ValueError, AttributeError, TypeError, KeyError) as err:
        raise ConfigError(
            f"The swarm's model cannot be built here: {' '.join(str(err).split())[:200]}",
            hint="Its founder may have a newer transformers: pip install -U transformers.",
        ) from err


def build_model(config: PretrainedConfig, seed: int) -> nn.Module:
    """The model in float32, its weights drawn from ``seed``: the same as in stages, if it can be cut into these."""
    try:
        cut = find(config)
    except ConfigError:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model
    return drawn(config, cut, seed, range(cut.num_blocks), ends=True)


def sequence_length(settings: HfSettings, config: PretrainedConfig) -> int:
    """Tokens of a sequence, with the default filled in.

    Raises:
        ConfigError: it is longer than the model sees at once.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or _DEFAULT_LEN
    if settings.seq_len > most:
        raise ConfigError(f"seq_len is {settings.seq_len}", hint=f"The model sees at most {most} tokens at once.")
    return settings.seq_len or min(most, _DEFAULT_LEN)


def ends_of(model: nn.Module, named: Mapping[str, nn.Parameter]) -> set[str]:
    """Which of these parameters of a model are those of an embedding or an output layer."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    layers += [layer for layer in [cast(Any, model).get_output_embeddings()] if layer is not None]
    ends = {id(value) for layer in layers for value in layer.parameters()}
    return {name for name, value in named.items() if id(value) in ends}


def num_parameters(config: PretrainedConfig) -> int:
    """Of the whole model, tied ones once, without building it."""
    return sum(parameter.numel() for parameter in empty(config).parameters())


def required_values(
    settings: HfSettings, config: PretrainedConfig, num_trained: int, per_trained: int, shards: int = 1
) -> int:
    """fp32 values of training with one sequence at a time, roughly.

    Args:
        settings: of the run.
        config: of the model.
        num_trained: parameters that are trained; the others are only kept.
        per_trained: values for each of them.
        shards: so many have all of that together.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    activations = _of_layers(settings, config, layers) + _of_the_output(settings, config)
    return (per_trained * num_trained + (num_parameters(config) - num_trained)) // shards + activations


def _of_layers(settings: HfSettings, config: PretrainedConfig, layers: int) -> int:
    """Values that autograd keeps of a sequence in so many layers, roughly."""
    kept = _OF_A_LAYER * (min(layers, 1) if settings.activation_checkpointing else layers) + layers
    return sequence_length(settings, config) * kept * getattr(config.get_text_config(), "hidden_size", 0)


def _of_the_output(settings: HfSettings, config: PretrainedConfig) -> int:
    """The same behind the last layer."""
    return sequence_length(settings, config) * _OF_THE_OUTPUT * int(config.get_text_config().vocab_size)


def check_machine(
    settings: HfSettings, config: PretrainedConfig, num_trained: int, device: str, shards: int = 1
) -> None:
    """Make sure that this machine can train with ``settings``, as far as that can be told without the weights.

    Args:
        settings: of the run.
        config: of the model.
        num_trained: parameters that are trained.
        device: of this machine.
        shards: so many GPUs have the model together.

    Raises:
        ConfigError: ``device`` is not a device's name.
        IncapableError: it is absent, lacks bf16, or has not enough memory for one sequence at a time.
    """
    check_device(device, bf16=settings.precision == "bf16")
    what = f"training {num_trained:,} of {num_parameters(config):,} parameters"
    hint = "Take a smaller model, --lora, a shorter seq_len or activation_checkpointing, or a machine with more memory."
    on_cpu = device == "cpu"
    kept, of = (VALUES_PER_PARAMETER, 1) if on_cpu else (_ON_DEVICE, shards)
    check_memory(4 * required_values(settings, config, num_trained, kept, of), what, device, hint)
    if not on_cpu:
        check_memory(4 * (VALUES_PER_PARAMETER - _ON_DEVICE) * num_trained, what, "cpu", hint)


def check_part(
    settings: HfSettings, config: PretrainedConfig, num_trained: int, num_blocks: int, num_at_output: int, device: str
) -> None:
    """Make sure that this machine can train some blocks, with all of a batch in flight.

    Args:
        settings: of the run.
        config: of the model.
        num_trained: parameters of the blocks, and of what is beside them if this machine is to have it.
        num_blocks: of the model.
        num_at_output: sequences whose loss is computed at a time; 0 on a machine that has blocks alone.
        device: of this machine.

    Raises:
        ConfigError: ``device`` is not a device's name.
        IncapableError: it is absent, lacks bf16, or has not enough memory.
    """
    check_device(device, bf16=settings.precision == "bf16")
    activations = settings.batch_sequences * _of_layers(settings, config, num_blocks)
    activations += num_at_output * _of_the_output(settings, config)
    check_memory(
        4 * (VALUES_PER_PARAMETER * num_trained + activations),
        f"training {num_trained:,} parameters",
        device,
        hint="Give this machine fewer blocks: more stages have fewer each.",
    )


def _harmless(values: dict[str, Any]) -> dict[str, Any]:
    """Without what would fetch something from elsewhere, or say how to compute."""
    return {key: value for key, value in values.items() if not (key.startswith("_") or key in _LEFT_OUT)}

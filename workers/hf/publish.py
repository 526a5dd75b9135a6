"""The weights of a run as a folder that transformers, or peft for an adapter, reads. It trains nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from decentral.ports.trainer import Lineage
from decentral.workers.card import model_card
from decentral.workers.hf import lora, sources
from decentral.workers.hf.cutting import empty
from decentral.workers.hf.settings import HfSettings

#: Of one file; larger models have several, and an index.
MAX_SHARD = "5GB"
_WEIGHTS = "model.safetensors"
_ADAPTER = "adapter_model.safetensors"
_CARD = "README.md"


class Folder:
    """Implements the port ``Publisher``.

    Args:
        settings: of the run.
        config: of its model.
        tokenizer: of its model; ``None`` if it is not on this machine, and then not in the folder either.
        source: where the model is on this machine; empty if it is not, or nobody has said so.
    """

    def __init__(
        self, settings: HfSettings, config: PretrainedConfig, tokenizer: Tokenizer | None, source: str
    ) -> None:
        self._settings = settings
        self._config = config
        self._config.dtype = "float32"
        self._tokenizer = tokenizer
        self._source = source
        self._adapter = None
        if settings.lora.rank:
            self._adapter = lora.peft_config(empty(config), settings.lora)
            self._adapter.base_model_name_or_path = source or settings.model.name
            self._adapter.inference_mode = True

    def __call__(self, folder: Path, about: Lineage, weights: Mapping[str, Tensor] | None) -> None:
        """See ``Publisher``."""
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
        if self._adapter is not None:
            self._adapter.save_pretrained(str(folder))
        else:
            self._config.save_pretrained(folder)
            sources.generation_config(self._source, self._config).save_pretrained(folder)
        (folder / _CARD).write_text(self._card(about), encoding="utf-8")
        if weights is not None:
            stem = "adapter_model" if self._adapter is not None else "model"
            save_torch_state_dict(
                dict(weights), folder, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=MAX_SHARD
            )
        elif self._adapter is not None:
            (folder / _ADAPTER).unlink(missing_ok=True)
            os.link(folder / _WEIGHTS, folder / _ADAPTER)

    def _card(self, about: Lineage) -> str:
        """The model card."""
        settings, name = self._settings, self._settings.model.name
        adapter, local = settings.lora, Path(name).is_absolute()
        head = [f"library_name: {'peft' if adapter.rank else 'transformers'}"]
        if not settings.model.from_scratch and not local:
            head.append(f"base_model: {name}")
        began = Path(name).name if local else name
        rows = {
            "architecture": str((self._config.architectures or [self._config.model_type])[0]),
            "weights began as": "drawn at random" if settings.model.from_scratch else began,
            "adapter": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha}" if adapter.rank else "",
            "optimizer": f"{settings.optimizer.name}, learning rate {settings.optimizer.learning_rate:g}",
            "batch of a worker": f"{settings.batch_sequences} sequences of {settings.seq_len} tokens",
        }
        return model_card(about, rows, head)

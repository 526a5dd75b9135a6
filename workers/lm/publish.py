"""The small GPT as a folder that transformers reads: it is a Llama by another name. Imports nothing of transformers.

Norms, MLP and attention are Llama's as they stand. Queries and keys turn pairs of neighbours here (RoFormer, arXiv
2104.09864) and pairs of a half's distance there: their rows change places, which changes no product of the two. Tokens
are bytes, so the tokenizer is one of bytes that merges nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from decentral.ports.trainer import Lineage
from decentral.state.files import save_weights
from decentral.workers.card import model_card
from decentral.workers.lm.model import NORM_EPS, NUM_BYTES, ModelConfig
from decentral.workers.lm.settings import LmSettings

_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention_out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "mlp_out": "mlp.down_proj",
}
_ENDS = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}


class LlamaFolder:
    """Implements the port ``Publisher``. Beside weights by the names of the task it writes nothing.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: LmSettings) -> None:
        self._settings = settings

    def __call__(self, folder: Path, about: Lineage, weights: Mapping[str, Tensor] | None) -> None:
        """See ``Publisher``."""
        if weights is None:
            return
        settings, model = self._settings, self._settings.model
        files = {
            "config.json": _architecture(model),
            "generation_config.json": {"do_sample": True, "temperature": 0.7, "top_k": 40, "max_length": model.context},
            "tokenizer.json": _tokenizer(),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "model_max_length": model.context,
            },
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        rows = {
            "architecture": f"LlamaForCausalLM over bytes, {model.num_parameters:,} parameters",
            "optimizer": f"{settings.optimizer.name}, learning rate {settings.optimizer.learning_rate:g}",
            "batch of a worker": f"{settings.batch_sequences} sequences of {model.context} bytes",
        }
        card = model_card(about, rows, ["library_name: transformers"])
        (folder / "README.md").write_text(card, encoding="utf-8")
        save_weights(folder / "model.safetensors", dict(as_llama(weights, model)), {"run": about.run})


def as_llama(weights: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names and in the order of a ``LlamaForCausalLM``."""
    for name, value in weights.items():
        _, _, rest = name.partition("blocks.")
        if not rest:
            yield _ENDS[name], value
            continue
        number, _, inner = rest.partition(".")
        layer = f"model.layers.{number}"
        if inner != "query_key_value":
            yield f"{layer}.{_BLOCK[inner]}.weight", value
            continue
        for kind, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{layer}.self_attn.{kind}_proj.weight", part if kind == "v" else _halved(part, config)


def _halved(rows: Tensor, config: ModelConfig) -> Tensor:
    """Rows of queries or keys: those of even number in a head before those of odd."""
    heads, width = config.num_heads, config.d_model
    return rows.reshape(heads, -1, 2, width).transpose(1, 2).reshape(width, width)


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """As releases of transformers before 5 and from 5 on read it: they differ in where the base of rotations is."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": NUM_BYTES,
        "hidden_size": config.d_model,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.d_model // config.num_heads,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def _tokenizer() -> dict[str, Any]:
    """A token for each byte, and no others; as the library tokenizers reads it."""
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": by_bytes,
        "decoder": by_bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _letters() -> Iterator[str]:
    """What stands for each byte in a byte-level vocabulary: its own letter if that can be printed, else a free one."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    free = NUM_BYTES
    for byte in range(NUM_BYTES):
        yield chr(byte if byte in printed else free)
        free += byte not in printed

"""What lies in a folder or on the hub: a model's configuration, its weights, a tokenizer. It trains nothing.

Nothing is downloaded unless the caller allows it, and no code from the hub is run. What is wrong is said in words.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from decentral.errors import ConfigError, DecentralError, MismatchError

_CONFIG = "config.json"
#: Values.
_HASHED_AT_ONCE = 1 << 20
#: Of an error's own words so much is shown.
_MAX_WORDS = 300


def read_config(name: str, *, download: bool) -> PretrainedConfig:
    """The configuration of a model.

    Args:
        name: a folder, a ``config.json`` by itself, or a name on the hub.
        download: whether it may be downloaded.

    Raises:
        ConfigError: it cannot be read.
    """
    if Path(name).is_file():
        return _from_file(Path(name))
    with _reading("model", name, download=download):
        return AutoConfig.from_pretrained(name, local_files_only=not download)


def read_tokenizer(name: str, *, download: bool) -> Tokenizer:
    """A tokenizer. Raises ``ConfigError`` if it cannot be read."""
    folder = str(Path(name).parent) if Path(name).is_file() else name
    with _reading("tokenizer", folder, download=download):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=not download)
        return tokenizer


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """16 hex characters of its tokens and their numbers."""
    text = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def ensure_same_tokenizer(tokenizer: Tokenizer, digest: str, name: str) -> None:
    """Make sure that a tokenizer of this machine is the swarm's.

    Raises:
        MismatchError: it is another one.
    """
    found = vocabulary_digest(tokenizer)
    if digest and found != digest:
        raise MismatchError(
            f"The tokenizer {name} has another vocabulary here ({found}) than in the swarm ({digest}).",
            hint="Copy the folder of the founder's tokenizer to this machine, and give it with --tokenizer.",
        )


def ensure_vocabulary_fits(tokenizer: Tokenizer, config: PretrainedConfig) -> None:
    """Make sure that every token has a row in the model's embedding.

    Raises:
        ConfigError: there are more tokens.
    """
    highest, rows = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if highest >= rows:
        raise ConfigError(
            f"The tokenizer has tokens up to number {highest:,}, and the model's embedding {rows:,} rows.",
            hint="Give the tokenizer that belongs to the model (--tokenizer), or, with --from-scratch, a configuration "
            f"with a vocab_size of at least {highest + 1}.",
        )


def load_weights(name: str, config: PretrainedConfig, *, download: bool, kind: Any = AutoModelForCausalLM) -> nn.Module:
    """The model with weights of a folder or of the hub, in float32 on the CPU; of another class with ``kind``.

    Raises:
        ConfigError: they cannot be read, or are of another architecture.
    """
    with _reading("model", name, download=download):
        model, found = kind.from_pretrained(
            name, config=config, dtype=torch.float32, local_files_only=not download, output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ConfigError(
            f"The weights of {name} lack {len(missing)} parameters of its architecture, such as {missing[0]}.",
            hint="Give weights of a causal language model, or train such a model with --from-scratch.",
        )
    return model  # type: ignore[no-any-return]


def weights_digest(name: str, *, download: bool) -> str:
    """32 hex characters of the names, shapes and values of all tensors, however they are dealt out to files.

    Raises:
        ConfigError: there are none as safetensors.
    """
    where: dict[str, Any] = {"local_files_only": not download, "_raise_exceptions_for_missing_entries": False}
    with _reading("model", name, download=download):
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **where)
        if index is not None:
            files, _ = get_checkpoint_shard_files(name, index, local_files_only=not download)
        else:
            files = [cached_file(name, SAFE_WEIGHTS_NAME, **where)]
        if None in files:
            raise ConfigError(
                f"There are no weights as safetensors in {name}, of which each stage reads its own.",
                hint="Load it with transformers and write it anew: model.save_pretrained(DIR).",
            )
        digest = xxhash.xxh3_128()
        with ExitStack() as opened:
            there: dict[str, Any] = {}
            for file in files:
                tensors = opened.enter_context(safe_open(file, framework="pt"))
                there |= dict.fromkeys(tensors.keys(), tensors)
            for key in sorted(there):
                for piece in _pieces(there[key], key):
                    digest.update(piece)
        return digest.hexdigest()


def _pieces(tensors: Any, key: str) -> Iterator[Any]:
    """What a tensor of a file is, and the bytes of its values, so many rows at a time."""
    part = tensors.get_slice(key)
    shape = part.get_shape()
    yield f"{key} {part.get_dtype()} {shape}".encode()
    at_once = max(1, _HASHED_AT_ONCE // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0] if shape else 1, at_once):
        rows: Tensor = part[first : first + at_once] if shape else tensors.get_tensor(key)
        yield rows.reshape(-1).contiguous().view(torch.uint8).numpy().data


def ensure_same_weights(name: str, digest: str, *, download: bool) -> None:
    """Make sure that the weights of this machine are those that the swarm began with.

    Raises:
        MismatchError: they are others.
        ConfigError: see ``weights_digest``.
    """
    found = weights_digest(name, download=download)
    if found != digest:
        raise MismatchError(
            f"The weights in {name} are others here ({found}) than in the swarm ({digest}): its stages would not be of "
            "one model.",
            hint="Give the swarm's own with --model, or leave that out to take those that the swarm names.",
        )


def generation_config(name: str, config: PretrainedConfig) -> GenerationConfig:
    """How a model is sampled: as its own folder says, if it is here, or by default."""
    with suppress(OSError, ValueError):
        if name:
            return GenerationConfig.from_pretrained(name, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def _from_file(path: Path) -> PretrainedConfig:
    """Raises ``ConfigError`` if it is no configuration."""
    try:
        return config_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"{path} is no configuration of a model: {_words(err)}", hint=f"Give a {_CONFIG} as transformers writes it."
        ) from err


def config_of(text: str) -> PretrainedConfig:
    """A configuration from JSON.

    Raises:
        ValueError: it is none, or of an architecture that this release of transformers does not have.
    """
    values: Any = json.loads(text)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ValueError("it has no model_type")
    return AutoConfig.for_model(**values)


@contextmanager
def _reading(what: str, name: str, *, download: bool) -> Iterator[None]:
    """Say in words why a folder, or what is on the hub, cannot be read.

    Raises:
        ConfigError: it cannot.
    """
    try:
        yield
    except DecentralError:
        raise
    except Exception as err:  # huggingface_hub's, transformers' own, of whatever reads a broken file
        raise _explained(err, what, name, download=download) from err


def _explained(err: Exception, what: str, name: str, *, download: bool) -> ConfigError:
    causes = list(_causes(err))
    copy = f"hf download {name} --local-dir DIR, and give --{what} DIR here"
    if "trust_remote_code" in str(err):
        return ConfigError(
            f"The {what} {name} comes with code of its own, which is never run.",
            hint="Take an architecture that transformers itself has.",
        )
    if Path(name).is_dir():
        return ConfigError(f"The {what} in {name} cannot be read: {_words(err)}", hint="Is the folder whole?")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return ConfigError(
            f"There is no {what} at {name}.",
            hint=f"Paths are local to each machine: --{what} says where it is on this one.",
        )
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return ConfigError(
            f"{name} needs a Hugging Face token: its owner lets in only who has asked.",
            hint=f'Ask at https://huggingface.co/{name}, then run "hf auth login" or set HF_TOKEN.',
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return ConfigError(
            f"There is no {what} {name} on the hub, nor a folder of this name here.",
            hint=f"Check the name; a private one needs a token (hf auth login). A folder: --{what} DIR.",
        )
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        if not download:
            return ConfigError(
                f"The {what} {name} is not on this machine, and nothing is downloaded unasked.",
                hint=f"Allow it with --allow-download, or point at a copy with --{what} DIR.",
            )
        return ConfigError(
            f"The hub cannot be reached, and the {what} {name} is not on this machine.",
            hint=f"On a machine that reaches it: {copy}.",
        )
    return ConfigError(f"The {what} {name} cannot be read: {_words(err)}", hint=f"A copy may do: {copy}.")


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _words(err: Exception) -> str:
    return " ".join(str(err).split())[:_MAX_WORDS] or type(err).__name__

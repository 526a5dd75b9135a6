"""Settings of a task: mappings from a config file into frozen dataclasses and back. It knows no task in particular."""

import difflib
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from decentral.errors import ConfigError

T = TypeVar("T")


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise a ``ConfigError`` that says what a setting may be, unless it holds."""
    if not holds:
        raise ConfigError(f"{key} is {value}", hint=f"It must be {allowed}.")


def per_microbatch(batch_sequences: int, num_microbatches: int) -> int:
    """Sequences of a micro-batch. Raises ``ConfigError`` unless a batch can be dealt out evenly."""
    if batch_sequences % num_microbatches:
        raise ConfigError(
            f"batch_sequences is {batch_sequences} with {num_microbatches} micro-batches",
            hint="Micro-batches are equal: batch_sequences must be a multiple of pipeline.microbatches.",
        )
    return batch_sequences // num_microbatches


def read(kind: type[T], given: Mapping[str, Any], where: str = "", default: T | None = None) -> T:
    """Build the frozen dataclass ``kind`` from a mapping; what is not given keeps its default.

    Fields may be bool, int, float, str, a tuple of floats of fixed length, a table of plain values, or another such
    dataclass, of which what is not given is as in the default of the field.

    Args:
        kind: the dataclass; every field has a default.
        given: its settings, nested where ``kind`` is.
        where: dotted name of the mapping in the config, for messages.
        default: has what is not given; ``None`` for the defaults of ``kind``.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    base: Any = kind() if default is None else default
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(cast(Any, kind))]
    values = {}
    for key, value in given.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            raise ConfigError(
                f"unknown setting {name!r}",
                hint=f"Did you mean {nearest[0]!r}?" if nearest else f"Known here: {', '.join(known)}.",
            )
        values[key] = _convert(hints[key], value, name, getattr(base, key))
    return cast(T, replace(base, **values))


def write(settings: object) -> dict[str, Any]:
    """The complete settings as plain nested values that JSON and TOML can hold; ``read`` gives back an equal object."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _nested(settings).items()}


def _nested(settings: object) -> dict[str, Any]:
    return {
        field.name: write(value) if is_dataclass(value := getattr(settings, field.name)) else value
        for field in fields(cast(Any, settings))
    }


def _convert(kind: Any, value: Any, name: str, default: Any = None) -> Any:
    """``value`` as ``kind``: an int passes for a float, a list for a tuple, a mapping for a dataclass."""
    if is_dataclass(kind):
        if isinstance(value, Mapping):
            return read(cast(type[object], kind), value, name, default)
    elif typing.get_origin(kind) is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
    elif typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if isinstance(value, list | tuple) and len(value) == len(items):
            return tuple(_convert(item, part, name) for item, part in zip(items, value, strict=True))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{name} is {value!r}", hint=f"It must be {_describe(kind)}.")


def _describe(kind: Any) -> str:
    if is_dataclass(kind) or typing.get_origin(kind) is Mapping:
        return "a table of settings"
    if typing.get_origin(kind) is tuple:
        return f"a list of {len(typing.get_args(kind))} numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]

"""The configuration as TOML. Reading is ``config.settings``."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from decentral.config.schema import SwarmConfig, WorkerConfig


def to_toml(swarm: SwarmConfig, own: WorkerConfig | None = None) -> str:
    """A configuration as a file that ``--config`` reads back as it is.

    Args:
        swarm: the run's part.
        own: this machine's part, without ``out``: that is the folder that the file lies in, and whoever founds the run
            anew from it should not write over what is there.
    """
    values = swarm.model_dump()
    if own is not None:
        values["worker"] = own.model_dump(exclude={"out"})
    return as_toml(values)


def as_toml(values: Mapping[str, Any]) -> str:
    """Nested values as TOML."""
    return "\n".join(_table("", values)).lstrip() + "\n"


def _table(name: str, values: Mapping[str, Any]) -> Iterable[str]:
    """The lines of a TOML table: its values first, then the tables within it."""
    if name:
        yield f"\n[{name}]"
    for key, value in values.items():
        if not isinstance(value, Mapping):
            yield f"{_key(key)} = {_toml(value)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _table(f"{name}.{_key(key)}" if name else _key(key), value)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return json.dumps(value)

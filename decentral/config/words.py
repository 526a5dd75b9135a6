"""Words for what is wrong with a configuration. Knows the shape of fields, and no field."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from decentral.config.names import FORMER_NAMES
from decentral.config.schema import show


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A hint naming what ``key`` is called now, or the known key most like it, by its whole or by its last part."""

    def likeness(candidate: str) -> float:
        pairs = [(key, candidate), (key.rpartition(".")[2], candidate.rpartition(".")[2])]
        return sum(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    nearest = FORMER_NAMES.get(key) or max(known, key=likeness, default=None)
    return f"Did you mean {nearest!r}?" if nearest else ""


def problem(model: type[BaseModel], error: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """What is wrong with one value, in words, and a hint or nothing.

    Args:
        model: that the value is for.
        error: as pydantic tells it.
        prefix: of the dotted key.
    """
    if error["type"] == "value_error":  # ours, complete in itself
        return f"{error['ctx']['error']}.", ""
    path = [part for part in error["loc"] if isinstance(part, str)]
    key, field = _field(model, path)
    value = error["input"]
    hint = did_you_mean(value, _choices(field)) if isinstance(value, str) else ""
    return f"{prefix}{key} = {show(value)}: must be {_allowed(field)}.", hint


def _field(model: type[BaseModel], path: Sequence[str]) -> tuple[str, FieldInfo]:
    """The dotted key of what ``path`` leads to, and what it is; a path may go on into the kinds of a value."""
    name, *rest = path
    field = model.model_fields[name]
    if rest and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        key, field = _field(field.annotation, rest)
        name = f"{name}.{key}"
    return name, field


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a field takes, if it takes nothing else."""
    choices = getattr(field.annotation, "__args__", ())
    return choices if all(isinstance(choice, str) for choice in choices) else ()


def _allowed(field: FieldInfo) -> str:
    """The type and range of a field in words."""
    if field.description:
        return field.description
    if choices := _choices(field):
        return f"one of {', '.join(choices)}"
    kinds: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", dict[str, Any]: "a table"}
    bounds = [
        f"{word} {getattr(rule, name)}"
        for rule in field.metadata
        for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if hasattr(rule, name)
    ]
    kind = kinds.get(field.annotation, "a list of texts")
    return f"{kind}, {' and '.join(bounds)}" if bounds else kind

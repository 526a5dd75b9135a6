"""From defaults, a TOML file, ``--set`` and flags to checked configurations.

Order: file < ``--set`` < flag. What the user stated is kept apart from the defaults: a joiner's own statements are
compared with what the swarm trains, the defaults are not.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from decentral.config.names import FORMER_NAMES, METHODS, OPTIMIZER
from decentral.config.schema import SwarmConfig, WorkerConfig, flatten, leaves
from decentral.config.words import did_you_mean, problem
from decentral.errors import ConfigError

#: Below this everything is free: the task itself checks its settings.
_FREE = "task.settings"
_WORKER = "worker"
#: Keys of earlier releases, and what to write in their place, by the value.
_REMOVED: Mapping[str, Callable[[Any], str]] = {
    "method.preset": lambda name: (
        f'Write method.name = "{FORMER_NAMES.get(name, name)}" (or --method {FORMER_NAMES.get(name, name)}) '
        "in place of it and of any other method.name: the name alone stands for these values."
    ),
    "method.eager": lambda eager: 'Write method.name = "eager" in its place.' if eager is True else "Leave it out.",
}
#: Left to us in these keys, and chosen when a run is founded.
_AUTO = "auto"
_CHOSEN = frozenset(
    {
        "method.mean_codec",
        "method.anchor_codec",
        "method.pull_codec",
        "method.feedback",
        "method.mix_alpha",
        "pipeline.recovery",
    }
)
_NAME, _STAGES = "method.name", "pipeline.stages"
#: Values that are chosen to go with another one, and are chosen again when that changes.
_WITH = (
    ("method.codec", "method.mean_codec"),
    ("method.codec", "method.anchor_codec"),
    ("method.codec", "method.pull_codec"),
    ("method.codec", "method.feedback"),
    ("method.delay_steps", "method.mix_alpha"),
    ("pipeline.stages", "pipeline.recovery"),
    ("pipeline.stages", "worker.stage"),
)

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command works with."""

    swarm: SwarmConfig
    worker: WorkerConfig
    explicit: Mapping[str, Any]
    """Dotted keys of ``swarm`` that the user stated, with their checked values; ``auto`` and an empty table state
    nothing."""


def load(
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    base: Path | None = None,
) -> Settings:
    """Read and check all configuration.

    Args:
        file: TOML with the sections of ``SwarmConfig`` and a section ``[worker]``.
        assignments: ``a.b=c`` from ``--set``; ``c`` is TOML, or text if it is not.
        flags: other values by dotted key, such as those of flags; ``None`` stands for one that was not given.
        base: a file below all of these, of a run that goes on; what is in it the user did not state.

    Raises:
        ConfigError: a file cannot be read, a key is unknown (the nearest is named), a value is out of range.
    """
    stated: dict[str, Any] = {}
    if file is not None:
        stated |= _keys(_read(file), str(file))
    for assignment in assignments:
        stated |= _keys(_parse(assignment), "--set")
    stated |= _keys({key: value for key, value in (flags or {}).items() if value is not None}, "settings")

    given = stated if base is None else _below(_keys(_read(base), str(base)), stated) | stated
    mine = {key.removeprefix(f"{_WORKER}."): value for key, value in given.items() if key.startswith(f"{_WORKER}.")}
    shared = {key: value for key, value in given.items() if not key.startswith(f"{_WORKER}.")}
    swarm = checked(SwarmConfig, shared)
    values = flatten(swarm)
    explicit = {key: values[key] for key in shared if key in stated and values.get(key, {}) != {}}
    explicit = {key: value for key, value in explicit.items() if not (key in _CHOSEN and value == _AUTO)}
    return Settings(swarm, checked(WorkerConfig, mine, f"{_WORKER}."), explicit)


def _below(before: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a run's values under what is stated now: not those that were chosen to go with another one."""
    changed = {key for key, value in stated.items() if key in before and before[key] != value}
    gone = {chosen for key, chosen in _WITH if key in changed}
    if _NAME in changed:
        gone |= {key for key in before if key.startswith("method.")}
        if any(name in METHODS and METHODS[name].optimizer for name in (before[_NAME], stated[_NAME])):
            gone.add(OPTIMIZER)
    if _STAGES in changed and not stated[_STAGES]:
        gone |= {key for key in before if key.startswith("pipeline.")}
    if _STAGES in changed and not before[_STAGES]:  # each stage has rounds of its own, by its replicas
        gone.add("run.min_workers")
    return {key: value for key, value in before.items() if key not in gone}


def with_values(swarm: SwarmConfig, values: Mapping[str, Any]) -> SwarmConfig:
    """A copy of ``swarm`` with the dotted keys in ``values`` replaced and everything checked again."""
    return checked(SwarmConfig, {**flatten(swarm), **values})


def checked(model: type[_Model], values: Mapping[str, Any], prefix: str = "") -> _Model:
    """A model from values by dotted key.

    Raises:
        ConfigError: names every value that is wrong, each with ``prefix``.
    """
    try:
        return model.model_validate(nested(values, prefix))
    except ValidationError as err:
        # A value that may be of two kinds and is of neither is reported for each.
        problems = dict(problem(model, error, prefix) for error in err.errors(include_url=False))
        hint = next(iter(problems.values())) if len(problems) == 1 else ""
        raise ConfigError("\n".join(problems), hint=hint) from err


def nested(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key as sections in sections; the inverse of ``leaves``.

    Raises:
        ConfigError: something is given as a value and as a section; names it, with ``prefix``.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{prefix}{key.removesuffix(f'.{name}')} is given as a value and as a section.")
        if value != {}:
            node[name] = value
        else:  # as a table, which others may fill
            node.setdefault(name, {})
    return tree


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"Cannot read the configuration {file}: {err.strerror or err}.") from err
    except ValueError as err:
        raise ConfigError(f"{file} is not valid TOML: {err}.") from err


def _parse(assignment: str) -> dict[str, Any]:
    """``a.b=c`` as nested dictionaries."""
    key, equals, text = assignment.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {assignment!r} is not an assignment.", hint="Write it as section.key=value: --set run.rounds=10."
        )
    value = value_of(text)
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def value_of(text: str) -> Any:
    """A value as TOML has it, or the text itself if it is not TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text.strip()


def _keys(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The leaves of ``tree`` by dotted key, each of them known; hyphens in keys count as underscores."""
    stated = dict(leaves(tree))
    known = known_keys()
    for key, value in stated.items():
        if key in known or key.startswith(f"{_FREE}."):
            continue
        if key in _REMOVED:
            raise ConfigError(f"{source}: there is no {key} any more.", hint=_REMOVED[key](value))
        if any(name.startswith(f"{key}.") for name in known):
            if value == {}:  # nothing but its heading
                continue
            raise ConfigError(f"{source}: {key} is a section, not a value.", hint=f"Give its keys: {key}.NAME = VALUE.")
        raise ConfigError(f"{source}: unknown key {key!r}.", hint=did_you_mean(key, known))
    return {key: value for key, value in stated.items() if key in known or key.startswith(f"{_FREE}.")}


def known_keys() -> list[str]:
    """Every dotted key that may be stated."""
    mine = [f"{_WORKER}.{key}" for key in WorkerConfig.model_fields]
    return [*_names(SwarmConfig), *mine]


def _names(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

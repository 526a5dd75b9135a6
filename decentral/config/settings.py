"""From defaults, a TOML file, ``--set`` and flags to checked configurations, and the words for what is wrong.

Order: file < ``--set`` < flag. What the user stated is kept apart from the defaults: a joiner's own statements are
compared with what the swarm trains, the defaults are not.
"""

import difflib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import decentral
from decentral.config.method import METHODS
from decentral.config.presets import PRESETS
from decentral.config.schema import SwarmConfig, WorkerConfig, flatten, leaves, show
from decentral.errors import ConfigError

#: Below this everything is free: the task itself checks its settings.
_FREE = "task.settings"
_PRESET = "method.preset"
_METHOD = "method.name"
_WORKER = "worker"
#: Names that our own tasks had.
_OLD_NAMES = frozenset({"workers.lm", "workers.toy"})
_OUR_TASKS = Path(decentral.__file__).with_name("workers")
#: Left to us in these keys, and chosen when a run is founded.
_AUTO = "auto"
_CHOSEN = frozenset(
    {"method.mean_codec", "method.anchor_codec", "method.pull_codec", "method.mix_alpha", "pipeline.recovery"}
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command works with."""

    swarm: SwarmConfig
    worker: WorkerConfig
    explicit: Mapping[str, Any]
    """Dotted keys of ``swarm`` that the user stated, with their checked values; ``auto`` states nothing."""


def load(file: Path | None = None, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Settings:
    """Read and check all configuration.

    Args:
        file: TOML with the sections of ``SwarmConfig`` and a section ``[worker]``.
        assignments: ``a.b=c`` from ``--set``; ``c`` is TOML, or text if it is not.
        flags: values of explicit flags by dotted key; ``None`` stands for a flag that was not given.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value is out of range.
    """
    stated: dict[str, Any] = {}
    if file is not None:
        stated |= _keys(_read(file), str(file))
    for assignment in assignments:
        stated |= _keys(_parse(assignment), "--set")
    stated |= {key: value for key, value in (flags or {}).items() if value is not None}
    stated = _expand_preset(stated)

    mine = {key.removeprefix(f"{_WORKER}."): value for key, value in stated.items() if key.startswith(f"{_WORKER}.")}
    shared = {key: value for key, value in stated.items() if not key.startswith(f"{_WORKER}.")}
    swarm = _checked(SwarmConfig, shared)
    values = flatten(swarm)
    explicit = {key: values[key] for key in shared if not (key in _CHOSEN and values[key] == _AUTO)}
    return Settings(swarm, _checked(WorkerConfig, mine, f"{_WORKER}."), explicit)


def with_values(swarm: SwarmConfig, values: Mapping[str, Any]) -> SwarmConfig:
    """A copy of ``swarm`` with the dotted keys in ``values`` replaced and everything checked again."""
    return _checked(SwarmConfig, {**flatten(swarm), **values})


def resolve(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with nothing left open: the method's choices made, the task's settings filled in.

    How a pipeline is cut is left to ``stages``, which knows the blocks. Imports torch.

    Raises:
        ConfigError: an unknown codec; and see ``resolve_task``.
    """
    return resolve_task(resolve_pipeline(resolve_method(swarm)))


def resolve_method(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with codecs that exist and all chosen where it left them to us with ``auto``.

    Codecs without effect stay ``auto``, and so do fragments and overlap: these are chosen while training.

    Raises:
        ConfigError: there is no such codec; the nearest is named.
    """
    from decentral.codecs.codec import make_codec
    from decentral.codecs.defaults import default_anchor_codec, default_mean_codec, default_pull_codec

    method = swarm.method
    codecs = {"mean_codec": default_mean_codec(make_codec(method.codec))}
    if method.name == "noloco":
        codecs |= {"anchor_codec": default_anchor_codec(), "pull_codec": default_pull_codec()}
    for key in codecs:
        if (name := getattr(method, key)) != _AUTO:
            codecs[key] = make_codec(name)
    names = {f"method.{key}": codec.name for key, codec in codecs.items()}
    return with_values(swarm, {**names, "method.mix_alpha": method.alpha})


def resolve_pipeline(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with a codec for activations that exists, if there are any.

    Raises:
        ConfigError: there is no such codec; the nearest is named.
    """
    from decentral.codecs.codec import make_codec

    if not swarm.pipeline.stages:
        return swarm
    return with_values(swarm, {"pipeline.codec": make_codec(swarm.pipeline.codec).name})


def resolve_task(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with every setting of the task filled in and checked by the task itself.

    A task may have a function ``resolve(settings) -> settings`` beside its factory; without one, settings pass as
    they are. Imports the task, and with it torch.

    Raises:
        ConfigError: the task cannot be imported, or refuses its settings.
    """
    module, _ = import_task(swarm.task.factory)
    resolve = getattr(module, "resolve", None)
    if resolve is None:
        return swarm
    settings = dict(resolve(swarm.task.settings))
    return swarm.model_copy(update={"task": swarm.task.model_copy(update={"settings": settings})})


def import_task(factory: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module of a task and its factory; the current folder is searched as well, as ``python -m`` does.

    Raises:
        ConfigError: it cannot be imported, or there is no such function.
    """
    module_name, _, name = factory.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    _refuse_old_name(factory, module_name)
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise ConfigError(
            f"task.factory is {factory!r}, and {module_name} cannot be imported: {err}",
            hint="Install the package that holds the task, or run from the folder that does.",
        ) from err
    except Exception as err:
        raise ConfigError(
            f"task.factory is {factory!r}, and importing {module_name} failed: {type(err).__name__}: {err}",
            hint="This is a fault of that module; --debug shows where.",
        ) from err
    build = getattr(module, name, None)
    if not callable(build):
        raise ConfigError(
            f"task.factory is {factory!r}, but {module_name} has no function {name}",
            hint=_did_you_mean(name, [n for n, value in vars(module).items() if callable(value)]),
        )
    return module, build


def _refuse_old_name(factory: str, module_name: str) -> None:
    """Our own tasks once were in a package ``workers`` at the top, where somebody else may have one.

    Raises:
        ConfigError: the old name of one of them.
    """
    if module_name not in _OLD_NAMES:
        return
    theirs = importlib.util.find_spec("workers")
    if theirs is None or theirs.origin is None or Path(theirs.origin).resolve().parent == _OUR_TASKS.resolve():
        raise ConfigError(
            f"task.factory is {factory!r}, but {module_name} is now decentral.{module_name}.",
            hint=f'Write task.factory = "decentral.{factory}".',
        )


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
    for key in stated:
        if key in known or key.startswith(f"{_FREE}."):
            continue
        if any(name.startswith(f"{key}.") for name in known):
            raise ConfigError(f"{source}: {key} is a section, not a value.", hint=f"Give its keys: {key}.NAME = VALUE.")
        raise ConfigError(f"{source}: unknown key {key!r}.", hint=_did_you_mean(key, known))
    return stated


def known_keys() -> list[str]:
    """Every dotted key that may be stated."""
    mine = [f"{_WORKER}.{key}" for key in WorkerConfig.model_fields]
    return [*_names(SwarmConfig), _PRESET, *mine]


def _names(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    """A hint naming the known key that looks most like ``key``, by its whole or by its last part."""

    def likeness(candidate: str) -> float:
        pairs = [(key, candidate), (key.rpartition(".")[2], candidate.rpartition(".")[2])]
        return sum(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    nearest = max(known, key=likeness, default=None)
    return f"Did you mean {nearest!r}?" if nearest else ""


def _expand_preset(stated: dict[str, Any]) -> dict[str, Any]:
    """Replace ``method.preset`` by what it stands for, below what was stated by its own key.

    The name of a method alone stands for the preset of that name.
    """
    method = stated.get(_METHOD)
    name = stated.get(_PRESET)
    if name is None:
        if method not in METHODS:  # of a wrong one the check of all values tells
            return stated
        name = method
    if str(name) not in PRESETS:
        raise ConfigError(
            f"{_PRESET} = {show(name)}: must be one of {', '.join(PRESETS)}.", hint=_did_you_mean(str(name), PRESETS)
        )
    preset = {f"method.{key}": value for key, value in PRESETS[name].items()}
    if method not in (None, preset[_METHOD]):
        raise ConfigError(
            f"{_PRESET} is {name}, which stands for {_METHOD} = {preset[_METHOD]}, but {_METHOD} is {show(method)}.",
            hint=f"State one of them: either {_PRESET} (or --method), or {_METHOD}.",
        )
    return preset | {key: value for key, value in stated.items() if key != _PRESET}


_Model = TypeVar("_Model", bound=BaseModel)


def _checked(model: type[_Model], values: Mapping[str, Any], prefix: str = "") -> _Model:
    """A model from values by dotted key."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{prefix}{key.removesuffix(f'.{name}')} is given as a value and as a section.")
        node[name] = value
    try:
        return model.model_validate(tree)
    except ValidationError as err:
        problems = [_problem(model, error, prefix) for error in err.errors(include_url=False)]
        # A value that may be of two kinds and is of neither is reported for each.
        raise ConfigError("\n".join(dict.fromkeys(problems))) from err


def _problem(model: type[BaseModel], error: Mapping[str, Any], prefix: str) -> str:
    """What is wrong with one value, in words."""
    if error["type"] == "value_error":  # ours, complete in itself
        return f"{error['ctx']['error']}."
    path = [part for part in error["loc"] if isinstance(part, str)]
    key, field = _field(model, path)
    return f"{prefix}{key} = {show(error['input'])}: must be {_allowed(field)}."


def _field(model: type[BaseModel], path: Sequence[str]) -> tuple[str, FieldInfo]:
    """The dotted key of what ``path`` leads to, and what it is; a path may go on into the kinds of a value."""
    name, *rest = path
    field = model.model_fields[name]
    if rest and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        key, field = _field(field.annotation, rest)
        name = f"{name}.{key}"
    return name, field


def _allowed(field: FieldInfo) -> str:
    """The type and range of a field in words."""
    if field.description:
        return field.description
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
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

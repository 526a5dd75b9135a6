"""What a configuration leaves open: the method's choices, the settings of the task, and the task itself, imported."""

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import decentral
from decentral.config.names import METHODS, OPTIMIZER, Family
from decentral.config.schema import DataSection, SwarmConfig, TaskSection, WorkerConfig, flatten
from decentral.config.settings import Settings, checked, with_values
from decentral.config.words import did_you_mean
from decentral.errors import ConfigError, DecentralError

_log = logging.getLogger(__name__)
_AUTO: Final = "auto"
#: Names that our own tasks had.
_OLD_NAMES = frozenset({"workers.lm", "workers.toy"})
#: Tasks that a swarm may name to anybody.
_OURS = re.compile(r"decentral\.workers\.[a-z_]+(\.[a-z_]+)*:build")
#: What this machine has of its own, and by which key of the swarm's it may be stated as well.
_NAMED: Final = {
    "task": "task.factory",
    "data": "data.paths",
    "model": "task.settings.model.name",
    "tokenizer": "task.settings.tokenizer.name",
    "dataset": "task.settings.data.dataset",
}
_OUR_TASKS = Path(decentral.__file__).with_name("workers")


def resolve(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with nothing left open: the method's choices made, the task's settings filled in.

    How a pipeline is cut is left to ``stages``, which knows the blocks. Imports torch.

    Raises:
        ConfigError: see ``resolve_method`` and ``resolve_task``.
    """
    return resolve_task(resolve_method(swarm))


def resolve_method(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with codecs that exist, and these and feedback chosen where it left them to us with ``auto``.

    Codecs without effect stay ``auto``, and so do fragments and overlap: these are chosen while training.

    Raises:
        ConfigError: there is no such codec; the nearest is named.
    """
    from decentral.codecs.codec import make_codec
    from decentral.codecs.defaults import (
        default_anchor_codec,
        default_mean_codec,
        default_pull_codec,
        needs_feedback,
    )

    method = swarm.method
    chosen = {"mean_codec": default_mean_codec(make_codec(method.codec))}
    if method.family is Family.GOSSIP:
        chosen |= {"anchor_codec": default_anchor_codec(), "pull_codec": default_pull_codec()}
    values: dict[str, Any] = {"method.mix_alpha": method.alpha}
    for key, codec in chosen.items():
        stated = getattr(method, key)
        values[f"method.{key}"] = (codec if stated == _AUTO else make_codec(stated)).name
    if method.feedback == _AUTO:
        lossy = needs_feedback(make_codec(method.codec)) or needs_feedback(make_codec(values["method.mean_codec"]))
        values["method.feedback"] = "ef14" if lossy or method.feedback_decay != 1 else "none"
    if swarm.pipeline.stages:
        values["pipeline.codec"] = make_codec(swarm.pipeline.codec).name
    return with_values(swarm, values)


def resolve_task(swarm: SwarmConfig) -> SwarmConfig:
    """The configuration with every setting of the task filled in and checked by the task itself.

    A task may have a function ``resolve(settings) -> settings`` beside its factory; without one, settings pass as
    they are. The inner optimizer that a method's name stands for is put among them, unless they say which. Imports the
    task, and with it torch.

    Raises:
        ConfigError: the task cannot be imported, or refuses its settings.
    """
    if not swarm.task.factory:
        return swarm
    module, _ = import_task(swarm.task.factory)
    resolve = getattr(module, "resolve", None)
    if resolve is None:
        return swarm
    name = METHODS[swarm.method.name].optimizer
    brought = bool(name) and OPTIMIZER not in flatten(swarm)
    if brought:
        swarm = with_values(swarm, {OPTIMIZER: name})
    try:
        settings = dict(resolve(swarm.task.settings))
    except ConfigError as err:
        if not brought:
            raise
        raise ConfigError(
            f"method.name is {swarm.method.name}, which makes {OPTIMIZER} {name}, and {swarm.task.factory} refuses its "
            f"settings: {err.message}",
            hint=err.hint,
        ) from err
    task = checked(TaskSection, {"factory": swarm.task.factory, "settings": settings}, "task.")
    return swarm.model_copy(update={"task": task})


def on_machine(swarm: SwarmConfig, own: WorkerConfig) -> SwarmConfig:
    """What this machine builds its trainer from, of all that the swarm's configuration says.

    Of a configuration that came from others nothing is imported but our own tasks, and no path is opened. With a task
    and paths of its own this machine trains with these in place of the swarm's: the task has the swarm's settings, with
    its own defaults. What the swarm agrees on is ``swarm`` all the same.

    Raises:
        ConfigError: see ``ensure_named_here`` and ``resolve_task``.
    """
    ensure_named_here(swarm, own)
    if swarm.data.paths and not own.data:
        _log.warning(
            "the swarm's configuration names data paths (%s), which are not opened on this machine: takes the task's "
            "default corpus. --data names this machine's own",
            ", ".join(swarm.data.paths)[:200],
        )
    here = swarm.model_copy(update={"data": DataSection(paths=own.data)})
    if not own.task or own.task == swarm.task.factory:
        return here
    return resolve_task(here.model_copy(update={"task": swarm.task.model_copy(update={"factory": own.task})}))


def ensure_named_here(swarm: SwarmConfig, own: WorkerConfig) -> None:
    """Refuse a task that only others have named.

    Raises:
        ConfigError: it is none of ours, and nobody on this machine has said that it may be imported.
    """
    factory = swarm.task.factory
    if factory and not (own.task or may_import(factory, own)):
        raise ConfigError(
            f"The swarm's configuration names a task that nobody has named on this machine: task.factory is "
            f"{factory!r}. It is not imported.",
            hint=f"If that module is yours, or you have read it: --task {factory}. If you trust whoever founded the "
            "swarm with this machine: --trust-config.",
        )


def may_import(factory: str, own: WorkerConfig) -> bool:
    """Whether a task that a configuration names may be imported on this machine, whoever wrote that."""
    return own.trust_config or factory == own.task or _OURS.fullmatch(factory) is not None


def stated_here(settings: Settings, before: SwarmConfig | None = None) -> WorkerConfig:
    """This machine's part, with what was stated here of task and data: its user named them, so it may use them.

    Args:
        settings: as they were stated.
        before: what the folder has of a run that goes on; what is stated now goes before it.
    """
    own, stated = settings.worker, settings.explicit
    was = flatten(before) if before is not None else {}
    values = {
        name: stated[key]
        for name, key in _NAMED.items()
        if stated.get(key) and getattr(own, name) in ("", (), was.get(key))
    }
    return own.model_copy(update=values)


def import_task(factory: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module of a task and its factory; the current folder is searched as well, as ``python -m`` does.

    Raises:
        ConfigError: no task is named, it cannot be imported, or there is no such function.
    """
    if not factory:
        raise ConfigError(
            "This run names no task (task.factory is empty): each worker brings a training loop of its own.",
            hint="Name this machine's own task with --task MODULE:FUNCTION (worker.task), or join from your loop.",
        )
    module_name, _, name = factory.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    _refuse_old_name(factory, module_name)
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise ConfigError(
            f"The task is {factory!r}, and {module_name} cannot be imported: {err}",
            hint="Install the package that holds the task, or run from the folder that does.",
        ) from err
    except DecentralError:
        raise
    except Exception as err:
        raise ConfigError(
            f"The task is {factory!r}, and importing {module_name} failed: {type(err).__name__}: {err}",
            hint="This is a fault of that module; --debug shows where.",
        ) from err
    build = getattr(module, name, None)
    if not callable(build):
        raise ConfigError(
            f"The task is {factory!r}, but {module_name} has no function {name}",
            hint=did_you_mean(name, [n for n, value in vars(module).items() if callable(value)]),
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
            f"The task is {factory!r}, but {module_name} is now decentral.{module_name}.",
            hint=f"Write decentral.{factory}.",
        )

"""Pages made from the code at build time: commands, configuration, fields of JSON and of the journal, the API.

What is said of a field is the docstring below it in the source, which griffe reads without importing.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from decentral.cli.app import app
from decentral.config.schema import SwarmConfig, WorkerConfig, show

ROOT = Path(__file__).parents[2]
#: What a schema says of a value, beside its type.
_RANGE = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_API = (
    "decentral.found",
    "decentral.join",
    "decentral.resume",
    "decentral.Swarm",
    "decentral.Rows",
    "decentral.ports.trainer",
    "decentral.ports.model_blocks",
    "decentral.integrations.transformers",
    "decentral.integrations.lightning",
    "decentral.errors",
)


def commands() -> str:
    """Every command with its options, as its own ``--help`` has them."""
    group: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="decentral", title="Commands")
    return f"{text}\n"


def configuration() -> str:
    """Every key that can be set, with type, default and range, as pydantic checks them."""
    lines = ["# Configuration keys", "", "What they are for is told in [configuration](../configuration.md)."]
    for title, model, prefix in (("The swarm's", SwarmConfig, ""), ("A worker's own", WorkerConfig, "worker.")):
        lines += ["", f"## {title}", "", "| key | type | default | |", "|---|---|---|---|"]
        lines += [_row(*row) for row in _keys(model, prefix)]
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    schema = model.model_json_schema()
    meanings = _fields(f"{model.__module__}.{model.__name__}")
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            allowed = _type(schema["properties"][name])
            meaning = meanings.get(name, ("", ""))[1]
            yield f"`{prefix}{name}`", allowed, f"`{show(field.get_default(call_default_factory=True))}`", meaning


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema of one value in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    limits = [f"{sign} {schema[key]:,}" for key, sign in _RANGE.items() if key in schema]
    return ", ".join(f"`{value}`" for value in values) or " ".join((schema.get("type", "any"), *limits))


def status() -> str:
    """The JSON of ``status``, an object for each class of the report."""
    return _objects(
        "Fields of status",
        "What `decentral status --format json` has; how to read it is told in [its schema](../status-schema.md).",
        "decentral.monitor.report",
    )


def events() -> str:
    """The events of the journal."""
    return _objects("Events", "What a [journal](../journal.md) has, by its class.", "decentral.monitor.events")


def _objects(title: str, intro: str, module: str) -> str:
    lines = [f"# {title}", "", intro]
    for name, one in _loaded(module).classes.items():
        fields = _fields(f"{module}.{name}")
        if fields and not one.is_alias:
            lines += ["", f"## {name}", "", _text(one), "", "| field | type | |", "|---|---|---|"]
            lines += [_row(f"`{field}`", f"`{kind}`", meaning) for field, (kind, meaning) in fields.items()]
    return "\n".join(lines) + "\n"


def api() -> str:
    """What a program of one's own calls and implements; the pages' plugin puts the docstrings in."""
    lines = ["# API", "", "What [your own loop](../library.md) calls, and what [a trainer](../tasks.md) is.", ""]
    return "\n".join([*lines, *(f"::: {name}\n" for name in _API)])


#: Each page by its place in the site.
PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/configuration.md": configuration,
    "reference/status.md": status,
    "reference/events.md": events,
    "reference/api.md": api,
}


@functools.cache
def _loaded(module: str) -> Any:
    return griffe.load(module, search_paths=[ROOT])


def _fields(path: str) -> dict[str, tuple[str, str]]:
    """Type and docstring of each annotated attribute of a class."""
    module, _, name = path.rpartition(".")
    attributes = _loaded(module)[name].attributes
    return {key: (str(one.annotation), _text(one)) for key, one in attributes.items() if one.annotation}


def _text(one: Any) -> str:
    """A docstring as Markdown; ours have code in double backquotes."""
    return one.docstring.value.replace("``", "`") if one.docstring else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

"""``decentral plan``: what each method would cost, and which to take, before any machine is rented."""

import asyncio
import dataclasses
import json
import math
import re
import sys
import textwrap
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from decentral.cli import flags
from decentral.cli.command import with_invitation
from decentral.cli.models import HF_TASK
from decentral.cli.render import console
from decentral.config.file import as_toml
from decentral.config.rate import show_rate, to_bytes_per_s
from decentral.config.resolve import resolve, stated_here
from decentral.config.settings import Settings, load, nested
from decentral.errors import ExitCode, UsageError
from decentral.monitor.figures import age, amount, percent, size
from decentral.monitor.journal import finite

if TYPE_CHECKING:  # imports torch, which `decentral --help` must not wait for
    from decentral.run.planning import Case, Choice, Cost

_TIMEOUT_S = 10.0
#: Of reasons in a file.
_WIDTH = 110
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min)?")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "min": 60.0}


class PlanFormat(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    TOML = "toml"


def plan(
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="ADDR", help="Of a swarm whose measurements are taken.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Parameters, or a model of transformers.", metavar="135m|NAME_OR_DIR")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Of a model given by its parameters.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Of the swarm.")] = None,
    link: Annotated[
        str | None, typer.Option(help="Of each worker's line, in each direction: 200mbit.", metavar="RATE")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="There and back between two workers: 50ms.")] = None,
    step_time: Annotated[str | None, typer.Option(help="Of an inner step: 0.8s.")] = None,
    tokens_per_step: Annotated[int | None, typer.Option(help="Of an inner step of one worker.", min=1)] = None,
    tokens: Annotated[str | None, typer.Option(help="Of the whole run, such as 2.7b; 20 a parameter.")] = None,
    config: flags.Config = None,
    assignments: flags.Set = None,
    format: Annotated[
        PlanFormat, typer.Option(help="toml is for --config, json is described in docs/algorithms/utilisation.md.")
    ] = PlanFormat.TABLE,
    debug: flags.Debug = False,
) -> int:
    """Say what each method costs in bytes, memory and time, and which to take: by arithmetic, from a few figures.

    What is not given is measured on this machine if it can be, asked of the swarm at ADDR, or assumed.
    """
    asked = _Asked(model, layers, workers, link, latency, step_time, tokens_per_step, tokens)
    settings = load(config, assignments or (), _of_model(model))
    try:
        case, notes = _case(asked, settings, [with_invitation(address) for address in addresses or ()])
        return _show(case, notes, settings, model, format)
    except ValueError as err:
        raise UsageError(f"{err}.") from err


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """The flags."""

    model: str | None
    layers: int | None
    workers: int | None
    link: str | None
    latency: str | None
    step_time: str | None
    tokens_per_step: int | None
    tokens: str | None


def _of_model(model: str | None) -> dict[str, Any]:
    """A model of transformers is a task's; a number is none."""
    from decentral.run.sizing import number

    if model is None or number(model) is not None:
        return {}
    return {"task.factory": HF_TASK, "task.settings.model.name": model}


def _case(asked: _Asked, settings: Settings, addresses: Sequence[str]) -> "tuple[Case, list[str]]":
    """What to plan for, and in words what of it was not given.

    Raises:
        UsageError: too little is known.
    """
    from decentral.run import sizing
    from decentral.run.planning import Case

    notes: list[str] = []
    swarm, own = settings.swarm, stated_here(settings)
    live = asyncio.run(sizing.seen(addresses, timeout_s=_TIMEOUT_S)) if addresses else None
    if live is not None:
        swarm = live.swarm
    parameters = sizing.number(asked.model or "")
    step_s = seconds(asked.step_time, "--step-time") if asked.step_time is not None else None
    if parameters is not None:
        found = sizing.size_by_number(parameters)
    elif live is None and step_s is None and asked.model is None:
        swarm = resolve(swarm)
        found, step_s = sizing.measured(swarm, own)
        notes.append(f"steps of {step_s:.2g} s, as this machine takes them")
    else:
        told = sizing.size_of_task(swarm, own)
        if told is None:
            raise UsageError(
                f"The task {swarm.task.factory or 'of the training loop'} does not say how large it is.",
                hint="Give --model the number of parameters, and --tokens-per-step.",
            )
        found = told
    found = dataclasses.replace(found, layers=asked.layers or found.layers)
    found = dataclasses.replace(found, tokens_per_step=asked.tokens_per_step or found.tokens_per_step)
    if step_s is None and live is not None and math.isfinite(live.seconds_per_token):
        step_s = live.seconds_per_token * found.tokens_per_step
        notes.append(f"steps of {step_s:.2g} s, as the slowest worker takes them")
    if step_s is None:
        raise UsageError("How long an inner step takes is not known.", hint="Say it: --step-time 0.8s.")
    line = to_bytes_per_s(asked.link) if asked.link is not None else None
    if line is None and live is not None and math.isfinite(live.bytes_per_s):
        line = live.bytes_per_s
        notes.append(f"a line of {show_rate(_short(line))}, the most that the slowest worker's has carried so far")
    if line is None:
        line = own.max_upload or sizing.HOME_BYTES_PER_S
        notes.append(f"a line of {show_rate(line)}" + ("" if own.max_upload else ", as at home (--link)"))
    size_ = live.workers if live is not None and live.workers > 1 else sizing.SOME_WORKERS
    size_ = max(size_, swarm.run.min_workers) if asked.workers is None else asked.workers
    round_trip_s = sizing.HOME_ROUND_TRIP_S
    if asked.latency is not None:
        round_trip_s = seconds(asked.latency, "--latency")
    elif live is not None and math.isfinite(live.round_trip_s):
        round_trip_s = live.round_trip_s
        notes.append(f"{round_trip_s * 1e3:.3g} ms there and back, the median of the workers' links")
    total = sizing.number(asked.tokens) if asked.tokens is not None else 20.0 * found.parameters
    if total is None:
        raise UsageError(f"--tokens {asked.tokens} is no number.", hint="Write it as 2.7b, 500m or 1e9.")
    return Case(found, step_s, size_, line, round_trip_s, total), notes


def seconds(text: str, flag: str) -> float:
    """A time as people write it: 0.8s, 50ms, or 0.8.

    Raises:
        UsageError: it is none.
    """
    found = _SECONDS.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{flag} {text} is no time.", hint="Write it as 0.8s, 50ms or 2min.")
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def _show(case: "Case", notes: Sequence[str], settings: Settings, model: str | None, format: PlanFormat) -> int:
    from decentral.run import planning

    # Codecs and the like that are stated stay; of a method that is stated there is a row beside what is advised.
    stated = {key: value for key, value in settings.explicit.items() if key not in planning.DECIDED}
    choice = planning.choose(case, stated)
    file = _file(case, choice, settings, model)
    if format is PlanFormat.TOML:
        print(file, end="", flush=True)
        return ExitCode.OK
    costs = planning.compare(case)
    if any(key in planning.DECIDED for key in settings.explicit):
        costs.append(planning.cost_of(case, settings.swarm.method, "as configured"))
    if format is PlanFormat.JSON:
        print(json.dumps(_record(case, costs, choice), indent=2, allow_nan=False), flush=True)
        return ExitCode.OK
    screen = console(sys.stdout)
    screen.print(_heading(case))
    for note in notes:
        screen.print(f"  not given: {note}")
    screen.print(_table([*costs, dataclasses.replace(choice.cost, name="take this")]))
    print(
        f"\nto paste, or `--format toml > plan.toml` and `decentral worker --new --config plan.toml`:\n\n{file}", end=""
    )
    return ExitCode.OK


def _heading(case: "Case") -> str:
    found = case.size
    return (
        f"{amount(found.parameters)} parameters in {found.layers} layers; steps of {case.step_s:.2g} s and "
        f"{amount(found.tokens_per_step)} tokens; {case.workers} workers on {show_rate(_short(case.bytes_per_s))} each "
        f"way, {case.round_trip_s * 1e3:.3g} ms there and back; {amount(case.tokens)} tokens"
    )


def _table(costs: "Sequence[Cost]") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("steps a round", "sends a round", "memory", "computes", "95% needs", "time"):
        table.add_column(name, no_wrap=True, justify="right")
    for cost in costs:
        needs = cost.enough_bytes_per_s
        table.add_row(
            cost.name,
            f"{cost.inner_steps}",
            size(int(cost.sent_bytes)),
            size(int(cost.memory_bytes)),
            percent(cost.utilisation),
            show_rate(_short(needs)) if math.isfinite(needs) else "out of reach",
            age(cost.seconds),
        )
    return table


def _short(bytes_per_s: float) -> float:
    """With three digits."""
    return float(f"{8 * bytes_per_s:.3g}") / 8


def _record(case: "Case", costs: "Sequence[Cost]", choice: "Choice") -> Any:
    """For machines; what is not finite is ``None``."""
    rows, cost = [dataclasses.asdict(cost) for cost in costs], dataclasses.asdict(choice.cost)
    chosen = {"values": choice.values, "cost": cost, "why": choice.why}
    return finite({"schema_version": 1, "case": dataclasses.asdict(case), "rows": rows, "choice": chosen})


def _file(case: "Case", choice: "Choice", settings: Settings, model: str | None) -> str:
    """A configuration for ``--config``, with the reasons as comments."""
    values: dict[str, Any] = {key: value for key, value in settings.explicit.items() if key.startswith("method.")}
    values |= choice.values
    if model is not None and "task.factory" in settings.explicit:
        values |= {"task.factory": HF_TASK, "task.settings.model.name": model}
    lines = [_heading(case), *choice.why]
    comment = "\n".join(f"# {line}" for text in lines for line in textwrap.wrap(text, _WIDTH))
    return f"{comment}\n{as_toml(nested(values))}"

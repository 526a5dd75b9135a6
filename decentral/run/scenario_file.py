"""What a scenario's TOML file says: the configuration of a swarm, and the machines, lines and faults around it.

Here are keys, types, ranges and defaults, and the words for what is wrong; what becomes of them is ``run.simulation``.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BeforeValidator, Field

from decentral.config import rate
from decentral.config.schema import SwarmConfig, leaves
from decentral.config.section import Section
from decentral.config.settings import checked, known_keys, value_of
from decentral.config.words import did_you_mean
from decentral.errors import ConfigError
from decentral.sim.faults import Fault, Kind, Script

SHIPPED = Path(__file__).with_name("scenarios")
MOST_MACHINES = 4096

_S = TypeVar("_S", bound=Section)


def _line(value: Any) -> Any:
    """Bytes per second from what people write."""
    if not isinstance(value, str):
        return value
    try:
        return rate.to_bytes_per_s(value)
    except ValueError:
        return value


Rate = Annotated[float, BeforeValidator(_line), Field(ge=0, description="a rate such as 20mbit, or 0 for no limit")]
_Probability = Annotated[float, Field(ge=0, le=1)]


class ModelSection(Section):
    """What travels. Of a model that is not trained in truth its size; with ``train`` the task of the file."""

    parameters: int = Field(default=10_000_000, ge=1, le=10**13)
    layers: int = Field(default=12, ge=1, le=1000)
    tokens_per_step: int = Field(default=8192, ge=1, le=10**9)
    train: bool = False
    """Whether every machine builds the trainer of ``[task]`` and trains it in truth."""


class NetworkSection(Section):
    """The way between any two machines."""

    latency_s: float = Field(default=0.02, ge=0, le=60)
    jitter: float = Field(default=0.0, ge=0, le=3)
    loss: _Probability = 0.0


class MachinesSection(Section):
    """Machines of a kind."""

    name: str = "machine"
    count: int = Field(default=1, ge=1, le=MOST_MACHINES)
    step_s: float = Field(default=1.0, gt=0, le=86_400)
    spread: float = Field(default=0.0, ge=0, le=3)
    """Sigma of the log-normal factor by which their steps differ from machine to machine."""
    jitter: float = Field(default=0.0, ge=0, le=3)
    """The same from stretch to stretch."""
    up: Rate = 0.0
    down: Rate = 0.0
    region: str = ""
    leave_every_s: float = Field(default=0.0, ge=0, le=1e9)
    """One of them dies on average so long after it came; 0 for never."""
    back_after_s: float = Field(default=0.0, ge=0, le=1e9)
    """It is back so long after; 0 for never."""


class LinkSection(Section):
    """The way between two regions, or within one."""

    between: tuple[str, str] = Field(description='two names of regions, such as ["europe", "asia"]')
    latency_s: float = Field(default=0.02, ge=0, le=60)


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """All of it, checked."""

    name: str
    swarm: SwarmConfig
    model: ModelSection
    network: NetworkSection
    machines: tuple[MachinesSection, ...]
    links: tuple[LinkSection, ...]
    faults: Script
    explicit: Mapping[str, Any]
    """What was stated of the swarm, by dotted key."""

    @property
    def num_machines(self) -> int:
        """Of all kinds."""
        return sum(kind.count for kind in self.machines)


def shipped() -> dict[str, str]:
    """The scenarios that come along, by name, with the comment at their head."""
    found = {}
    for path in sorted(SHIPPED.glob("*.toml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
        found[path.stem] = " ".join(line.removeprefix("#").strip() for line in head)
    return found


def read(source: str, assignments: Sequence[str] = (), num_machines: int | None = None) -> ScenarioFile:
    """Read a scenario.

    Args:
        source: a file, or the name of one that comes along.
        assignments: ``a.b=c`` from ``--set``, in place of what the file says; not of its lists.
        num_machines: in place of the file's, in its proportions.

    Raises:
        ConfigError: there is no such file; an unknown key, or a value out of range: file, key and what it may be.
    """
    path = Path(source)
    if not path.is_file():
        path = SHIPPED / f"{source}.toml"
        if not path.is_file():
            names = ", ".join(shipped())
            raise ConfigError(f"There is no scenario {source}.", hint=f"Give a file, or one of {names}.")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"Cannot read {source}: {err.strerror or err}.") from err
    except ValueError as err:
        raise ConfigError(f"{source} is not valid TOML: {err}.") from err
    try:
        for assignment in assignments:
            _assign(tree, assignment)
        return _checked(path.stem, tree, num_machines)
    except ConfigError as err:
        raise ConfigError(f"{source}: {err.message}", hint=err.hint) from err


def _assign(tree: dict[str, Any], assignment: str) -> None:
    """``a.b=c``."""
    key, equals, text = assignment.partition("=")
    *sections, name = (part.strip() for part in key.split("."))
    if not equals or not sections or not name:
        raise ConfigError(f"--set {assignment!r} is not an assignment.", hint="Write it as network.latency_s=0.1.")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {section} is a list; edit a copy of the file.")
    node[name] = value_of(text)


def _checked(name: str, tree: Mapping[str, Any], num_machines: int | None) -> ScenarioFile:
    """Every key is known, every value in its range, and all goes together."""
    own = {"model": ModelSection, "network": NetworkSection}
    lists = {"machines": MachinesSection, "links": LinkSection, "faults": None}
    swarm_keys = [key for key in known_keys() if not key.startswith("worker.")]
    swarm: dict[str, Any] = {}
    for section, value in tree.items():
        if section not in own and section not in lists:
            stated = dict(leaves({section: value}))
            for key in stated:
                if key not in swarm_keys and not key.startswith("task.settings."):
                    raise ConfigError(f"unknown key {key!r}.", hint=did_you_mean(key, [*swarm_keys, *own, *lists]))
            swarm |= stated
    machines = tuple(
        _section(MachinesSection, each, f"machines[{number}].")
        for number, each in enumerate(_tables(tree, "machines"), 1)
    )
    if not machines:
        raise ConfigError("there are no machines.", hint="Say how many: [[machines]] with count = 8.")
    if num_machines is not None:
        machines = _so_many(machines, num_machines)
    made = ScenarioFile(
        name,
        checked(SwarmConfig, swarm),
        _section(ModelSection, tree.get("model", {}), "model."),
        _section(NetworkSection, tree.get("network", {}), "network."),
        machines,
        tuple(
            _section(LinkSection, each, f"links[{number}].") for number, each in enumerate(_tables(tree, "links"), 1)
        ),
        tuple(_fault(each, number) for number, each in enumerate(_tables(tree, "faults"), 1)),
        swarm,
    )
    _fits(made)
    return made


def _tables(tree: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = tree.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"{key} must be a list of tables.", hint=f"Write [[{key}]], with two brackets.")
    return value


def _section(kind: type[_S], values: Any, where: str) -> _S:
    """One table."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.removesuffix('.')} must be a table.")
    for key in values:
        if key not in kind.model_fields:
            raise ConfigError(f"unknown key {where + key!r}.", hint=did_you_mean(key, kind.model_fields))
    for key, field in kind.model_fields.items():
        if field.is_required() and key not in values:
            raise ConfigError(f"{where}{key} is missing: must be {field.description}.")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return checked(kind, tuples, where)


def _fault(values: Any, number: int) -> Fault:
    """One fault of a script (see docs/simulator.md)."""
    try:
        return msgspec.convert(values, Fault, strict=False)
    except (msgspec.ValidationError, ValueError) as err:
        kinds = ", ".join(kind.value for kind in Kind)
        raise ConfigError(
            f"faults[{number}]: {err}.", hint=f"A fault has a kind ({kinds}), at_s and machines."
        ) from err


def _so_many(machines: Sequence[MachinesSection], total: int) -> tuple[MachinesSection, ...]:
    """The same kinds in the same proportions, ``total`` machines in all; what is left over goes to the first ones."""
    if not 1 <= total <= MOST_MACHINES:
        raise ConfigError(f"--workers {total}: must be at least 1 and at most {MOST_MACHINES}.")
    before = sum(kind.count for kind in machines)
    counts = [kind.count * total // before for kind in machines]
    for index in range(total - sum(counts)):
        counts[index % len(counts)] += 1
    return tuple(
        kind.model_copy(update={"count": count}) for kind, count in zip(machines, counts, strict=True) if count
    )


def _fits(made: ScenarioFile) -> None:
    """What single values do not show.

    Raises:
        ConfigError: too many machines, links of regions without machines, faults of machines that there are not, or
            what is not simulated.
    """
    if not 2 <= made.num_machines <= MOST_MACHINES:
        raise ConfigError(f"there are {made.num_machines} machines: must be at least 2 and at most {MOST_MACHINES}.")
    regions = {kind.region for kind in made.machines if kind.region}
    for number, link in enumerate(made.links, 1):
        for region in link.between:
            if region not in regions:
                hint = did_you_mean(region, regions) or "Give machines a region."
                raise ConfigError(f"links[{number}].between names {region!r}, where no machine is.", hint=hint)
    for number, fault in enumerate(made.faults, 1):
        if any(machine >= made.num_machines for machine in fault.machines):
            raise ConfigError(
                f"faults[{number}].machines has {max(fault.machines)}: machines are counted from 0 to "
                f"{made.num_machines - 1}."
            )
    if made.swarm.pipeline.stages:
        raise ConfigError(
            f"pipeline.stages is {made.swarm.pipeline.stages}: models in stages are not simulated by a file.",
            hint="scripts/bench pipeline --virtual plays them.",
        )

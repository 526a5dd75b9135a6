"""What can be configured. ``SwarmConfig`` is the same for all workers of a run; ``WorkerConfig`` is this machine's own.

Here are names, types, ranges and defaults, those of the method in ``config.method`` and those of a pipeline in
``config.pipeline``; reading them from files and flags is ``config.settings``.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from decentral.config import interval, rate, rules
from decentral.config.method import MethodSection
from decentral.config.pipeline import STAGE, STAGE_IN_WORDS, PipelineSection
from decentral.config.section import Section
from decentral.errors import ConfigError

_NAME = "up to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit"
_FACTORY = r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$"
_PLACE = r"^(auto|(\S+:)?\d{1,5})?$"
_FACTORY_IN_WORDS = "the dotted name of a function, such as package.module:build, or empty"

#: How a machine takes its own in place of the swarm's.
_OWN = {
    "task.factory": " (for this machine alone: worker.task)",
    "data.paths": " (for this machine alone: worker.data, or --data)",
}

_Peer = Annotated[str, Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{30,100}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _max_upload(value: Any) -> Any:
    """Bytes per second from what people write; what is no rate at all is left to the check of types."""
    try:
        bytes_per_s = rate.to_bytes_per_s(value) if isinstance(value, str) else value
        return rate.check(bytes_per_s) if type(bytes_per_s) in (int, float) else value
    except ValueError as err:
        raise ValueError(f"worker.max_upload = {show(value)}: {err}") from err


def _checkpoint_every(value: Any) -> Any:
    """An interval as it was written, if it is one; 0 needs no quotes."""
    text = "0" if type(value) is int and value == 0 else value
    if isinstance(text, str):
        try:
            interval.parse(text)
        except ValueError as err:
            raise ValueError(f"worker.checkpoint_every = {show(value)}: {err}") from err
    return text


def _settings(value: Any, key: str = "task.settings") -> Any:
    """A task's settings by name, if JSON and TOML can both hold them and give them back as they are."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
                raise ValueError(f"{key} has the key {show(name)}: must be letters, digits and underscores")
        return {name: _settings(item, f"{key}.{name}") for name, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_settings(item, key) for item in value]
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{key} = {value}: must be text, a finite number, true or false, or a list or table of these")


def _stage(value: Any) -> Any:
    """A lone stage may be written as a number."""
    return str(value) if type(value) is int else value


class RunSection(Section):
    """What the run is called and how long it is."""

    name: str = Field(default="demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description=_NAME)
    seed: int = Field(default=0, ge=0, lt=2**31)
    rounds: int = Field(default=2000, ge=1, le=10_000_000)
    public: bool = False
    """Whether anybody may join who can reach a worker's port; else it takes the token in the address."""
    min_workers: int = Field(default=1, ge=1, le=4096)
    """The first step waits for so many workers, for two minutes at most; a pipeline waits for all its stages."""
    on_ruin: Literal["stop", "rollback"] = "stop"
    """When all that was learnt is lost: end with an exit code of its own, or go on from the last good anchor."""


class TaskSection(Section):
    """What is trained: ``factory`` is the dotted name of ``build(settings, seat) -> Trainer``.

    Empty where each worker brings a training loop of its own, or names its task itself.
    """

    factory: str = Field(default="decentral.workers.lm:build", pattern=_FACTORY, description=_FACTORY_IN_WORDS)
    settings: Annotated[dict[str, Any], AfterValidator(_settings)] = Field(default_factory=dict)


class DataSection(Section):
    """What is read. Paths are local to each machine; none stands for the task's default corpus."""

    paths: tuple[str, ...] = ()


class TimingSection(Section):
    """How long workers wait for each other. The waits within a round adapt to its measured length."""

    beat_s: Seconds = 1.5
    ttl_s: Seconds = 6.0
    min_patience_s: Seconds = 5.0
    patience_factor: float = Field(default=1.0, gt=0, le=100)
    max_patience_s: Seconds = 120.0
    transfer_timeout_s: Seconds = 60.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ttl_s < 2 * self.beat_s:
            raise ValueError(
                f"timing.ttl_s is {self.ttl_s:g}, which must be at least twice timing.beat_s ({self.beat_s:g}), "
                "else one lost message counts as a dead worker"
            )
        if self.max_patience_s < self.min_patience_s:
            raise ValueError(
                f"timing.max_patience_s is {self.max_patience_s:g}, "
                f"which must be at least timing.min_patience_s ({self.min_patience_s:g})"
            )
        return self


class SwarmConfig(Section):
    """The same for every worker of a run; a joiner fetches it from the swarm."""

    run: RunSection = RunSection()
    task: TaskSection = TaskSection()
    method: Annotated[MethodSection, AfterValidator(rules.check)] = MethodSection()
    pipeline: Annotated[PipelineSection, AfterValidator(rules.check_pipeline)] = PipelineSection()
    data: DataSection = DataSection()
    timing: TimingSection = TimingSection()
    eval_every_rounds: int = Field(default=10, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _outvotes_liars(self) -> Self:
        rules.check_liars(self.method, self.run.min_workers)
        return self

    @model_validator(mode="after")
    def _rolls_back_together(self) -> Self:
        if self.run.on_ruin == "rollback":
            rules.check_rollback(self.method, self.pipeline)
        return self

    @model_validator(mode="after")
    def _starts_somehow(self) -> Self:
        if self.pipeline.stages not in (0, "auto") and self.run.min_workers > 1:
            raise ValueError(
                f"run.min_workers is {self.run.min_workers}, but a pipeline begins when its stages have holders: leave "
                "it out, or set pipeline.replicas to how many each stage should have"
            )
        return self

    def to_json(self) -> str:
        """Canonical JSON: equal configurations give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A configuration from a peer; every key and value is checked.

        Raises:
            ConfigError: it is not one that this release can read.
        """
        try:
            return cls.model_validate_json(text)
        except ValueError as err:  # pydantic's ValidationError is one; its first line counts the problems
            problem = "; ".join(str(err).splitlines()[1:3]).strip() or str(err)
            raise ConfigError(
                f"The swarm's configuration cannot be read: {problem}",
                hint="Its founder may run another release of decentral: compare `decentral --version`.",
            ) from err


class WorkerConfig(Section):
    """This machine's own; nobody else needs to know."""

    port: int = Field(default=0, ge=0, le=65_535)
    """To listen on; 0 for any free one."""
    host: str = "0.0.0.0"
    """Address to listen on."""
    announce: str = ""
    """Address that others should use, if it differs (port forwarding); a host or ``host:port``."""
    identity: str = ""
    """Key file, made if it does not exist; empty for a new identity in ``out``."""
    relay: str = Field(
        default="", pattern=r"^(any|\d{1,5}(-\d{1,5})?)?$", description='"any", or ports such as 31400-31431'
    )
    """Ports to pass on what is for workers that nobody reaches otherwise; empty to do so for nobody."""
    device: str = Field(default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description="cpu, mps, cuda or cuda:N")
    inner: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: how this machine's processes train one model, each with all of it or with a shard."""
    threads: int = Field(default=0, ge=0, le=4096)
    """Torch's threads; 0 for its own choice."""
    data: tuple[str, ...] = ()
    """In place of the swarm's ``data.paths``."""
    task: str = Field(default="", pattern=_FACTORY, description=_FACTORY_IN_WORDS)
    """In place of the swarm's ``task.factory``."""
    model: str = ""
    """Folder or name of weights here, in place of those that the swarm's task names."""
    tokenizer: str = ""
    """Folder or name of a tokenizer here, likewise."""
    dataset: str = ""
    """Data sets of the swarm's task that were named here: of others no folder is opened."""
    allow_download: bool = False
    """Whether weights, tokenizer and data sets that the swarm names may be downloaded to this machine."""
    max_upload: Annotated[float, BeforeValidator(_max_upload)] = Field(default=0.0, description=rate.RATE)
    """Most bytes a second that this worker sends; 0 for no limit."""
    stage: Annotated[str, BeforeValidator(_stage)] = Field(default="", pattern=STAGE, description=STAGE_IN_WORDS)
    """Of a pipeline: what this worker insists on holding; empty for what is needed most."""
    out: str = ""
    """Folder for weights, journal and identity."""
    checkpoint_every: Annotated[str, BeforeValidator(_checkpoint_every)] = Field(
        default="1min", description=interval.INTERVAL
    )
    """How often the worker's whole state is written to ``out``; "0" for only at the end."""
    keep: int = Field(default=3, ge=1, le=100_000)
    """So many of the newest checkpoints are kept, and the best one besides."""
    on_preempt: Literal["save", "leave"] = "save"
    """At a notice that this machine may be taken away (SIGUSR1, ``preempt_notice``): save and go on, or leave then."""
    preempt_notice: str = ""
    """A file that says so by appearing; empty for none."""
    protect: int = Field(default=0, ge=0, le=16)
    """So many other workers keep in memory what this one alone has; 0 for none. Of a pipeline, this one keeps on its
    disk the checkpoints of so many stages after its own."""
    guard_bytes: int = Field(default=1 << 30, ge=0, le=1 << 50)
    """Of memory, for what this worker keeps for others; of a pipeline, of each stage that it keeps."""
    journal_bytes: int = Field(default=64_000_000, ge=100_000, le=1 << 40)
    """Of the journal; the oldest events are thrown away."""
    trust_config: bool = False
    """Whether to import the task that the swarm's configuration names, though nobody has named it on this machine."""
    allow: tuple[_Peer, ...] = ()
    """If there are any, this worker has to do with these peers alone."""
    deny: tuple[_Peer, ...] = ()
    """This worker has nothing to do with these peers."""
    dashboard: str = Field(default="", pattern=_PLACE, description="PORT, HOST:PORT or auto")
    """Where the worker serves a page of its swarm; empty for nowhere, ``auto`` for the usual port of loopback."""
    metrics: str = Field(default="", pattern=r"^((\S+:)?\d{1,5})?$", description="PORT or HOST:PORT")
    """Where the worker serves metrics for Prometheus; empty for nowhere, without a host on loopback."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Experiment loggers that the worker's figures and the swarm's are told."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


def flatten(model: BaseModel) -> dict[str, Any]:
    """All values of a configuration by dotted key, in order; lists as tuples."""
    return dict(leaves(model.model_dump()))


def diff(here: Mapping[str, Any], there: SwarmConfig) -> list[str]:
    """One line for each key whose value here is not the swarm's, such as ``run.seed: 1 here, 0 in the swarm``.

    Args:
        here: values by dotted key; keys that are left out are not compared.
        there: what the swarm trains.
    """
    theirs = flatten(there)
    return [
        f"{key}: {show(value)} here, {show(theirs[key]) if key in theirs else 'not set'} in the swarm"
        f"{_OWN.get(key, '')}"
        for key, value in here.items()
        if key not in theirs or theirs[key] != value
    ]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of nested mappings by dotted key; hyphens in keys become underscores, lists tuples.

    An empty mapping counts as a value.
    """
    for name, value in tree.items():
        key = f"{prefix}{name}".replace("-", "_")
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, tuple(value) if isinstance(value, list) else value


def show(value: Any) -> str:
    """A value nearly as TOML would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)

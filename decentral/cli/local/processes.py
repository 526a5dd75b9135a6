"""How many processes a local run has, and what each of them is for. Starts none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decentral.config.pipeline import PipelineSection
from decentral.errors import UsageError

_DEFAULT_WORKERS = 4
_MOST = 64
#: Of a core, for one message between stages: packing, sending, unpacking. Measured in processor time with the default
#: model in four stages, of which it is three quarters.
_MESSAGE_S = 0.012


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a local run."""

    size: int
    """Of all, spares included."""
    num_stages: int = 0
    """Beside the head; 0 without a pipeline."""
    num_replicas: int = 1
    """Of every stage and the head."""
    num_microbatches: int = 1
    """Of a head's batch."""
    num_spares: int = 0
    changes: bool = False
    """Whether there are as many stages as the run finds best; ``num_stages`` are the most that these processes hold."""

    @property
    def num_streams(self) -> int:
        """How many draw data: the heads, or all workers."""
        return self.num_replicas if self.num_stages else self.size

    def describe(self) -> str:
        """All of them in words."""
        if not self.num_stages:
            return f"{self.size} workers"
        text = f"a head and {self.num_stages} stages" + (f", {self.num_replicas} of each" * (self.num_replicas > 1))
        if self.changes:
            text = f"a head and up to {self.num_stages} stages"
        return f"{self.size} workers: {text}" + (f", and {self.num_spares} spares" * (self.num_spares > 0))

    @property
    def values(self) -> Mapping[str, Any]:
        """What the configuration has to say of them, by dotted key."""
        if self.changes:
            return {"run.min_workers": self.size - self.num_spares}
        if self.num_stages:
            return {"pipeline.replicas": self.num_replicas}
        return {"run.min_workers": self.size}

    def stage(self, index: int) -> str:
        """What process ``index`` insists on: the last ones are spares, the others are given what is needed most."""
        return "spare" if index >= self.size - self.num_spares else ""

    def step_s(self, alone_s: float, threads: int, cores: int, *, on_cpu: bool) -> float:
        """How long an inner step takes.

        Without a pipeline all workers step at once, and those that find no core wait. In a pipeline the heads' batches
        share the cores: each is as much work as a step of the whole model and a message for every micro-batch, there
        and back, over each of the hops; done by as many processes at a time as there are cores for.

        Args:
            alone_s: of the whole model, in one process that has ``threads`` for itself.
            threads: of each process.
            cores: of the machine.
            on_cpu: whether models compute there; else they take turns on one device.
        """
        if not self.num_stages:
            return alone_s * (max(1.0, self.size * threads / cores) if on_cpu else self.size)
        at_once = max(1.0, min(self.size - self.num_spares, cores / threads)) if on_cpu else 1.0
        messages_s = 2 * self.num_microbatches * (self.num_stages + 1) * _MESSAGE_S
        return self.num_replicas * (alone_s + messages_s) / at_once


def processes_for(pipeline: PipelineSection, workers: int | None, spares: int | None) -> Processes:
    """The processes that a configuration and the flags ask for.

    Args:
        pipeline: of the run.
        workers: that ``--workers`` asks for, if it was given.
        spares: as many as ``--spares`` says, if it was given.

    Raises:
        UsageError: flags that do not go together, or too many processes.
    """
    if not pipeline.stages:
        if spares:
            raise UsageError(
                "--spares is for a pipeline, and there is none: every worker has the whole model.",
                hint="Cut the model with --stages, or leave --spares out.",
            )
        return Processes(workers or _DEFAULT_WORKERS)
    if pipeline.stages == "auto":
        return _changing(pipeline, workers or _DEFAULT_WORKERS, spares or 0)
    num_replicas = max(1, pipeline.replicas)
    size = (pipeline.stages + 1) * num_replicas + (spares or 0)
    if workers is not None:
        raise UsageError(
            f"--workers and a pipeline exclude each other: {pipeline.stages} stages and a head take "
            f"{size - (spares or 0)} processes, one for each replica.",
            hint="Leave --workers out; for more take --replicas, or --spares.",
        )
    if size > _MOST:
        raise UsageError(
            f"{pipeline.stages} stages and a head, {num_replicas} of each, and {spares or 0} spares are {size} "
            f"processes; at most {_MOST} are started.",
            hint="Take fewer --stages, --replicas or --spares.",
        )
    return Processes(size, pipeline.stages, num_replicas, pipeline.microbatches, spares or 0)


def _changing(pipeline: PipelineSection, workers: int, spares: int) -> Processes:
    """A head and machines that share the blocks."""
    if workers < 2:
        raise UsageError(
            "--stages auto takes two workers or more: a head, and one that holds the blocks.",
            hint="Give more --workers, or leave --stages out.",
        )
    if workers + spares > _MOST:
        raise UsageError(
            f"{workers} workers and {spares} spares are more than the {_MOST} that are started at most.",
            hint="Take fewer --workers or --spares.",
        )
    return Processes(workers + spares, workers - 1, 1, pipeline.microbatches, spares, changes=True)

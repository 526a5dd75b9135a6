"""How many processes a local run has, and what each of them is for. Starts none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decentral.cli.pipeline import PipelineSection
from decentral.errors import UsageError

_DEFAULT_WORKERS = 4
_MOST = 64
#: Of a pipeline's step on the same cores, over that of the whole model in one process: activations are packed, sent and
#: unpacked, stages run small batches, and wait for each other. Measured with the default model in two to four stages.
_PIPELINE_OVERHEAD = 1.5


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a local run."""

    size: int
    """Of all, spares included."""
    num_stages: int = 0
    """Beside the head; 0 without a pipeline."""
    num_replicas: int = 1
    """Of every stage and the head."""
    num_spares: int = 0

    @property
    def num_streams(self) -> int:
        """How many draw data: the heads, or all workers."""
        return self.num_replicas if self.num_stages else self.size

    def describe(self) -> str:
        """All of them in words."""
        if not self.num_stages:
            return f"{self.size} workers"
        text = f"a head and {self.num_stages} stages" + (f", {self.num_replicas} of each" * (self.num_replicas > 1))
        return f"{self.size} workers: {text}" + (f", and {self.num_spares} spares" * (self.num_spares > 0))

    @property
    def values(self) -> Mapping[str, Any]:
        """What the configuration has to say of them, by dotted key."""
        if self.num_stages:
            return {"pipeline.replicas": self.num_replicas}
        return {"run.min_workers": self.size}

    def stage(self, index: int) -> str:
        """What process ``index`` insists on: the last ones are spares, the others are given what is needed most."""
        return "spare" if index >= self.size - self.num_spares else ""

    def crowding(self, threads: int, cores: int, *, on_cpu: bool) -> float:
        """How much longer a step takes than in one process that has ``threads`` for itself.

        Without a pipeline all workers step at once, and those that find no core wait. In a pipeline the heads' batches
        share the cores: each is as much work as a step of the whole model, done by as many at a time as there are
        cores and stages for.
        """
        if not self.num_stages:
            return max(1.0, self.size * threads / cores) if on_cpu else float(self.size)
        at_once = max(1.0, min(self.size - self.num_spares, cores / threads)) if on_cpu else 1.0
        return _PIPELINE_OVERHEAD * self.num_replicas / at_once


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
    return Processes(size, pipeline.stages, num_replicas, spares or 0)

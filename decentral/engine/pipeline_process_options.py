"""What the composition root hands to a process of a pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from decentral.engine.disks import Store
from decentral.engine.options import RunOptions
from decentral.monitor.journal import Journal
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.placement import CutInForce
from decentral.ports.clock import Clock
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.transport import Transport
from decentral.schedule.every import Every
from decentral.swarm.timing import Timing


@dataclass(frozen=True, slots=True)
class PipelineProcessOptions:
    """Equal on all workers of a run."""

    run_id: str
    config: bytes
    """The swarm's configuration as it is handed to joiners."""
    pipeline: PipelineOptions
    of_stage: Callable[[int, Mapping[str, Tensor]], RunOptions]
    """Options of the swarm of a stage's replicas; with the stage's parameters."""
    timing: Timing


@dataclass(frozen=True, slots=True)
class PipelineProcessParts:
    """The ports and the user's model, this worker's own."""

    transport: Transport
    directory: Directory
    clock: Clock
    identity: Identity
    journal: Journal
    stage_journal: Callable[[int], Journal]
    """Makes the journal of a stage's worker."""
    blocks: ModelBlocks
    store: Store
    cut: CutInForce
    """As the run is cut before its head changes that; this process changes it."""
    save_every: Every = field(default_factory=Every)
    """How often stages are saved, at steps common to all; as often a spare fetches what others have saved."""
    protect: int = 0
    """Of so many stages after its own a holder keeps what their holders have saved."""
    guard_bytes: int = 1 << 30
    """So many at most of each stage that is kept for others."""
    wanted: tuple[int, ...] | str = ()
    """Stages that its user insists on, or ``SPARE``; empty for what is needed most."""
    note: Callable[[], str] = lambda: ""
    """As in ``Parts``."""
    device: str = "cpu"

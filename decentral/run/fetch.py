"""Replicas of a living swarm: each worker's anchor, downloaded as a joiner would."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from decentral.adapters.clock import RealClock
from decentral.config.resolve import on_machine
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import UnreachableError, UsageError
from decentral.exchange.gossip.options import GossipOptions
from decentral.monitor.figures import size
from decentral.ports.clock import Clock
from decentral.ports.trainer import Trainer
from decentral.ports.transport import Transport
from decentral.run.asking import asking
from decentral.run.options import run_options
from decentral.run.tasks import build_trainer
from decentral.state.average import Replica
from decentral.state.download.downloader import Download, Downloader
from decentral.swarm.presence import Presence, State
from decentral.swarm.timing import lifetime_s
from decentral.tensors.layout import Layout
from decentral.types import short_id

#: Probe, node and hello together; then each call of a download has a deadline of its own.
_ASK_TIMEOUT_S = 15.0
#: Downloads at a time, so that a slow one does not hold up all and our own line is shared by few.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """A living swarm's configuration and replicas."""

    swarm: SwarmConfig
    """As this machine takes it."""
    trainer: Trainer
    """Of the swarm's task, on this machine."""
    replicas: list[Replica]


async def fetch(addresses: Sequence[str], own: WorkerConfig, say: Callable[[str], None]) -> Fetched:
    """Ask the first worker of ``addresses`` that answers who is in its swarm, and download from all of them.

    Args:
        addresses: of workers of one swarm; tried in order.
        own: what this machine has of its own: its device, its data.
        say: told what is downloaded, and who could not be reached.

    Raises:
        UsageError: it is a pipeline.
        DecentralError: nobody can be asked, the task cannot be built here, or nobody gives its weights.
    """
    async with asking(addresses, option="SOURCE", timeout_s=_ASK_TIMEOUT_S) as (node, hello):
        swarm = SwarmConfig.from_json(hello.config)
        if swarm.pipeline.stages:
            raise UsageError(
                f"{hello.run_id} is a pipeline, whose stages cannot be fetched from its workers.",
                hint="Copy stage-*/model.safetensors of its workers to this machine and give them to export.",
            )
        here = await asyncio.to_thread(on_machine, swarm, own)
        trainer = await asyncio.to_thread(build_trainer, here, own, 0)
        with contextlib.closing(RealClock()) as clock:
            replicas = await fetch_replicas(
                node.transport, clock, hello.workers, hello.run_id, swarm, trainer.parameters(), say
            )
    return Fetched(here, trainer, replicas)


async def fetch_replicas(
    transport: Transport,
    clock: Clock,
    workers: Iterable[tuple[Presence, float]],
    run_id: str,
    swarm: SwarmConfig,
    parameters: Mapping[str, Tensor],
    say: Callable[[str], None],
) -> list[Replica]:
    """Download the anchor of every live worker; of one if they all have the same. In order of peer id.

    Args:
        transport: to the workers.
        clock: of the downloads.
        workers: their records, each with its age in seconds.
        run_id: of the run.
        swarm: its configuration.
        parameters: of the model; only names and shapes are read.
        say: told what is downloaded, and who could not be reached.

    Raises:
        UnreachableError: nobody gives its weights.
    """
    known = list(workers)
    life_s = lifetime_s(swarm.timing.ttl_s, len(known))
    live = [presence for presence, age_s in known if age_s < life_s]
    donors = [presence for presence in live if presence.state != State.JOINING]
    options = run_options(swarm, run_id, parameters)
    layout = Layout.of(parameters, options.plan.num_fragments, options.pattern)
    numels = [layout.numel(fragment) for fragment in range(layout.num_fragments)]
    cut = (layout.signature, numels, options.rule.num_buffers)
    each_bytes = 4 * layout.total_numel * (1 + options.rule.num_buffers)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def from_one_of(group: Sequence[Presence]) -> Replica | None:
        async with gate:
            downloader = Downloader(transport, *cut, options.timing, clock)
            download = await downloader.fetch([presence.peer for presence in group])
        if isinstance(download, Download):
            return _replica(download, run_id, layout)
        say(f"left out: {download}")
        return None

    if not isinstance(options.mixing, GossipOptions):
        groups = [_by_agreement(donors)]
        say(f"downloading {size(each_bytes)} from {len(donors)} workers: by all-reduce all hold the same")
    else:
        groups = [[presence] for presence in donors]
        say(f"downloading {size(each_bytes)} from each of {len(donors)} workers")
    fetched = await asyncio.gather(*(from_one_of(group) for group in groups))
    replicas = [replica for replica in fetched if replica is not None]
    if not replicas:
        raise UnreachableError(
            f"None of the {len(live)} live workers of {run_id} gave its weights.",
            hint="`decentral status ADDR` shows who is in it.",
        )
    return replicas


def _by_agreement(donors: Sequence[Presence]) -> list[Presence]:
    """Those whose anchor most hold first, and among them those furthest in the run."""
    held = Counter(presence.digest for presence in donors)
    return sorted(donors, key=lambda presence: (-held[presence.digest], -presence.round))


def _replica(download: Download, run_id: str, layout: Layout) -> Replica:
    snapshot = download.snapshot
    weights: dict[str, Tensor] = {}
    for fragment, state in enumerate(snapshot.fragments):
        weights |= layout.scatter(state.anchor_N, fragment)
    return Replica(short_id(download.donor), run_id, min(snapshot.rounds), lambda: weights, snapshot.name)

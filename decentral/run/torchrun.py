"""``decentral worker`` under torchrun: its processes are one worker (``ranks``), which rank 0 brings into the swarm.

What the command line says counts on rank 0, which tells the others.
"""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from decentral.config.resolve import on_machine
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError, ExitCode
from decentral.ports.trainer import Trainer
from decentral.run.connect import CONNECT_S, connect
from decentral.run.connection import Connection, Start
from decentral.run.joint import JointSwarm
from decentral.run.logs import install
from decentral.run.network import NetworkThread
from decentral.run.opening import take_part
from decentral.run.ranks import Ranks
from decentral.run.rows import SwarmClaims
from decentral.run.spread import SpreadModel
from decentral.run.stop import Stop
from decentral.run.swarm import Swarm
from decentral.run.tasks import Guarded, build_trainer, description_of, publisher_of
from decentral.run.worker import check_end, heed, train

_log = logging.getLogger(__name__)


def run_ranks(start: Start | None, announce_join: Callable[[str], None], stop: Stop) -> int:
    """Run one rank of a worker to its end; on the thread that trains.

    Args:
        start: of the worker, as for ``run_worker``; on rank 0 alone.
        announce_join: see there, as for ``stop``; rank 0 uses them.
        stop: see above.

    Raises:
        DecentralError: see ``run_worker``; and what another rank failed with.
    """
    told = install(start.own.log_level, start.own.log_format) if start else install("warning", "text")
    with ExitStack() as resources:
        stop.then(lambda: os._exit(ExitCode.INTERRUPTED), preempted=lambda: None)  # others may not come
        _come_together()
        resources.callback(dist.destroy_process_group)
        ranks, links, claims = Ranks.form(), list[tuple[NetworkThread, Connection]](), SwarmClaims()

        def connected() -> tuple[str, str, int, bool]:
            assert start is not None
            network = NetworkThread()
            resources.callback(network.close)
            connection = network.call(connect(start), timeout_s=CONNECT_S)
            links.append((network, connection))
            if connection.swarm.pipeline.stages:
                raise ConfigError(
                    f"{connection.run_id} trains a model in stages, and each worker of it is one process.",
                    hint="Start `decentral worker` once for each device, without torchrun.",
                )
            founding = not connection.peers and not connection.is_back
            return connection.swarm.to_json(), start.own.model_dump_json(), connection.stream_seed, founding

        swarm_text, own_text, stream_seed, founding = ranks.first(connected if start else None)
        swarm, own = SwarmConfig.from_json(swarm_text), _of_rank(WorkerConfig.model_validate_json(own_text))
        if own.threads:
            torch.set_num_threads(own.threads)
        made = list[Trainer]()
        here = on_machine(swarm, own)
        build = partial(build_trainer, here, own, stream_seed, founding=founding, claims=claims)
        ranks.all_do(lambda: made.append(build(rank=ranks.rank, num_ranks=ranks.size)))
        ranks.first((lambda: _say(made[0])) if start else None)

        def open_(model: SpreadModel, idle: Callable[[], None]) -> Swarm:
            network, connection = links[0]
            return take_part(connection, network, model, told, publisher_of(here, own), idle, claims)

        with JointSwarm(ranks, SpreadModel(Guarded(made[0]), ranks), open_ if start else None) as member:
            stop.then(lambda: None, preempted=lambda: None)
            if start is not None:
                announce_join(member.address)
                heed(stop, member, links[0][0], own.on_preempt)
            train(member, made[0])
        check_end(member)
    return ExitCode.OK


def _say(trainer: Trainer) -> None:
    for line in description_of(trainer).splitlines():
        _log.info("%s", line)


def _come_together() -> None:
    """Be in a process group with the others that torchrun has started at this attempt.

    Its store may still have what those of earlier attempts have said of themselves.
    """
    store, rank, size = next(rendezvous("env://"))
    fresh = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)


def _of_rank(own: WorkerConfig) -> WorkerConfig:
    """With the device that torchrun has for this process."""
    if own.device != "cuda":
        return own
    index = int(os.environ["LOCAL_RANK"])
    if index < torch.cuda.device_count():
        torch.cuda.set_device(index)
    return own.model_copy(update={"device": f"cuda:{index}"})

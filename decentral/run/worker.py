"""``decentral worker``: a training loop around a task's trainer, which takes part in a swarm as any other loop does.

A worker of a pipeline has no loop of its own: its steps are the heads' (``pipeline_process``).
"""

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import torch

from decentral.adapters.clock import RealClock
from decentral.config.resolve import on_machine
from decentral.errors import DecentralError, ExitCode, ReportError, TrainerError
from decentral.monitor.history import HistoryJournal
from decentral.monitor.journal import FanOut
from decentral.ports.trainer import StepReport, Trainer
from decentral.run.acquaintances import Acquaintances
from decentral.run.connect import CONNECT_S, connect
from decentral.run.connection import Connection, Start
from decentral.run.logs import LogJournal, install
from decentral.run.network import NetworkThread
from decentral.run.opening import take_part
from decentral.run.preempt import save_at_once
from decentral.run.ranks import gone, is_lost
from decentral.run.rows import SwarmClaims
from decentral.run.saving import open_journal
from decentral.run.stop import Stop
from decentral.run.swarm import Swarm
from decentral.run.tasks import build_trainer, description_of, publisher_of
from decentral.run.watch import begun, watch

if TYPE_CHECKING:
    from decentral.engine.pipeline_process import PipelineProcess

_log = logging.getLogger(__name__)
#: After a signal to stop, a trainer that does not come back from its step is given up after this time.
_FORCE_S = 15.0
#: Between two looks at what a worker waits for.
_TELL_S = 1.0


def run_worker(start: Start, announce_join: Callable[[str], None], stop: Stop) -> int:
    """Run one worker to its end; on the thread that trains.

    Args:
        start: how it comes into its run; it has a folder.
        announce_join: told the address that others can join.
        stop: asked when the worker should leave, and told when its machine may be taken away.

    Returns:
        The exit code.

    Raises:
        DecentralError: see ``connect`` and ``take_part``; and whatever put this worker out of the swarm.
        DiskError: it ended well, and its last weights are not on its disk.
        TrainerError: a fault of the task's.
    """
    own = start.own
    told = install(own.log_level, own.log_format)
    if own.threads:
        torch.set_num_threads(own.threads)
    network, claims = NetworkThread(), SwarmClaims()
    try:
        connection = network.call(connect(start), timeout_s=CONNECT_S)
        if connection.swarm.pipeline.stages:
            return network.submit(_run_process(connection, told, announce_join, stop)).result()
        try:
            founding = not connection.peers and not connection.is_back
            here = on_machine(connection.swarm, own)
            trainer = build_trainer(here, own, connection.stream_seed, founding=founding, claims=claims)
            publish = publisher_of(here, own)
            for line in description_of(trainer).splitlines():
                _log.info("%s", line)
        except BaseException:
            network.call(connection.node.close(), timeout_s=CONNECT_S)
            raise
        with take_part(connection, network, trainer, told, publish, claims=claims) as member:
            announce_join(member.address)
            heed(stop, member, network, own.on_preempt)
            train(member, trainer)
        check_end(member)
        return ExitCode.OK
    finally:
        network.close()


def heed(stop: Stop, member: Swarm, network: NetworkThread, on_preempt: str) -> None:
    """Do what is wished of a worker that trains: leave, or save at once.

    Args:
        stop: who wishes.
        member: the worker.
        network: its thread.
        on_preempt: ``save`` or ``leave``, see ``WorkerConfig``.
    """
    leave = functools.partial(_ask_to_stop, member, network)
    then = leave if on_preempt == "leave" else None
    stop.then(leave, preempted=lambda: network.submit(save_at_once(member.save_now, then)))


def check_end(member: Swarm) -> None:
    """Raise what is wrong with a worker that has ended.

    Raises:
        Exception: what put it out of the swarm, or kept its weights from its disk.
    """
    if member.problem is not None:
        raise member.problem
    if member.unsaved is not None:
        raise member.unsaved


def train(member: Swarm, trainer: Trainer) -> None:
    """The loop: inner steps until the run is over, or this worker is out of the swarm.

    Raises:
        TrainerError: the trainer failed.
        RankError: so did another process of this worker, which it waited for.
        ReportError: it reported what nobody can use.
    """
    while not member.ended:
        step = member.global_step
        try:
            report = trainer.train_steps(step, 1)
        except StopIteration:
            _log.warning("the data is over at step %d: leaves", step)
            return
        except DecentralError:
            raise
        except Exception as err:
            if member.num_ranks > 1 and is_lost(err):
                raise gone(err) from err
            raise TrainerError(err, f"taking inner step {step}") from err
        if not isinstance(report, StepReport):
            raise ReportError("the report of train_steps", report, "a StepReport")
        member.step(loss=report.loss, tokens=report.tokens, grad_norm=report.grad_norm, data_s=report.data_s)


def _ask_to_stop(member: Swarm, network: NetworkThread) -> None:
    """Have the worker leave; a trainer that hangs does not keep the process alive for ever."""
    member.ask_to_stop()

    def force() -> None:
        if member.leaving:
            return
        print("error: The trainer did not come back from its step; left it there.", file=sys.stderr, flush=True)
        os._exit(ExitCode.TRAINER)

    network.call_later(_FORCE_S, force)


async def _run_process(
    connection: Connection, told: LogJournal, announce_join: Callable[[str], None], stop: Stop
) -> int:
    """A worker of a pipeline, to its end."""
    from decentral.run.pipeline_process import make_pipeline_process

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as resources:
        resources.push_async_callback(connection.node.close)
        clock = RealClock()
        resources.callback(clock.close)
        history = await asyncio.to_thread(begun, connection)
        shown = HistoryJournal(history, clock.wall, connection.node.identity.peer_id)
        journal = open_journal(connection, clock, FanOut(told, shown), resources)
        process, check_disk = await clock.run(lambda: make_pipeline_process(connection, clock, journal))
        leave = functools.partial(loop.call_soon_threadsafe, stopped.set)
        on_preempt = leave if connection.own.on_preempt == "leave" else None
        at_once = functools.partial(save_at_once, process.save_now, on_preempt)
        stop.then(leave, preempted=lambda: asyncio.run_coroutine_threadsafe(at_once(), loop))
        await watch(connection, process.membership, history, resources)
        acquaintances = Acquaintances(connection, process.membership, clock)
        if connection.is_back:
            telling = asyncio.create_task(_tell(process))
            try:
                await process.resume(acquaintances.known)
            finally:
                telling.cancel()
        else:
            await (process.join(connection.peers) if connection.peers else process.found())
        acquaintances.begin(resources)
        announce_join(connection.address)
        await connection.node.while_alive(process.run(stopped))
        check_disk()
    return ExitCode.OK


async def _tell(process: "PipelineProcess") -> None:
    """Say what a worker waits for that comes back."""
    told = ""
    while True:
        if process.waits_for and process.waits_for != told:
            told = process.waits_for
            _log.info("waits: %s", told)
        await asyncio.sleep(_TELL_S)

"""The composition root: the only place where configuration, adapters and the engine meet.

Whatever is heavy (torch, and what imports it) is imported where a worker starts, so that ``status`` stays light.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from decentral import PROTOCOL, __version__
from decentral.adapters.address import parse_address
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.probe import probe
from decentral.config.pipeline import check_joiner
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.config.settings import import_task
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import DecentralError, ExitCode, MismatchError, UnreachableError, UsageError
from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.run.folder import CONFIG, IDENTITY, JOURNAL, MODEL, RESIDUAL, whole_file
from decentral.run.options import run_options, seat_of
from decentral.types import PeerId

if TYPE_CHECKING:  # torch: see above
    from torch import Tensor

    from decentral.engine.options import Outcome
    from decentral.engine.worker import Worker
    from decentral.monitor.journal import Journal
    from decentral.ports.clock import Clock
    from decentral.ports.trainer import Trainer

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result", covariant=True)
_HELLO_TIMEOUT_S = 10.0


class _Member(Protocol[_Result]):
    """A worker of either kind: with the whole model, or with stages of it."""

    async def found(self) -> None: ...

    async def join(self, peers: Sequence[PeerId]) -> None: ...

    async def run(self, stop: asyncio.Event) -> _Result: ...


async def ask_status(addresses: Sequence[str], *, timeout_s: float) -> StatusReport:
    """Ask the first worker of ``addresses`` that answers about its swarm.

    Raises:
        DecentralError: nobody can be asked; the error of the last address.
    """
    async with asking(addresses, option="ADDR", timeout_s=timeout_s) as (_, hello):
        return _report(hello)


async def follow(addresses: Sequence[str], *, every_s: float) -> AsyncGenerator[StatusReport, None]:
    """Ask for a swarm's status again and again, over one node as long as the worker that is asked lives; never ends.

    Args:
        addresses: of workers of one swarm, tried in order; may grow meanwhile.
        every_s: between an answer and the next question.
    """
    while True:
        with contextlib.suppress(DecentralError):
            async with asking(addresses, option="ADDR", timeout_s=_HELLO_TIMEOUT_S) as (node, hello):
                while True:
                    yield _report(hello)
                    await asyncio.sleep(every_s)
                    hello = await ask_hello(
                        node.transport, hello.peer, node.identity.verify, timeout_s=_HELLO_TIMEOUT_S
                    )
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def asking(addresses: Sequence[str], *, option: str, timeout_s: float) -> AsyncIterator[tuple[Node, Hello]]:
    """A node that only asks, and what the first worker of ``addresses`` that answers says of its swarm.

    Args:
        addresses: tried in order.
        option: what they were given to, for the messages.
        timeout_s: until the answer is there.

    Raises:
        DecentralError: nobody can be asked; the error of the last address.
    """
    until = asyncio.get_running_loop().time() + timeout_s

    def left_s() -> float:
        return max(0.2, until - asyncio.get_running_loop().time())

    address, peer = await _find(addresses, option=option, timeout_s=left_s())
    async with _node(NodeOptions(initial_peers=(address,), asker=True)) as node:
        yield node, await ask_hello(node.transport, peer, node.identity.verify, timeout_s=left_s())


async def run_worker(
    swarm: SwarmConfig | None,
    own: WorkerConfig,
    join: Sequence[str],
    explicit: Mapping[str, Any],
    announce_join: Callable[[str], None],
    stop: asyncio.Event,
) -> int:
    """Run one worker to its end.

    Args:
        swarm: the run's configuration when founding; ``None`` when joining.
        own: this machine's configuration; ``out`` is an existing folder.
        join: addresses of workers to join; empty when founding.
        explicit: what the user set, by dotted key; must not contradict the swarm's configuration.
        announce_join: told the address that others can join.
        stop: set when the worker should leave.

    Returns:
        The exit code.
    """
    out = Path(own.out)
    initial, peers = [], []
    if join:
        address, peer = await _find(join, option="--join", timeout_s=10.0)
        initial, peers = [address], [peer]
    options = NodeOptions(
        identity_path=Path(own.identity) if own.identity else out / IDENTITY,
        host=own.host,
        port=own.port,
        announce=(_announced(own),) if own.announce else (),
        initial_peers=tuple(initial),
        max_upload_bytes_per_s=own.max_upload or None,
    )
    async with _node(options) as node:
        if swarm is None:
            hello = await ask_hello(node.transport, peers[0], node.identity.verify, timeout_s=_HELLO_TIMEOUT_S)
            swarm = _joined_config(hello, explicit)
            check_joiner(own.stage, swarm.pipeline.stages)
            run_id = hello.run_id
        else:
            # Not of the identity: a run founded anew under it is another one, and nobody owes it residuals.
            run_id = f"{swarm.run.name}-{secrets.token_hex(4)}"
        return await _work(node, swarm, own, run_id, peers, announce_join, stop)


async def _work(
    node: Node,
    swarm: SwarmConfig,
    own: WorkerConfig,
    run_id: str,
    peers: Sequence[PeerId],
    announce_join: Callable[[str], None],
    stop: asyncio.Event,
) -> int:
    """Build the worker on an open node and let it train."""
    import torch

    from decentral.adapters.clock import RealClock
    from decentral.monitor.events import Started
    from decentral.monitor.journal import FanOut, JsonLinesJournal
    from decentral.run.logs import install

    out = Path(own.out)
    if own.threads:
        torch.set_num_threads(own.threads)
    clock = RealClock()
    told = install(own.log_level, own.log_format)
    lines = JsonLinesJournal(out / JOURNAL, clock.wall)
    journal = FanOut(lines, told)
    try:
        journal.record(Started(run_id, node.identity.peer_id, __version__, own.device, swarm.digest()))
        with whole_file(out / CONFIG) as file:
            file.write(json.dumps(json.loads(swarm.to_json()), indent=2) + "\n")
        if swarm.pipeline.stages:
            from decentral.run.pipeline_process import make_pipeline_process

            process, save_stages = await clock.run(
                lambda: make_pipeline_process(node, swarm, own, run_id, clock, lines, told)
            )
            await _live(node, process, save_stages, peers, announce_join, stop, clock)
        else:
            worker, save = await _make_worker(node, swarm, own, run_id, clock, journal, joins=bool(peers))
            await _live(node, worker, save, peers, announce_join, stop, clock)
        return ExitCode.OK
    finally:
        clock.close()
        lines.close()


async def _make_worker(
    node: Node, swarm: SwarmConfig, own: WorkerConfig, run_id: str, clock: "Clock", journal: "Journal", *, joins: bool
) -> "tuple[Worker, Callable[[Outcome], None]]":
    """A worker that has the whole model, and what saves its weights."""
    from decentral.engine.local_steps import LocalSteps
    from decentral.engine.options import Parts
    from decentral.engine.worker import Worker

    out = Path(own.out)
    stream_seed = int.from_bytes(hashlib.blake2b(f"{run_id}/{node.identity.peer_id}".encode(), digest_size=6).digest())
    trainer = await clock.run(lambda: build_trainer(swarm, own.device, own.data, stream_seed))
    if node.directory is None:
        raise AssertionError("a worker's node keeps records")
    save = _saver(out, run_id, journal)
    parts = Parts(
        transport=node.transport,
        directory=node.directory,
        clock=clock,
        identity=node.identity,
        model=trainer,
        inner=LocalSteps(trainer, clock),
        journal=journal,
        residuals=_residuals(out, run_id) if joins else {},
        save=save,
        device=own.device,
    )
    return Worker(run_options(swarm, run_id, trainer.parameters()), parts), save


async def _live(
    node: Node,
    member: "_Member[_Result]",
    save: Callable[["_Result"], None],
    peers: Sequence[PeerId],
    announce_join: Callable[[str], None],
    stop: asyncio.Event,
    clock: "Clock",
) -> None:
    """Take part from beginning to end, and keep what comes of it; or until the node's daemon dies under it."""
    await (member.join(peers) if peers else member.found())
    announce_join(node.addresses()[0])
    training = asyncio.create_task(member.run(stop))
    dying = asyncio.create_task(node.failed())
    try:
        await asyncio.wait({training, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not training.done():
            raise DecentralError(
                f"This worker lost its connection to the network: {dying.result()}",
                hint="Start it again with the same --out: it rejoins under the same identity.",
            )
        outcome = training.result()
    finally:
        for task in (training, dying):
            task.cancel()
        await asyncio.gather(training, dying, return_exceptions=True)
    await clock.run(lambda: save(outcome))


def build_trainer(swarm: SwarmConfig, device: str, data: Sequence[str], stream_seed: int) -> "Trainer":
    """The task's trainer, after the task has checked that this machine can run it.

    Args:
        swarm: with the task's settings resolved.
        device: to compute on.
        data: paths of this machine in place of the swarm's; empty for the swarm's.
        stream_seed: of this worker's own stream of data.

    Raises:
        DecentralError: the machine cannot run the task, or there is no data.
    """
    module, build = import_task(swarm.task.factory)
    check = getattr(module, "check", None)
    if check is not None:
        check(swarm.task.settings, device)
    trainer: Trainer = build(swarm.task.settings, seat_of(swarm, device, data, stream_seed))
    return trainer


def _announced(own: WorkerConfig) -> str:
    """The address to announce; a host alone stands for that host and the port we listen on.

    Raises:
        UsageError: a host alone, but the port is chosen at the start.
    """
    if own.announce.startswith("/") or ":" in own.announce:
        return own.announce
    if not own.port:
        raise UsageError(
            f'--announce "{own.announce}" has no port, and this worker listens on any free one.',
            hint=f"Give both: --port 31337 --announce {own.announce}.",
        )
    return f"{own.announce}:{own.port}"


def _residuals(out: Path, run_id: str) -> "Mapping[str, Tensor]":
    """What this worker still had to send when it last took part in this run."""
    from decentral.state.files import load_weights

    path = out / RESIDUAL
    try:
        residuals, metadata = load_weights(path)
    except FileNotFoundError:
        return {}
    except OSError as err:
        _log.warning("cannot read %s: %s; what it still had to send is lost", path, err)
        return {}
    return residuals if metadata.get("run") == run_id else {}


def _saver(out: Path, run_id: str, journal: "Journal") -> Callable[["Outcome"], None]:
    """Writes the anchors and the residuals to ``out``; a full disk is reported and does not end the run."""
    from decentral.monitor.events import Saved
    from decentral.state.files import save_weights

    def save(outcome: "Outcome") -> None:
        path = out / MODEL
        metadata = {"run": run_id, "round": str(outcome.round), "digest": outcome.digest, "decentral": __version__}
        try:
            save_weights(path, outcome.anchors, metadata)
            if outcome.residuals:
                save_weights(out / RESIDUAL, outcome.residuals, metadata)
            else:
                (out / RESIDUAL).unlink(missing_ok=True)
        except OSError as err:
            _log.error("cannot write %s: %s; the last saved weights are kept", path, err.strerror or err)
        else:
            journal.record(Saved(str(path), outcome.round))

    return save


def _joined_config(hello: Hello, explicit: Mapping[str, Any]) -> SwarmConfig:
    """The swarm's configuration, if it does not contradict what the user set.

    Raises:
        MismatchError: lists every key that differs.
    """
    swarm = SwarmConfig.from_json(hello.config)
    stated = {key: value for key, value in explicit.items() if not key.startswith("worker.")}
    differences = diff(stated, swarm)
    if differences:
        raise MismatchError(
            "This worker was told otherwise than the swarm trains:\n  " + "\n  ".join(differences),
            hint="Leave these settings out to take the swarm's, or found a swarm of your own with --new.",
        )
    return swarm


async def _find(addresses: Sequence[str], *, option: str, timeout_s: float) -> tuple[str, PeerId]:
    """The first address at which a peer answers, completed with its id.

    Raises:
        DecentralError: none does; the error of the last one.
    """
    problem: DecentralError = UnreachableError("There is no address.")
    for text in addresses:
        address = parse_address(text, option=option)
        try:
            found = (await probe(address, timeout_s=timeout_s / len(addresses))).address
        except DecentralError as err:
            problem = err
            continue
        if found.peer is not None:
            return found.multiaddr(), found.peer
    raise problem


@contextlib.asynccontextmanager
async def _node(options: NodeOptions) -> AsyncIterator[Node]:
    node = await open_node(options)
    try:
        yield node
    finally:
        await node.close()


def _report(hello: Hello) -> StatusReport:
    swarm = SwarmConfig.from_json(hello.config)
    return summarize(_facts(hello, swarm), hello.workers, ttl_s=swarm.timing.ttl_s)


def _facts(hello: Hello, swarm: SwarmConfig) -> RunFacts:
    return RunFacts(
        run_id=hello.run_id,
        method=swarm.method.name,
        codec=swarm.method.codec,
        rounds=swarm.run.rounds,
        protocol=PROTOCOL,
        version=hello.version,
        config_digest=swarm.digest(),
        gossip=swarm.method.name == "noloco",
        num_stages=swarm.pipeline.stages,
    )

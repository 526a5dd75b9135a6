"""Asking a swarm from outside: finding a worker that answers, and what it says. Imports no torch."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace

from decentral import PROTOCOL
from decentral.adapters.address import Address, parse_address
from decentral.adapters.gate import Pass
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.probe import probe
from decentral.config.names import Family
from decentral.config.schema import SwarmConfig
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import DecentralError, UnreachableError
from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.pipeline.placement import num_stages_of, number_of
from decentral.run.access import Access
from decentral.swarm.presence import Presence
from decentral.types import PeerId

HELLO_TIMEOUT_S = 10.0


async def ask_status(addresses: Sequence[str], *, timeout_s: float) -> StatusReport:
    """Ask the first worker of ``addresses`` that answers about its swarm.

    Raises:
        DecentralError: nobody can be asked; the error of the last address.
    """
    return (await ask_swarm(addresses, timeout_s=timeout_s))[1]


async def ask_swarm(addresses: Sequence[str], *, timeout_s: float) -> tuple[SwarmConfig, StatusReport]:
    """Ask the first worker of ``addresses`` that answers what its swarm trains, and how it is.

    Raises:
        DecentralError: nobody can be asked; the error of the last address.
    """
    async with asking(addresses, option="ADDR", timeout_s=timeout_s) as (_, hello):
        return SwarmConfig.from_json(hello.config), _report(hello)


async def follow(
    addresses: Sequence[str], *, every_s: float, timeout_s: float = HELLO_TIMEOUT_S
) -> AsyncGenerator[StatusReport | DecentralError, None]:
    """Ask for a swarm's status again and again, over one node as long as the worker that is asked lives; never ends.

    Args:
        addresses: of workers of one swarm, tried in order; may grow meanwhile.
        every_s: between an answer and the next question.
        timeout_s: of one question.

    Yields:
        What was answered, or why there is no answer.
    """
    while True:
        try:
            async with asking(addresses, option="ADDR", timeout_s=timeout_s) as (node, hello):
                while True:
                    yield _report(hello)
                    await asyncio.sleep(every_s)
                    hello = await ask_hello(node.transport, hello.peer, node.identity.verify, timeout_s=timeout_s)
        except DecentralError as err:
            yield err
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def asking(
    addresses: Sequence[str], *, option: str, timeout_s: float, held: Pass | None = None
) -> AsyncIterator[tuple[Node, Hello]]:
    """A node that only asks, and what the first worker of ``addresses`` that answers says of its swarm.

    Args:
        addresses: tried in order.
        option: what they were given to, for the messages.
        timeout_s: until the answer is there.
        held: what lets it into a private swarm; by default the token in the address.

    Raises:
        DecentralError: nobody can be asked; the error of the last address.
    """
    until = asyncio.get_running_loop().time() + timeout_s

    def left_s() -> float:
        return max(0.2, until - asyncio.get_running_loop().time())

    address, peer = await find(addresses, option=option, timeout_s=left_s())
    if held is None and address.invitation is not None:
        held = Access(address.invitation).held()
    node = await open_node(NodeOptions(initial_peers=(address.multiaddr(),), asker=True, held=held))
    try:
        yield node, await ask_hello(node.transport, peer, node.identity.verify, timeout_s=left_s())
    finally:
        await node.close()


async def find(addresses: Sequence[str], *, option: str, timeout_s: float) -> tuple[Address, PeerId]:
    """The first address at which a peer answers, completed with its id, and that id.

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
            return replace(found, invitation=address.invitation), found.peer
    raise problem


def report_of(
    swarm: SwarmConfig,
    run_id: str,
    version: str,
    workers: Iterable[tuple[Presence, float]],
    banned: tuple[PeerId, ...] = (),
    *,
    ended: Mapping[PeerId, str] = {},
) -> StatusReport:
    """What there is to say of a swarm whose workers have these records, each with its age in seconds."""
    workers, stages = tuple(workers), swarm.pipeline.stages
    if stages == "auto":  # as many as the newest cut has
        newest = max((presence.cut for presence, _ in workers), key=number_of, default="")
        stages = num_stages_of(newest)
    facts = RunFacts(
        run_id=run_id,
        method=swarm.method.name,
        codec=swarm.method.codec,
        rounds=swarm.run.rounds,
        protocol=PROTOCOL,
        version=version,
        config_digest=swarm.digest(),
        gossip=swarm.method.family is Family.GOSSIP,
        num_stages=stages,
    )
    return summarize(facts, workers, ttl_s=swarm.timing.ttl_s, ended=ended, banned=banned)


def _report(hello: Hello) -> StatusReport:
    return report_of(SwarmConfig.from_json(hello.config), hello.run_id, hello.version, hello.workers, hello.banned)

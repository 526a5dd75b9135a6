"""The way back onto the network of a worker whose run is in its folder: who of it is there, and with which settings.

Imports no torch.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from decentral.adapters.address import Address, parse_address
from decentral.adapters.node import Node, open_node
from decentral.adapters.port import ensure_free
from decentral.adapters.probe import probe
from decentral.config.pipeline import check_joiner
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import (
    AdmissionError,
    DecentralError,
    MismatchError,
    PortTakenError,
    ProtocolError,
    UnreachableError,
    UsageError,
)
from decentral.run.access import Access
from decentral.run.connection import Connection, Resumption, Start, joined_config, node_options, opened
from decentral.run.folder import ACCESS
from decentral.run.reachable import tell
from decentral.types import PeerId, short_id

_log = logging.getLogger(__name__)
#: Whoever lives says so sooner; all are asked at once.
_ASK_S = 3.0
_HELLO_S = 5.0
#: Of those who answer, so many are told of us at the start.
_MAX_INITIAL = 8


async def reconnect(start: Start, found: Resumption) -> Connection:
    """Open a node where it was, and ask whoever may be of this run: those in the book, and where the user says.

    Raises:
        DecentralError: the node cannot be opened, or the run goes on otherwise than the user said.
    """
    book, swarm = found.book, start.swarm
    if swarm is None:
        raise AssertionError("a run that goes on has a configuration")
    own = start.own
    access = _access(start, found)
    places = await _who_answers([*start.join, *(address.multiaddr() for address in book.addresses)])
    port = _port(own.host, own.port or book.port, any_port=found.any_port)
    node = await _open_among(list(places.values())[:_MAX_INITIAL], own.model_copy(update={"port": port}), access)
    try:
        tell(node)
        hellos = await _of_run(node, [peer for peer in places if peer != node.identity.peer_id], book.run)
        if hellos:
            swarm = _settings_of(hellos, start)
            check_joiner(own.stage, swarm.pipeline.stages)
        else:
            where = "the newest step of all stages" if found.step is None else f"step {found.step}"
            _log.info("nobody of %s answers: brings it back from %s", book.run, where)
            for line in found.changes:
                _log.info("another setting from now on: %s", line)
        for hello in hellos:
            book.heard([places[hello.peer]])
        return opened(node, swarm, own, book, [hello.peer for hello in hellos], access, is_back=True)
    except BaseException:
        await node.close()
        raise


def _port(host: str, port: int, *, any_port: bool) -> int:
    """The port to listen on: that of before, or any if that is taken.

    Raises:
        PortTakenError: it is taken, and no other will do.
    """
    try:
        ensure_free(host, port)
    except PortTakenError as err:
        if not any_port:
            raise
        _log.warning("%s This worker takes another port; those who knew it find it all the same.", err.message)
        return 0
    return port


async def _who_answers(addresses: Sequence[str]) -> dict[PeerId, str]:
    """Those who are at the addresses now, all asked at once, each with the first address that led to it."""

    async def ask(text: str) -> Address | None:
        try:
            return (await probe(parse_address(text), timeout_s=_ASK_S)).address
        except DecentralError as err:
            _log.debug("nobody to ask: %s", err.message)
            return None

    found = await asyncio.gather(*(ask(text) for text in addresses))
    return {address.peer: address.multiaddr() for address in reversed(found) if address and address.peer}


async def _open_among(initial: Sequence[str], own: WorkerConfig, access: Access | None) -> Node:
    """A node that begins with these peers, or without them if they have gone meanwhile."""
    try:
        return await open_node(node_options(own, initial, access))
    except UnreachableError:
        return await open_node(node_options(own, (), access))


def _access(start: Start, found: Resumption) -> Access | None:
    """The way into the swarm: by the token in an address that the user gives now, else as before.

    Raises:
        UsageError: the run is private, and there is none.
    """
    given = next(filter(None, (parse_address(text).invitation for text in start.join)), None)
    known = found.access
    if given is not None:
        if known is not None and known.invitation.founder == given.founder:
            return replace(known, invitation=given)
        return Access(given)
    if known is None and start.swarm is not None and not start.swarm.run.public:
        raise UsageError(
            f"{found.book.run} is private, and its folder has no {ACCESS}: it is of a release that knew no private "
            "swarms, or the file was removed.",
            hint="With others of it alive, give the address of one: --join ADDR#TOKEN. Else --public goes on with it "
            "as a swarm that is open to anybody; state that on all of its machines.",
        )
    return known


async def _of_run(node: Node, peers: Iterable[PeerId], run_id: str) -> list[Hello]:
    """What those who are of the run say.

    Raises:
        ProtocolError: one speaks another protocol, so the run may have gone on without this release.
        AdmissionError: the founder has put this worker out.
    """

    async def ask(peer: PeerId) -> Hello | None:
        try:
            return await ask_hello(node.transport, peer, node.identity.verify, timeout_s=_HELLO_S)
        except ProtocolError:
            raise
        except DecentralError as err:
            _log.debug("%s says nothing: %s", short_id(peer), err.message)
            return None

    hellos = [hello for hello in await asyncio.gather(*(ask(peer) for peer in peers)) if hello is not None]
    objection = node.gate.own_objection()
    if objection is not None:
        raise AdmissionError(objection)
    for hello in hellos:
        if hello.run_id != run_id:
            _log.warning("worker %s is of another run by now (%s): left alone", short_id(hello.peer), hello.run_id)
    return [hello for hello in hellos if hello.run_id == run_id]


def _settings_of(hellos: Sequence[Hello], start: Start) -> SwarmConfig:
    """The configuration of those who are there: of the one that is furthest, should they differ.

    Raises:
        MismatchError: the user said otherwise.
    """

    def round_of(hello: Hello) -> int:
        return next((presence.round for presence, _ in hello.workers if presence.peer == hello.peer), 0)

    try:
        return joined_config(max(hellos, key=round_of), start)
    except MismatchError as err:
        hint = "Leave these settings out: they can change only when the run is brought back, with nobody of it alive."
        raise MismatchError(err.message, hint=hint) from err

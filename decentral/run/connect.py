"""A worker's way onto the network: an open node that knows which run it is of. Builds no model and imports no torch."""

import secrets
from pathlib import Path

from decentral.adapters.node import open_node
from decentral.config.pipeline import check_joiner
from decentral.config.schema import WorkerConfig
from decentral.dashboard.place import check
from decentral.engine.hello import ask_hello
from decentral.errors import UsageError
from decentral.run import telemetry
from decentral.run.access import Access, new_access
from decentral.run.asking import HELLO_TIMEOUT_S, find
from decentral.run.book import Book, read_book
from decentral.run.connection import Connection, Start, joined_config, node_options, opened
from decentral.run.folder import clear_run, has_run, run_of
from decentral.run.reachable import tell
from decentral.run.reconnect import reconnect

#: To find a worker at the addresses given.
_FIND_TIMEOUT_S = 10.0
#: Everything that ``connect`` does has a deadline of its own; together they end sooner.
CONNECT_S = 60.0


async def connect(start: Start) -> Connection:
    """Open a node, as a founder or as a joiner.

    Raises:
        DecentralError: the node cannot be opened, nobody answers, the swarm trains otherwise than the user said, or
            another run lies in the folder.
    """
    swarm, own = start.swarm, start.own
    telemetry.check(own)
    if own.dashboard:
        check(own.dashboard)
    initial, peers = [], []
    access = None if swarm is None or swarm.run.public else new_access()
    if start.resumption is not None:
        return await reconnect(start, start.resumption)
    if start.join:
        address, peer = await find(start.join, option="--join", timeout_s=_FIND_TIMEOUT_S)
        initial, peers = [address.multiaddr()], [peer]
        access = Access(address.invitation) if address.invitation is not None else None
    node = await open_node(node_options(own, initial, access))
    try:
        tell(node)
        if swarm is None:
            hello = await ask_hello(node.transport, peers[0], node.identity.verify, timeout_s=HELLO_TIMEOUT_S)
            swarm, run_id = joined_config(hello, start), hello.run_id
            check_joiner(own.stage, swarm.pipeline.stages)
        else:
            # Not of the identity: a run founded anew under it is another one, and nobody owes it residuals.
            run_id = f"{swarm.run.name}-{secrets.token_hex(4)}"
        book = _book(own, run_id, overwrite=start.overwrite)
        book.heard(initial)
        return opened(node, swarm, own, book, peers, access)
    except BaseException:
        await node.close()
        raise


def run_there(folder: Path, run_id: str) -> UsageError:
    """What to say to somebody who would write over the run in a folder: the ways out."""
    return UsageError(
        f"There is a run in {folder}" + (f": {run_id}." if run_id else "."),
        hint=f"To go on with it: --resume {folder}, or decentral.resume in a loop of your own. To begin another one: "
        "another folder, or --overwrite (overwrite=True), which removes its weights, checkpoints and journal.",
    )


def _book(own: WorkerConfig, run_id: str, *, overwrite: bool) -> Book:
    """The address book of this run, as the folder has it; what is there of another run is not written over.

    Raises:
        UsageError: see ``run_there``.
        ConfigError: the folder cannot be read or written.
    """
    new, folder = Book(run_id, 0), Path(own.out)
    if not own.out:
        return new
    if overwrite:
        clear_run(folder)
    known = read_book(folder)
    if known is not None and known.run == run_id:
        return known
    there = run_of(folder) if known is None else known.run
    if has_run(folder) and there != run_id:
        raise run_there(folder, there)
    return new

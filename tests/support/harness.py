"""What a contract suite needs of a world, whichever transport is behind it.

A scenario is a coroutine over a ``World``. The harness gives it an event loop of the right kind (virtual time for
memory, real for hivemind) and a total deadline, and frees everything at the end.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from decentral.ports.clock import Clock
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.ports.transport import Transport


@dataclass(frozen=True, slots=True)
class Peer:
    """One machine of a world: an implementation of each port."""

    name: str
    transport: Transport
    directory: Directory
    clock: Clock
    identity: Identity


class World(Protocol):
    """Peers that can reach each other."""

    async def peer(self, name: str) -> Peer:
        """The peer of that name, created at its first mention. All peers of a world know each other."""
        ...

    async def kill(self, peer: Peer) -> None:
        """Let a peer die abruptly, as by ``kill -9``: no farewell, its calls and its served calls just break."""
        ...


Scenario = Callable[[World], Awaitable[None]]


class Harness(Protocol):
    """Runs scenarios."""

    def run(self, scenario: Scenario) -> None:
        """Run ``scenario`` in a fresh world within a total deadline and raise what it raises."""
        ...

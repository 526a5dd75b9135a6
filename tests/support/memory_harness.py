"""The contract suites' worlds on the simulator."""

from decentral.sim import loop, world
from decentral.types import PeerId
from tests.support.harness import Peer, Scenario

#: Virtual seconds that a scenario may take.
UNTIL_S = 600.0


class MemoryWorld:
    """Peers of a simulated world; a peer's id is its name with a prefix."""

    def __init__(self) -> None:
        self._world = world.World(seed=0)
        self._peers: dict[str, Peer] = {}

    async def peer(self, name: str) -> Peer:
        if name not in self._peers:
            made = self._world.add(PeerId(f"sim-{name}"))
            self._peers[name] = Peer(name, made.transport, made.directory, made.clock, made.identity)
        return self._peers[name]

    async def kill(self, peer: Peer) -> None:
        self._world.crash(peer.transport.peer_id)


class MemoryHarness:
    """Runs scenarios on virtual time."""

    def run(self, scenario: Scenario) -> None:
        async def play() -> None:
            await scenario(MemoryWorld())

        loop.run(play(), until_s=UNTIL_S)

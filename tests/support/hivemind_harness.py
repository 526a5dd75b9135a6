"""Worlds of real nodes on loopback: every peer has its own libp2p daemon (0.5 s each)."""

import asyncio
import os
import signal

from decentral.adapters.clock import RealClock
from decentral.adapters.node import Node, NodeOptions, open_node
from tests.support.harness import Peer, Scenario

_DEADLINE_S = 60.0


class _HivemindWorld:
    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._peers: dict[str, Peer] = {}

    async def peer(self, name: str) -> Peer:
        if name not in self._peers:
            known = next(iter(self._nodes.values())).addresses()[:1] if self._nodes else ()
            node = await open_node(NodeOptions(host="127.0.0.1", initial_peers=known))
            assert node.directory is not None
            self._nodes[name] = node
            self._peers[name] = Peer(name, node.transport, node.directory, RealClock(), node.identity)
        return self._peers[name]

    async def kill(self, peer: Peer) -> None:
        """End the daemon as the kernel would when the process is killed; the node's own clean-up comes at the end."""
        daemon = self._nodes[peer.name].daemon
        os.kill(daemon.process.pid, signal.SIGKILL)
        await daemon.exited()

    async def close(self) -> None:
        for name, node in self._nodes.items():
            await node.close()
            clock = self._peers[name].clock
            assert isinstance(clock, RealClock)
            clock.close()


class HivemindHarness:
    """Runs scenarios on real nodes and real time."""

    def run(self, scenario: Scenario) -> None:
        async def main() -> None:
            world = _HivemindWorld()
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    await scenario(world)
            finally:
                await world.close()

        asyncio.run(main())

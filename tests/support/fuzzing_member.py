"""A member of a simulated swarm that sends the others mutants of what members send each other, and what must hold then.

The sender is authenticated and a participant, so mutants come as far as messages come. Half of them are of the method
they are sent to and of this very moment: lists of participants in them, digests and serial numbers are those of the
round that is under way.
"""

import asyncio
import gc
import random
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

from decentral.errors import CallRefused, TransportError
from decentral.monitor.journal import MemoryJournal
from decentral.pipeline.courier import BACKWARD, FORWARD
from decentral.pipeline.pieces import HEADER_BYTES
from decentral.ports.transport import Handler
from decentral.sim.network import Network
from decentral.sim.transport import MemoryTransport
from decentral.state.worker_state import WorkerState
from decentral.types import PeerId
from tests.support.mutant_messages import broken

#: So many are sent at a time, so often.
_BURST, _PAUSE_S = 25, 0.02
#: An answer that lasts longer is not waited for.
_TIMEOUT_S = 0.2
#: Of the messages last sent to a method, so many are there to be broken.
_REMEMBERED = 32
#: What is not part of a worker that holds a reference to it: its world, and what it has written to a disk.
_OUTSIDE = (
    *(type, ModuleType, Network, MemoryTransport, MemoryJournal, WorkerState),
    *(asyncio.AbstractEventLoop, asyncio.Future),
)


class FuzzingMember:
    """See the module.

    Args:
        own: the member in whose name mutants are sent, which goes on as it is.
        seed: of the mutants.
        num_messages: how many are sent.
        examples: messages of methods that members seldom call.
    """

    def __init__(self, own: PeerId, seed: int, num_messages: int, examples: Mapping[str, Sequence[bytes]] = {}) -> None:
        self.tried: Counter[str] = Counter()
        """Mutants by the method that they were sent to."""
        self.answered: Counter[str] = Counter()
        """Of them, those that were not refused."""
        self.faults: list[str] = []
        """What handlers raised that is no refusal of a message."""
        self.held_bytes: list[int] = []
        """What the others held after a half of all mutants, and after all."""
        self._own = own
        self._random = random.Random(f"fuzzing {seed}")
        self._num_messages = num_messages
        self._seen: defaultdict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        for method, messages in examples.items():
            self._seen[method].extend(messages)

    async def run(self, network: Network) -> None:
        """Send all, in bursts."""
        while (sent := self.tried.total()) < self._num_messages:
            if sent >= self._num_messages / 2 and not self.held_bytes:
                self.held_bytes.append(self._held(network))
            calls = [self._send(network, *mutant) for mutant in self._burst(network)]
            await asyncio.gather(*calls, asyncio.sleep(_PAUSE_S))
        self.held_bytes.append(self._held(network))

    def _burst(self, network: Network) -> Iterator[tuple[PeerId, str, bytes]]:
        others = [peer for peer in _endpoints(network) if peer.peer_id != self._own and peer._methods]
        for endpoint in others:
            self._watch(endpoint)
        for _ in range(min(_BURST, self._num_messages - self.tried.total()) if others else 0):
            victim = self._random.choice(others)
            method = self._random.choice(sorted(victim._methods))
            of = method if self._random.random() < 0.9 else self._random.choice(sorted(self._seen) or [method])
            seen = self._seen[of] or (b"",)
            # A few come as they are, again and out of place.
            good = self._random.choice(seen)
            yield victim.peer_id, method, good if self._random.random() < 0.1 else self._broken(method, good)

    def _broken(self, method: str, good: bytes) -> bytes:
        """A mutant; of packets, which come in pieces, mostly one whose head is that of a piece."""
        if method.endswith((FORWARD, BACKWARD)) and self._random.random() < 0.9:
            return good[:HEADER_BYTES] + broken(self._random, good[HEADER_BYTES:])
        return broken(self._random, good)

    def _watch(self, endpoint: MemoryTransport) -> None:
        """Remember what an endpoint is sent from now on, and what its handlers raise."""
        for name, method in endpoint._methods.items():
            if not isinstance(method.handler, _Watched):
                method.handler = _Watched(name, method.handler, self)

    async def _send(self, network: Network, victim: PeerId, method: str, mutant: bytes) -> None:
        self.tried[method] += 1
        endpoint = network.find(self._own)
        if not isinstance(endpoint, MemoryTransport):
            return
        try:
            await endpoint.call(victim, method, mutant, timeout_s=_TIMEOUT_S, max_reply_bytes=1 << 24)
        except TransportError:
            return
        self.answered[method] += 1

    def _held(self, network: Network) -> int:
        """Bytes that the others hold in all."""
        return held_bytes([peer._methods for peer in _endpoints(network) if peer.peer_id != self._own])


class _Watched:
    """A handler that remembers what it is sent, and reports what it raises."""

    def __init__(self, name: str, handler: Handler, by: FuzzingMember) -> None:
        self._name, self._handler, self._by = name, handler, by

    async def __call__(self, sender: PeerId, request: bytes) -> bytes:
        if sender != self._by._own:
            self._by._seen[self._name].append(request)
        try:
            return await self._handler(sender, request)
        except (CallRefused, ValueError):
            raise
        except Exception as err:
            self._by.faults.append(f"{self._name}: {err!r} from {request[:200]!r}")
            raise


def _endpoints(network: Network) -> list[MemoryTransport]:
    return [each for each in network._endpoints.values() if isinstance(each, MemoryTransport)]


def held_bytes(roots: Any) -> int:
    """Bytes of all Python objects, and of all tensors, that can be reached from the roots: workers, not their world."""
    seen: set[int] = set()
    todo: list[Any] = [roots]
    total = 0
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, (*_OUTSIDE, FuzzingMember)):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each) + (each.nbytes if type(each).__name__ == "Tensor" else 0)
        # A function's module is not its own; what it closes over is.
        todo.extend([each.__closure__] if isinstance(each, FunctionType) else gc.get_referents(each))
    return total

"""The memory network: how long a message takes, whether it arrives, and who can talk to whom.

It knows endpoints and sizes, not what a message means (that is ``sim.transport``). One seeded generator decides
everything random, in the order of the messages. A message's life, with ``size`` = payload + ``FRAME_BYTES``::

    waits for the sender's uplink, which sends one message after the other  | size / up_bytes_per_s
    travels                                                                 | latency
    waits for the receiver's downlink, which takes one after the other      | size / down_bytes_per_s

Sending and receiving overlap, so alone on idle lines a message takes latency + size / min(up, down). A lost message
uses the uplink and never arrives: as on a connection that broke, its caller hears nothing until its own deadline.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

from decentral.sim.faults import Kind
from decentral.sim.loop import Owner, virtual_loop
from decentral.sim.trace import Trace
from decentral.types import PeerId

#: What every message costs beyond its payload: method, ids and framing of a real transport, rounded.
FRAME_BYTES = 64
#: Of a message with values, about so much is something else, and is not more if there are more of them.
_AROUND_BYTES = 100
#: A message that others overtake takes so many times as long, from and to.
_OVERTAKEN = (2.0, 20.0)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The weather, the same between all pairs."""

    latency_s: float = 0.02
    """Mean time that a byte travels, one way."""
    jitter: float = 0.0
    """Sigma of the log-normal factor on ``latency_s`` (its mean is 1); 0 for none, 0.5 for a poor home line."""
    loss: float = 0.0
    """Probability that a message never arrives, requests and replies alike."""
    duplicate: float = 0.0
    """Probability that it arrives twice."""
    reorder: float = 0.0
    """Probability that it travels so much longer that others overtake it."""
    give_up_s: float = 3.0
    """How long a caller dials across a partition before it is told that the peer is unreachable."""
    between: Mapping[frozenset[str], float] = field(default_factory=dict)
    """Mean latencies between two regions, or within one, where they are not ``latency_s``."""
    passing_bytes: int = 0
    """Messages no longer than this wait behind no others, as on lines that streams share; they take no room either."""
    stands_for: Mapping[str, float] = field(default_factory=dict)
    """By method: there are so many times as many values in its messages, and in the replies to them, as are sent. A
    swarm with a thousandth of a model's values so has its traffic."""


@dataclass(frozen=True, slots=True)
class Line:
    """A peer's access to the network."""

    up_bytes_per_s: float = math.inf
    down_bytes_per_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Cut:
    """Peers that others cannot talk to, or that cannot talk to others, or both."""

    island: frozenset[PeerId]
    kind: Kind = Kind.CUT
    """Or ``DEAF`` or ``MUTE``."""

    def blocks(self, a: PeerId, b: PeerId) -> bool:
        """Whether what ``a`` sends to ``b`` is lost."""
        from_island, to_island = a in self.island, b in self.island
        if from_island == to_island:
            return False
        return self.kind is Kind.CUT or (self.kind is Kind.MUTE) == from_island


class Breakable(Protocol):
    """Something in flight towards an endpoint that wants to hear of its end."""

    def broken(self) -> None:
        """The endpoint went away."""
        ...


class Endpoint:
    """One peer's place in the network, until it crashes or leaves. A peer that returns gets a new one.

    ``context`` is the one to run the peer's tasks in: they stop when the network pauses or crashes the peer.
    """

    def __init__(self, peer_id: PeerId, line: Line) -> None:
        self.peer_id = peer_id
        self.line = line
        self.owner = Owner(peer_id)
        self.context = self.owner.context()
        self.in_flight: dict[Breakable, None] = {}
        self.up_free_s = self.down_free_s = 0.0
        self.gone_s = math.inf
        self.sent_bytes = self.received_bytes = 0

    @property
    def gone(self) -> bool:
        """Whether it crashed or left."""
        return self.gone_s < math.inf


class Network:
    """All endpoints and what lies between them.

    Args:
        seed: of everything random in the network.
        conditions: the weather at the start; assign ``network.conditions`` to change it.
    """

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.conditions = conditions or Conditions()
        self.random = random.Random(f"network {seed}")
        self.trace = Trace()
        self.felt: Counter[Kind] = Counter()
        """Dials, messages and look-ups to which something of a kind happened."""
        self.limits: defaultdict[PeerId, list[tuple[Kind, Line]]] = defaultdict(list)
        """What keeps a peer's line from carrying what it could."""
        self.silent: set[PeerId] = set()
        """Peers that take calls and do not answer."""
        self.layout = 0
        """Counts changes of the cuts."""
        self._loop = virtual_loop()
        self._neutral = copy_context()
        self._endpoints: dict[PeerId, Endpoint] = {}
        self._cuts: list[Cut] = []
        self.regions: dict[PeerId, str] = {}
        """Of peers that are in one."""
        self.sent_bytes = 0
        """By all, whatever became of them."""

    def join(self, endpoint: Endpoint) -> None:
        """Make an endpoint reachable.

        Raises:
            ValueError: a live peer has this id already.
        """
        if endpoint.peer_id in self._endpoints:
            raise ValueError(f"{endpoint.peer_id} is already in the network")
        self._endpoints[endpoint.peer_id] = endpoint
        self.note("join", endpoint.peer_id)

    def find(self, peer: PeerId) -> Endpoint | None:
        """The live endpoint of ``peer``, paused or not."""
        return self._endpoints.get(peer)

    def leave(self, endpoint: Endpoint) -> None:
        """Take an endpoint out: what is in flight towards it breaks, what it has not sent completely is lost."""
        if endpoint.gone:
            return
        endpoint.gone_s = self._loop.time()
        del self._endpoints[endpoint.peer_id]
        self.note("leave", endpoint.peer_id)
        for message in tuple(endpoint.in_flight):
            message.broken()

    def crash(self, peer: PeerId) -> None:
        """As ``kill -9``: the endpoint leaves and the tasks of its owner never run again.

        Raises:
            KeyError: no such live peer.
        """
        endpoint = self._endpoints[peer]
        self.leave(endpoint)
        self._loop.freeze(endpoint.owner)

    def pause(self, peer: PeerId) -> None:
        """As SIGSTOP: messages reach the peer, but neither its handlers nor its tasks run until ``resume``.

        Raises:
            KeyError: no such live peer.
        """
        self._loop.freeze(self._endpoints[peer].owner)
        self.note("pause", peer)

    def resume(self, peer: PeerId) -> None:
        """As SIGCONT: handlers and tasks go on with what fell due meanwhile. Does nothing to a peer that is not paused.

        Raises:
            KeyError: no such live peer.
        """
        self._loop.thaw(self._endpoints[peer].owner)
        self.note("resume", peer)

    def partition(self, island: Iterable[PeerId], kind: Kind = Kind.CUT) -> Cut:
        """Cut an island off; ``heal`` takes what this returns. Cuts add up.

        Args:
            island: peers that can talk among themselves.
            kind: ``CUT``, or ``DEAF`` or ``MUTE`` for one direction.
        """
        cut = Cut(frozenset(island), kind)
        self._cuts.append(cut)
        self._changed()
        return cut

    def heal(self, cut: Cut | None = None) -> None:
        """End one cut, or all."""
        if cut is None:
            self._cuts.clear()
        else:
            self._cuts.remove(cut)
        self._changed()

    def _changed(self) -> None:
        self.layout += 1
        cuts = enumerate(self._cuts, start=1)
        self.note("partition", *(f"{peer}:{side}" for side, cut in cuts for peer in sorted(cut.island)))

    @property
    def is_parted(self) -> bool:
        """Whether there is a cut."""
        return bool(self._cuts)

    def blocks(self, a: PeerId, b: PeerId) -> bool:
        """Whether what ``a`` sends to ``b`` cannot pass, and count it."""
        for cut in self._cuts:
            if cut.blocks(a, b):
                self.felt[cut.kind] += 1
                return True
        return False

    def latency_s(self, a: PeerId, b: PeerId) -> float:
        """Draw the time that a byte travels from ``a`` to ``b``."""
        mean_s = self.conditions.latency_s
        if self.regions:
            mean_s = self.conditions.between.get(frozenset((self.regions.get(a, ""), self.regions.get(b, ""))), mean_s)
        sigma = self.conditions.jitter
        return mean_s * math.exp(self.random.gauss(-sigma * sigma / 2, sigma)) if sigma else mean_s

    def weight(self, method: str, num_bytes: int) -> int:
        """How long a message of a method is, or the reply to one."""
        times = self.conditions.stands_for.get(method)
        return num_bytes if times is None else num_bytes + int((times - 1) * max(0, num_bytes - _AROUND_BYTES))

    def is_lost(self) -> bool:
        """Draw whether a message is lost, and count it."""
        loss = self.conditions.loss
        return loss > 0 and self._befalls(Kind.LOSS, loss)

    def send(
        self, source: Endpoint, target: Endpoint, what: str, num_bytes: int, deliver: Callable[..., None], *args: Any
    ) -> None:
        """Send a message of ``num_bytes`` payload; if it arrives, ``deliver(*args)`` runs in the target's context."""
        size, conditions = num_bytes + FRAME_BYTES, self.conditions
        now_s = self._loop.now_s
        passes = size <= conditions.passing_bytes
        start_s = now_s if passes else max(now_s, source.up_free_s)
        line = self._limited(source) if self.limits else source.line
        left_s = start_s + size / line.up_bytes_per_s
        if not passes:
            source.up_free_s = left_s
        source.sent_bytes += size
        self.sent_bytes += size
        lost = self.is_lost()
        self.trace.add((now_s, "lost" if lost else "send", source.peer_id, target.peer_id, what, size))
        if lost:
            return
        self._carry(source, target, start_s, left_s, size, deliver, args)
        if conditions.duplicate > 0 and self._befalls(Kind.DUPLICATE, conditions.duplicate):
            self.note("duplicate", source.peer_id, target.peer_id, what, size)
            self._carry(source, target, start_s, left_s, size, deliver, args)

    def _carry(self, source: Endpoint, target: Endpoint, start_s: float, left_s: float, size: int, *rest: Any) -> None:
        """What an uplink sends from ``start_s`` to ``left_s`` is on its way."""
        latency_s = self.latency_s(source.peer_id, target.peer_id)
        reorder = self.conditions.reorder
        if reorder > 0 and self._befalls(Kind.REORDER, reorder):
            latency_s *= self.random.uniform(*_OVERTAKEN)
        message = (source, target, left_s, size, *rest)
        down_bytes_per_s = (self._limited(target) if self.limits else target.line).down_bytes_per_s
        if down_bytes_per_s == math.inf or size <= self.conditions.passing_bytes:
            self._loop.set_off(left_s + latency_s, target.context, self._arrive, *message)
            return
        # The downlink is claimed when the bytes are there, not now: else one slow sender would block the receiver.
        claim_s = left_s + latency_s - min(left_s - start_s, size / down_bytes_per_s)
        self._loop.set_off(claim_s, self._neutral, self._take_down, *message)

    def _befalls(self, kind: Kind, rate: float) -> bool:
        """Draw whether something happens to a message, and count it."""
        befalls = rate > 0 and self.random.random() < rate
        self.felt[kind] += befalls
        return befalls

    def _limited(self, endpoint: Endpoint) -> Line:
        """An endpoint's line as it is now."""
        line = endpoint.line
        for kind, limit in self.limits.get(endpoint.peer_id, ()):
            up, down = (
                min(line.up_bytes_per_s, limit.up_bytes_per_s),
                min(line.down_bytes_per_s, limit.down_bytes_per_s),
            )
            self.felt[kind] += (up, down) != (line.up_bytes_per_s, line.down_bytes_per_s)
            line = Line(up, down)
        return line

    def note(self, *event: str | int) -> None:
        """Add an event to the trace, with the time."""
        self.trace.add((self._loop.time(), *event))

    def _take_down(self, source: Endpoint, target: Endpoint, left_s: float, size: int, *rest: Any) -> None:
        """Queue a message on the target's downlink."""
        start_s = max(self._loop.now_s, target.down_free_s)
        target.down_free_s = start_s + size / self._limited(target).down_bytes_per_s
        message = (source, target, left_s, size, *rest)
        self._loop.set_off(target.down_free_s, target.context, self._arrive, *message)

    def _arrive(
        self,
        source: Endpoint,
        target: Endpoint,
        left_s: float,
        size: int,
        deliver: Callable[..., None],
        args: tuple[Any, ...],
    ) -> None:
        """Hand a message over, unless something came between."""
        if target.gone_s < math.inf or source.gone_s < left_s:
            return
        if self._cuts and self.blocks(source.peer_id, target.peer_id):
            self.note("cut", source.peer_id, target.peer_id, size)
            return
        target.received_bytes += size
        deliver(*args)

"""What the two sides of a gossip share: a worker is a host in one round and a guest in the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from decentral.exchange.api import Restrained
from decentral.exchange.bounds import Kind
from decentral.exchange.gossip.bounds import OFFENCES
from decentral.exchange.gossip.company import Company
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.limits import Limit
from decentral.exchange.offences import Offences
from decentral.exchange.wire import Wire
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.timing import Timing
from decentral.types import PeerId

#: A guest hears after this time that its host still waits for others: so a lost answer costs little.
HOLD_S = 0.5
#: Waits for partners are limited to so many times the usual; so are values on their way, but at least to so much.
_WAIT_FACTOR = 1.5
_MOVE_FACTOR, _MIN_MOVE_S = 4.0, 1.0


@dataclass(frozen=True, slots=True)
class Context:
    """Ports, agreements, and what was learnt of others."""

    transport: Transport
    clock: Clock
    company: Company
    wire: Wire
    """Sizes and codecs of pseudo-gradients and means."""
    options: GossipOptions
    timing: Timing
    inner_steps: int
    """H."""
    offences: Offences = field(default_factory=Offences)
    waits: Limit = field(default_factory=lambda: Limit(_WAIT_FACTOR))
    """How late partners are."""
    moves: Limit = field(default_factory=lambda: Limit(_MOVE_FACTOR, _MIN_MOVE_S))
    """How long values are on their way."""

    def answer_s(self, size_bytes: int, held_s: float = 0.0) -> float:
        """After this time without an answer, a call that moves so many bytes and is held so long counts as lost."""
        slowest_s = self.timing.call_timeout_s(size_bytes)
        return min(slowest_s, held_s + self.moves.seconds(at_first=slowest_s, at_most=slowest_s))

    def judge(self, restrained: Sequence[Restrained]) -> None:
        """Note who among them brought what no honest one brings."""
        for each in restrained:
            if each.kind in OFFENCES:
                self.offend(each.peer, OFFENCES[each.kind], brief=each.kind is not Kind.WILD)

    def offend(self, peer: PeerId, reason: str, *, brief: bool = False) -> None:
        """The peer sent what no honest one sends; see ``Offences.note``."""
        self.offences.note(peer, reason, self.clock.monotonic(), self.company.round_s(), brief=brief)

    def avoids(self, peer: PeerId) -> bool:
        """Whether to keep away from the peer as of now."""
        return self.offences.avoids(peer, self.clock.monotonic())

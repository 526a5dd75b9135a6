"""Who broke the rules of a swap, how often, and whom to avoid for a while. Pure: the time is an argument."""

from dataclasses import dataclass

from decentral.types import PeerId

#: From this offence on a peer is avoided; one may be an accident.
_TOLERATED = 2
#: The first time it is avoided for so long, in rounds; then twice as long each time.
_AVOIDED_ROUNDS = 10.0
_MIN_AVOIDED_S = 60.0
_MAX_AVOIDED_S = 6 * 3600.0
#: What honest workers may do for a while costs so many rounds each time and no more.
_BRIEF_ROUNDS = 5.0
#: An offence is forgotten so long after it, or after the end of the avoidance.
_FORGOTTEN_S = 6 * 3600.0
#: Peers remembered; whoever offended longest ago is forgotten first.
_MAX_PEERS = 1024


@dataclass(frozen=True, slots=True)
class Avoidance:
    """A peer to keep away from."""

    peer: PeerId
    reason: str
    """Its last offence, for people."""
    seconds: float
    """How much longer."""


@dataclass(slots=True)
class _Case:
    count: int = 0
    until: float = 0.0
    """When it is to be avoided no longer; before that there is one, when it offended last."""
    reason: str = ""


class Offences:
    """The cases this worker knows of. It believes nobody else's."""

    def __init__(self) -> None:
        self._cases: dict[PeerId, _Case] = {}

    def note(self, peer: PeerId, reason: str, now: float, round_s: float, *, brief: bool = False) -> None:
        """The peer sent something that no honest one sends.

        Args:
            peer: the authenticated sender.
            reason: what it was, for people.
            now: monotonic seconds.
            round_s: how long a round takes here, the unit in which it is avoided.
            brief: whether an honest one may, where workers' data or optima differ: it is avoided for some rounds, and
                not for longer each time.
        """
        case = self._cases.pop(peer, None) or _Case()
        self._cases[peer] = case
        if len(self._cases) > _MAX_PEERS:
            del self._cases[next(iter(self._cases))]
        if now > case.until + _FORGOTTEN_S:
            case.count = 0
        if not brief or case.count < _TOLERATED:
            case.count += 1
        case.reason, case.until = reason, max(case.until, now)
        if case.count < _TOLERATED:
            return
        avoided_s = _BRIEF_ROUNDS * round_s
        if not brief:
            base_s = max(_MIN_AVOIDED_S, _AVOIDED_ROUNDS * round_s)
            # The exponent is bounded: a power of an endless count would overflow.
            avoided_s = min(_MAX_AVOIDED_S, base_s * 2.0 ** min(case.count - _TOLERATED, 20))
        case.until = max(case.until, now + avoided_s)

    def avoids(self, peer: PeerId, now: float) -> bool:
        """Whether to keep away from the peer."""
        case = self._cases.get(peer)
        return case is not None and now < case.until

    def avoided(self, now: float) -> tuple[Avoidance, ...]:
        """All whom to keep away from, in order of peer id."""
        cases = sorted(self._cases.items())
        return tuple(Avoidance(peer, case.reason, case.until - now) for peer, case in cases if now < case.until)

"""Budgets: of a node's uplink, the rest of which is for others, and of what one peer may ask of another.

Pure: the time is an argument, and whoever asks does the waiting. The upload budget is of what the link carries, so
bytes are charged with what Noise, TCP, IP and the frames of the link put around them.
"""

import heapq
from collections import OrderedDict
from math import inf
from typing import Final

from decentral.types import PeerId

#: Share that is added to what is sent: 52 bytes of headers to each 1448 of an IP packet, and what is around those.
OVERHEAD = 0.04
#: Added to a message besides: its stream is opened, negotiated, acknowledged and closed.
MESSAGE_BYTES = 600
#: Every bucket holds so much time of the rate: what goes at once after a silence.
_BURST_S = 0.05
#: A piece takes so much time of the rate, so that each of many streams has its turn soon.
_PIECE_S = 0.05
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 1 << 12, 1 << 18


class Budget:
    """Two token buckets, filled at one rate: everything is taken from the one, what begins a message from the other.

    A bucket goes into debt by whoever asks, who then waits until it is paid; so pieces go in the order in which they
    were asked for. What begins a message (all of a short one) waits for others of its kind alone and overtakes long
    messages, which pay for it: signs of life are not late because values are on their way.

    Args:
        bytes_per_s: on the link; infinite for no limit.
    """

    def __init__(self, bytes_per_s: float = inf) -> None:
        if not bytes_per_s > 0:
            raise ValueError(f"an upload budget of {bytes_per_s} bytes/s")
        self.bytes_per_s = bytes_per_s
        self.piece_bytes = int(min(_MAX_PIECE_BYTES, max(_MIN_PIECE_BYTES, _PIECE_S * bytes_per_s)))
        """The largest piece that a long message is to be cut into."""
        self._all_paid_at = self._first_paid_at = -inf
        """When the buckets will have been empty, at the latest."""

    def take(self, now: float, num_bytes: int, *, first: bool) -> float:
        """Charge a piece of a message.

        Args:
            now: monotonic time in seconds, not before that of an earlier call.
            num_bytes: of the piece, without overhead.
            first: whether it begins its message.

        Returns:
            Seconds to wait before it may go; 0 if it may go now.
        """
        cost_s = (num_bytes * (1 + OVERHEAD) + first * MESSAGE_BYTES) / self.bytes_per_s
        self._all_paid_at = max(self._all_paid_at, now - _BURST_S) + cost_s
        if not first:
            return max(0.0, self._all_paid_at - now)
        self._first_paid_at = max(self._first_paid_at, now - _BURST_S) + cost_s
        return max(0.0, self._first_paid_at - now)


#: What a peer asks for is charged in seconds, and so many seconds' worth goes at once after a silence.
_CALLS_BURST_S: Final = 10.0
#: A short call costs by how often its method may be called. Values are worth their bytes.
_SHORT_BYTES: Final = 16 << 10
_VALUES_PER_S: Final = 1000 << 20
#: A message that is none is dear, and so are its bytes: no honest peer sends it.
_BAD_CALLS_PER_S: Final = 10.0
_BAD_BYTES_PER_S: Final = 2000 << 10
#: Peers that are remembered; whoever called longest ago is forgotten first.
_MAX_PEERS: Final = 4096


class Account:
    """What has passed between one peer and this one, and a token bucket of its calls that goes into debt."""

    def __init__(self) -> None:
        self.active = 0
        """Its streams that are being served."""
        self.sent_bytes = self.received_bytes = 0
        """To and from that peer, whoever called."""
        self._paid_at = -inf

    def wait_s(self, now: float) -> float:
        """So many seconds until its debt is paid; 0 if it has none."""
        return max(0.0, self._paid_at - now)

    def moved(self, *, sent_bytes: int, received_bytes: int) -> None:
        """A call has ended well."""
        self.sent_bytes += sent_bytes
        self.received_bytes += received_bytes

    def charge(self, now: float, num_bytes: int, *, calls_per_s: float, bad: bool) -> None:
        """It has called.

        Args:
            now: monotonic seconds.
            num_bytes: of the request and the reply.
            calls_per_s: so often may short calls of this method come in the long run.
            bad: whether it sent what no honest peer sends.
        """
        cost_s = 1 / calls_per_s if num_bytes <= _SHORT_BYTES else num_bytes / _VALUES_PER_S
        if bad:
            cost_s = 1 / _BAD_CALLS_PER_S + num_bytes / _BAD_BYTES_PER_S
        self._paid_at = max(self._paid_at, now - _CALLS_BURST_S) + cost_s


class Accounts:
    """Those of all peers."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[PeerId, Account] = OrderedDict()

    def of(self, peer: PeerId) -> Account:
        """A peer's account, which may be a new one."""
        account = self._accounts.setdefault(peer, Account())
        self._accounts.move_to_end(peer)
        if len(self._accounts) > _MAX_PEERS:
            self._accounts.popitem(last=False)
        return account

    def busiest(self, count: int) -> list[tuple[PeerId, int, int]]:
        """Peers with whom most was exchanged, with the bytes sent to and received from each."""
        moved = [(peer, each.sent_bytes, each.received_bytes) for peer, each in self._accounts.items()]
        return heapq.nlargest(count, moved, key=lambda each: each[1] + each[2])

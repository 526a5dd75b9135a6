"""An upload budget: when which bytes may go, so that a node leaves the rest of its uplink to others.

Pure: the time is an argument, and whoever asks does the waiting. The budget is of what the link carries, so bytes are
charged with what Noise, TCP, IP and the frames of the link put around them.
"""

from math import inf

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

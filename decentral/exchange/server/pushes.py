"""Which pushes an anchor contains: the last one of every worker.

It travels with the anchor, so whoever goes on from that knows what was counted and what was not.
"""

from collections import OrderedDict
from hashlib import blake2b

from decentral.errors import FrameError
from decentral.types import PeerId

_KEY_BYTES = 8
_ENTRY_BYTES = 2 * _KEY_BYTES
#: Workers remembered; beyond it the one whose last push is the oldest is forgotten.
MAX_ENTRIES = 1_024
MAX_COUNTED_BYTES = MAX_ENTRIES * _ENTRY_BYTES


def push_id(sender: PeerId, request: bytes) -> bytes:
    """Names a push by its content: the same bytes sent again are the same push."""
    return blake2b(request, digest_size=_KEY_BYTES, key=sender.encode()[-64:]).digest()


class CountedPushes:
    """The last push counted of every worker.

    Args:
        packed: what ``pack`` gave.

    Raises:
        FrameError: that is not what ``packed`` is.
    """

    def __init__(self, packed: bytes = b"") -> None:
        if len(packed) % _ENTRY_BYTES or len(packed) > MAX_COUNTED_BYTES:
            raise FrameError(f"{len(packed)} bytes of counted pushes")
        entries = [packed[start : start + _ENTRY_BYTES] for start in range(0, len(packed), _ENTRY_BYTES)]
        self._last = OrderedDict((entry[:_KEY_BYTES], entry[_KEY_BYTES:]) for entry in entries)

    def note(self, sender: PeerId, push: bytes) -> None:
        """A push was counted."""
        self._last[_key(sender)] = push
        self._last.move_to_end(_key(sender))
        if len(self._last) > MAX_ENTRIES:
            self._last.popitem(last=False)

    def has(self, sender: PeerId, push: bytes) -> bool:
        """Whether this was the last push counted of its sender."""
        return self._last.get(_key(sender)) == push

    def pack(self) -> bytes:
        """All entries, 16 bytes each, the oldest push first."""
        return b"".join(key + push for key, push in self._last.items())


def _key(sender: PeerId) -> bytes:
    return blake2b(sender.encode(), digest_size=_KEY_BYTES).digest()

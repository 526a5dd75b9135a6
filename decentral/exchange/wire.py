"""What members agree on about values, and how a fragment is cut into shards: the same on every one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from decentral.codecs.codec import Codec
from decentral.codecs.frame import framed_nbytes
from decentral.exchange.merge import Range
from decentral.exchange.robust import RobustMerge
from decentral.swarm.matching import reducers, shards
from decentral.types import PeerId, SyncKey

#: Shorter shards cost more in latency than they save in bandwidth.
MIN_SHARD_VALUES = 16_384
#: A reducer has up to so many shards of a fragment, each a call of its own: a stream pauses for its window while others
#: go on, and a shard is encoded while the one before travels.
MAX_SHARDS_EACH = 16
#: Where many fragments may be on their way together, up to so many: a peer takes 128 streams of another one.
_SHARDS_EACH_OF_MANY, _SHARDS_OF_ALL = 8, 96
#: Each of them has so many bytes at least: less than a stream's first window of 256 KiB, after which it pauses for a
#: round trip, but no less than it must be, as every shard costs calls, signatures and turns of threads.
MIN_LONG_SHARD_BYTES = 3 << 16
#: A multiple of every block size of the block-wise codecs in use: but for the last, blocks are full.
SHARD_ALIGN = 4_096
#: Room for the fields around a frame, a signature among them.
_ENVELOPE_BYTES = 1_536
#: What two signatures add to a shard on its way to the reducer and back, with RSA keys of 2048 bits; and the share of
#: its bytes that this may be for each shard of a round that is done over.
_SIGNATURES_BYTES, _SIGNATURES_SHARE = 1_138, 0.1
#: What a mean says of a contribution that was bounded.
_FINDING_BYTES = 14


def seed_of(purpose: str) -> int:
    """A seed for the rounding of what is sent once, for one purpose; 64 bits."""
    return int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Part:
    """One shard of a fragment: values [start, stop), averaged by ``reducer``."""

    index: int
    start: int
    stop: int
    reducer: PeerId

    @property
    def numel(self) -> int:
        """Values in the shard."""
        return self.stop - self.start


def in_turn(parts: Sequence[Part], me: PeerId) -> list[Part]:
    """Shards in the order in which a member encodes and sends them: from the one after its own on, its own last.

    So what has to travel is on its way first, and members do not all begin with the same reducer.
    """
    after_own = max((part.index + 1 for part in parts if part.reducer == me), default=0)
    return [*parts[after_own:], *parts[:after_own]]


@dataclass(frozen=True, slots=True)
class Wire:
    """What all members agree on about values: how many there are and how they travel."""

    numels: tuple[int, ...]
    """Values in each fragment."""
    codec: Codec
    """For contributions."""
    mean_codec: Codec
    """For the mean that a reducer sends back."""
    over_senders: bool = False
    """Whether a value's mean is over those who sent it, zeros counting as not sent; else over all contributors."""
    keep_rest: bool = True
    """Whether a reducer adds what its codec left out of a mean to its next one."""
    sends_changes: bool = False
    """Whether members send changes while they are the same (see ``outer.ef21``); rests of others are then void."""
    directed: tuple[tuple[Range, ...], ...] = ()
    """For each fragment the tensors, in order, whose mean is ``radial_directional``; empty if that of none is."""
    bound: float = 0.0
    """So many times the median of all a contribution's weight and norm may be (see ``bounds``); 0 for no bounds."""
    robust: RobustMerge | None = None
    """What is made of the contributions in place of a mean."""

    audits: float = 0.0
    """So many shards of a round members do over, all together, on average; with 0 nobody signs anything."""

    def __post_init__(self) -> None:
        """Refuse means that contradict each other."""
        if self.directed and len(self.directed) != len(self.numels):
            raise ValueError(f"tensors of {len(self.directed)} fragments were given, there are {len(self.numels)}")
        if (self.directed or self.robust) and (self.over_senders or self.sends_changes):
            what = "values that some did not send" if self.over_senders else "changes of pseudo-gradients"
            raise ValueError(f"this merge is made of whole pseudo-gradients and not of {what}")

    def parts(self, key: SyncKey, members: Sequence[PeerId], among: Sequence[PeerId] = ()) -> tuple[Part, ...]:
        """The shards of a fragment in a round with their reducers, some of those ``among`` the members or of all."""
        numel, whole = self.numels[key.fragment], self._directed(key.fragment)
        # Each shard is encoded by itself; that blocks start at the same values in every round is not worth more.
        align = 1 if whole else SHARD_ALIGN
        nbytes = max(framed_nbytes(codec, numel // len(members)) for codec in (self.codec, self.mean_codec))
        most = min(MAX_SHARDS_EACH, max(_SHARDS_EACH_OF_MANY, _SHARDS_OF_ALL // len(self.numels)))
        each = min(most, max(1, nbytes // MIN_LONG_SHARD_BYTES))
        ranges = shards(numel, len(members) * each, min_values=MIN_SHARD_VALUES, align=align, uncut=whole)
        chosen = reducers(tuple(among or members), key, min(len(members), len(ranges)))
        return tuple([Part(i, *bounds, chosen[i * len(chosen) // len(ranges)]) for i, bounds in enumerate(ranges)])

    def directed_in(self, fragment: int, part: Part) -> tuple[Range, ...]:
        """The tensors inside of a shard whose mean is ``radial_directional``, counted from its start."""
        inside = (bounds for bounds in self._directed(fragment) if part.start <= bounds[0] < part.stop)
        return tuple([(start - part.start, stop - part.start) for start, stop in inside])

    def _directed(self, fragment: int) -> tuple[Range, ...]:
        return self.directed[fragment] if self.directed else ()

    def signs(self, numel: int) -> bool:
        """Whether members sign their parts and a reducer its mean of a shard: not if it is too short to be worth it."""
        num_bytes = framed_nbytes(self.codec, numel) + framed_nbytes(self.mean_codec, numel)
        return _SIGNATURES_SHARE * self.audits * num_bytes >= _SIGNATURES_BYTES

    def contribution_limit(self, numel: int, participants_bytes: int) -> int:
        """The longest message that brings a shard of ``numel`` values."""
        return framed_nbytes(self.codec, numel) + participants_bytes + _ENVELOPE_BYTES

    def mean_limit(self, numel: int, num_members: int) -> int:
        """The longest message that brings a mean of ``numel`` values; each member has a bit, and may be bounded."""
        longest = num_members // 8 + 2 * _FINDING_BYTES * num_members
        return framed_nbytes(self.mean_codec, numel) + longest + _ENVELOPE_BYTES

    def longest_contribution(self, max_participants_bytes: int) -> int:
        """The longest contribution to any shard of any round."""
        return self.contribution_limit(max(self.numels), max_participants_bytes)

"""An immutable copy of what peers must agree on. Anchors are never changed in place, so it costs nothing.

Legend: N = values in a fragment.
"""

import functools
import json
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from decentral.outer.rule import OuterState
from decentral.tensors.digest import digest
from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class FragmentState:
    """One fragment's anchor with the outer optimizer's state."""

    round: int
    """The next round of this fragment."""
    anchor_N: Tensor
    outer: OuterState
    digest: str
    """Equal on workers whose next outer step would be equal, bit for bit."""

    @staticmethod
    def of(round: int, anchor_N: Tensor, outer: OuterState) -> "FragmentState":
        """A state with its digest, which costs a pass over the values."""
        num_steps = torch.tensor([float(outer.num_steps)])
        return FragmentState(
            round, anchor_N, outer, digest(anchor_N, *outer.buffers_N, num_steps, _as_values(outer.counted))
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that a newcomer needs: the anchor, then the outer state's buffers."""
        return (self.anchor_N, *self.outer.buffers_N)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All fragments at one moment."""

    step: int
    """Inner steps of its owner at that moment."""
    fragments: tuple[FragmentState, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """The digest of every fragment."""
        return tuple(fragment.digest for fragment in self.fragments)

    @property
    def name(self) -> str:
        """Names the content: two snapshots of one name are equal, so a download may continue from another donor."""
        return combined_digest(self.digests)

    @property
    def rounds(self) -> tuple[int, ...]:
        """The next round of every fragment."""
        return tuple(fragment.round for fragment in self.fragments)


@functools.lru_cache(maxsize=64)
def _as_values(peers: tuple[PeerId, ...]) -> Tensor:
    """Ids as something that can be digested."""
    return torch.tensor(list(json.dumps(peers).encode()), dtype=torch.float32)


def combined_digest(digests: tuple[str, ...]) -> str:
    """One digest for all fragments' digests."""
    if len(digests) == 1:
        return digests[0]
    return blake2b("/".join(digests).encode(), digest_size=8).hexdigest()


def to_bytes(values_N: Tensor) -> memoryview:
    """The little-endian float32 bytes of a tensor, without a copy."""
    return memoryview(values_N.contiguous().numpy().data).cast("B")


def from_bytes(data: bytearray) -> Tensor:
    """The inverse of ``to_bytes``, without a copy."""
    return torch.frombuffer(data, dtype=torch.float32) if data else torch.empty(0)

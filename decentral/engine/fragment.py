"""All that a worker knows of one fragment: its anchor, and what became of the work since. Knows no model and no peer.

Legend: N = values in the fragment. Tensors are never changed in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from decentral.state.snapshot import FragmentState


@dataclass(slots=True)
class Pending:
    """Work of a fragment that no round has counted yet."""

    tokens: int = 0
    steps: int = 0

    def add(self, work: "Pending") -> None:
        """More of it."""
        self.tokens += work.tokens
        self.steps += work.steps


@dataclass(frozen=True, slots=True)
class Taken:
    """A fragment as it was at its launch."""

    state: FragmentState
    delta_N: Callable[[], Tensor]
    """Its pseudo-gradient; waits for the values to come from the model's device. On the clock's second thread alone."""
    tokens: int
    steps: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """Eager updates: what this worker has gone ahead of the anchor by."""

    share: float
    delta_N: Tensor
    """Launched last."""
    buffer_N: Tensor
    """See ``Eager``."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An outer step that the local parameters have not taken in yet."""

    old_N: Tensor
    """The anchor before it."""
    anchor_N: Tensor
    there_N: Tensor
    """The anchor on the model's device."""
    missed: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Fragment:
    """All that is known of one fragment between two anchors."""

    state: FragmentState
    """The anchor, the outer state, and the round that begins with them."""
    base_N: Tensor
    """What the local parameters last went on from: the anchor, unless it was moved since or they are ahead of it."""
    pending: Pending = field(default_factory=Pending)
    launched: Pending = field(default_factory=Pending)
    """Work on its way."""
    arrived: Arrived | None = None
    ahead: Ahead | None = None
    carried_N: Tensor | None = None
    """Eager updates: launched work that no round has counted, which is no longer in the local parameters."""
    launches_diverged: int = 0
    """Launches in a row at which the parameters were not finite."""
    ends: dict[int, str] = field(default_factory=dict)
    """Digests of anchor and outer state after the last rounds."""
    doubtful: bool = False
    """Whether a round may have counted this work without our knowledge: it was saved in an earlier life that went on,
    or brought to a round that was aborted here and may not have been elsewhere. It is good for the very anchor that it
    was done with and no other."""

    def end_round(self, round: int) -> None:
        """A round is finished. Of earlier ones the last two are kept: fragments differ by one at most."""
        self.ends = {number: digest for number, digest in self.ends.items() if number >= round - 1}
        self.ends[round] = self.state.digest

    def copy(self) -> "Fragment":
        """The same by itself, with references to the same tensors."""
        return replace(self, pending=replace(self.pending), launched=replace(self.launched), ends=dict(self.ends))

    def give_back(self, spans: tuple[tuple[int, int], ...] | None = None) -> None:
        """A round did not count what was launched; it enters the next one.

        Args:
            spans: only these ranges were not counted, and their tokens were; ``None`` for everything.
        """
        if spans is None:
            self.pending.add(self.launched)
            self.launched = Pending()
        ahead = self.ahead
        if ahead is None or spans == ():  # the work is still in the parameters, or all of it was counted
            return
        uncounted_N = ahead.delta_N
        if spans is not None:
            uncounted_N = torch.zeros_like(ahead.delta_N)
            for span in (slice(*bounds) for bounds in spans):
                uncounted_N[span] = ahead.delta_N[span]
        self.carried_N = uncounted_N
        self.ahead = replace(ahead, buffer_N=ahead.buffer_N - uncounted_N * ahead.share)

    def skip(self, round: int) -> None:
        """A round ended without a result: the same anchor, the next round.

        Nobody is counted on any more, else a swarm in which all have lost their references would listen for ever.
        """
        state = replace(self.state, round=round + 1)
        if state.outer.counted:
            state = FragmentState.of(state.round, state.anchor_N, replace(state.outer, counted=()))
        self.state = state
        self.end_round(round)

    def lose_work(self) -> None:
        """What is not counted yet is lost, also what is on its way and may come back."""
        self.pending, self.launched = Pending(), Pending()
        self.arrived = self.ahead = self.carried_N = None


@dataclass(frozen=True, slots=True)
class Restored:
    """What a worker has of an earlier life, as its replica wants it."""

    fragments: list[Fragment]
    local_N: list[Tensor]
    """The local parameters."""
    kept_N: list[Tensor | None]
    """What feedback kept."""

    def kept_after(self, same: Sequence[bool], *, exact: bool) -> list[Tensor | None]:
        """What of it is good beside downloaded anchors.

        Args:
            same: whether each fragment's is the very anchor that this was saved with.
            exact: whether what feedback keeps is good for that one only.
        """
        return [
            kept_N if same[fragment] or not (exact or of.doubtful) else None
            for fragment, (of, kept_N) in enumerate(zip(self.fragments, self.kept_N, strict=True))
        ]

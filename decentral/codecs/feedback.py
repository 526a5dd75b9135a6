"""Error feedback: what a lossy codec left out of a contribution is brought again.

Its memory changes only when a round has counted us (``commit``), so an aborted round needs no repair. It knows neither
codecs nor shards: the exchange says what was really sent, values and ranges, however that round was cut.

Legend: N = values in the fragment. All tensors are float32 on the CPU; of those handed over none is changed, but for
what was sent: that is the memory's from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decentral.tensors.blank import blank_like


@dataclass(frozen=True, slots=True)
class Brought:
    """What to encode."""

    values_N: Tensor
    relative_N: Tensor | None = None
    """To encode instead if the members of the round are exactly those counted before (see ``outer.ef21``)."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What of ours was sent and counted."""

    values_N: Tensor
    """As the others decoded them; whoever takes it in may write to it, unless it is what was brought."""
    relative: bool = False
    """Whether it was ``relative_N`` that was encoded."""
    missed: tuple[tuple[int, int], ...] = ()
    """Ranges [start, stop) that were closed without our part."""
    whole: bool = True
    """Whether everybody's values are in every part of the mean."""


class Feedback:
    """No feedback, and the interface of the others. What the codec leaves out is lost; if it is lossless, nothing is.

    Args:
        num_fragments: P.
    """

    sends_changes: ClassVar[bool] = False
    """Whether members that stay the same send how their pseudo-gradients changed."""
    keeps: ClassVar[str] = ""
    """What it keeps of each fragment; empty for nothing. Another one that keeps the same can go on from it."""

    def __init__(self, num_fragments: int) -> None:
        self._kept_N: list[Tensor | None] = [None] * num_fragments

    def weight(self, weight: float) -> float:
        """The weight of a contribution that would have ``weight`` of its own, 0 for none."""
        return float(weight)

    def bring(self, fragment: int, delta_N: Tensor) -> Brought:
        """What to encode in place of the pseudo-gradient ``delta_N`` [N]."""
        return Brought(delta_N)

    def commit(self, fragment: int, sent: Sent) -> None:
        """The round counted what was brought last."""

    def adopted(self) -> None:
        """The anchors were replaced by the swarm's: what others have counted of us since is not known."""

    def forget(self) -> None:
        """Start anew, as a newcomer does."""
        self._kept_N = [None] * len(self._kept_N)

    def remembers(self, fragment: int) -> bool:
        """Whether this worker still has what others count on if it is one of those counted."""
        return True

    def residuals(self) -> tuple[Tensor | None, ...]:
        """What is still to be sent: a tensor [N] for each fragment, ``None`` for nothing."""
        return (None,) * len(self._kept_N)

    def kept(self) -> tuple[Tensor | None, ...]:
        """All that it would go on from after a restart: a tensor [N] for each fragment, ``None`` for nothing."""
        return tuple(self._kept_N)

    def restore(self, kept: Sequence[Tensor | None]) -> None:
        """Go on with what was ``kept`` in an earlier life."""
        self._kept_N = list(kept)


class ErrorFeedback(Feedback):
    r"""Ordinary error feedback (EF14): the residual of the codec goes into the next contribution.

    With pseudo-gradient d, residual e and decay $\beta$::

        c <- beta * e + d
        s <- decode(encode(c))          sent
        e <- c - s                      if the round counted us, else e stays

    With $\beta$ = 1 nothing is lost: the sum of all s plus e equals the sum of all d that were counted, up to rounding
    in float32. Ranges of the fragment that were closed without our part keep their e; the part of d there stays in
    the local parameters and enters the next pseudo-gradient.

    Args:
        num_fragments: P.
        decay: $\beta$, in (0, 1]. Below 1 old residuals fade, as in SparseLoCo, where it is 0.95.

    Raises:
        ValueError: ``decay`` out of range.

    Source: 1-bit SGD (Seide et al. 2014); for pseudo-gradients, with decay, SparseLoCo (arXiv 2508.15706).
    Difference: the residual changes only with a round that counted us, range by range; theirs have no failing rounds.
    """

    keeps: ClassVar[str] = "residual"

    def __init__(self, num_fragments: int, decay: float = 1.0) -> None:
        super().__init__(num_fragments)
        if not 0 < decay <= 1:
            raise ValueError(f"the decay of the residual must be above 0 and at most 1, got {decay}")
        self._decay = decay
        self._brought_N: list[Tensor | None] = [None] * num_fragments

    def bring(self, fragment: int, delta_N: Tensor) -> Brought:
        """Decayed residual plus pseudo-gradient."""
        residual_N = self._kept_N[fragment]
        brought_N = (
            delta_N
            if residual_N is None
            else torch.mul(residual_N, self._decay, out=blank_like(residual_N)).add_(delta_N)
        )
        self._brought_N[fragment] = brought_N
        return Brought(brought_N)

    def commit(self, fragment: int, sent: Sent) -> None:
        """What was brought and not sent is the new residual, except where our part came too late."""
        brought_N, old_N = self._brought_N[fragment], self._kept_N[fragment]
        if brought_N is None:
            raise ValueError(f"nothing was brought for fragment {fragment}")
        sent_N = sent.values_N
        residual_N = torch.sub(brought_N, sent_N, out=blank_like(sent_N) if sent_N is brought_N else sent_N)
        for start, stop in sent.missed:
            residual_N[start:stop] = 0 if old_N is None else old_N[start:stop]
        self._kept_N[fragment], self._brought_N[fragment] = residual_N, None

    def residuals(self) -> tuple[Tensor | None, ...]:
        """The residual of every fragment."""
        return tuple(self._kept_N)


class Ef21(Feedback):
    """A worker's side of EF21: the reference g that its pseudo-gradient d is compared with (see ``outer.ef21``).

    ``c = C(d - g)`` is sent and ``g <- g + c``; in a round that starts afresh ``c = C(d)`` and ``g <- c``.

    The mean over members is plain: weights that change from round to round would make it another mean than that of
    the references. A reference is good for the very anchor that it was kept with and no other: that one's outer state
    says whose references the members count.
    """

    sends_changes: ClassVar[bool] = True
    keeps: ClassVar[str] = "reference"

    def weight(self, weight: float) -> float:
        """The same for everybody who has trained."""
        return 1.0 if weight else 0.0

    def bring(self, fragment: int, delta_N: Tensor) -> Brought:
        """The pseudo-gradient, and its difference from the reference if there is one."""
        reference_N = self._kept_N[fragment]
        return Brought(delta_N, None if reference_N is None else delta_N - reference_N)

    def commit(self, fragment: int, sent: Sent) -> None:
        """The others know us better now; if somebody is missing from the mean, the next round starts afresh."""
        reference_N = self._kept_N[fragment] if sent.relative else None
        new_N = sent.values_N if reference_N is None else reference_N + sent.values_N
        self._kept_N[fragment] = new_N if sent.whole else None

    def adopted(self) -> None:
        """The others may have counted changes that this worker took back."""
        self.forget()

    def remembers(self, fragment: int) -> bool:
        """Whether there is a reference."""
        return self._kept_N[fragment] is not None

"""The contributions to one shard by the members of one round. Pure.

Legend: S = values in the shard.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from decentral.exchange.bounds import Finding, bounded
from decentral.exchange.merge import Range, radial_directional, spread_over_senders, weighted_mean
from decentral.exchange.robust import RobustMerge
from decentral.exchange.wire import seed_of
from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class Entry:
    """What one member brought: ``None`` values when it only listens (weight 0), or when they were left out."""

    weight: float
    values_S: Tensor | None
    digest: bytes = b""
    """Of the part as it came."""


class ShardContributions:
    """Contributions in, weighted mean out, each member once.

    Args:
        members: the participants, in order.
    """

    def __init__(self, members: Sequence[PeerId]) -> None:
        self._members = tuple(members)
        self._awaited = dict.fromkeys(self._members)
        self._entries: dict[PeerId, Entry] = {}

    def enter(self, member: PeerId, entry: Entry) -> None:
        """Enter a contribution; a repeated one (a retry after a lost reply) changes nothing.

        Raises:
            KeyError: not a member.
            ValueError: the weight is negative, not finite, or does not fit the values.
        """
        if member not in self._awaited and member not in self._entries:
            raise KeyError(member)
        if not 0 <= entry.weight < float("inf") or (entry.weight > 0) != (entry.values_S is not None):
            raise ValueError(f"weight {entry.weight} with{'out' if entry.values_S is None else ''} values")
        self._entries.setdefault(member, entry)
        self._awaited.pop(member, None)

    def awaited(self) -> Collection[PeerId]:
        """Members not entered yet, in the participants' order; a view, not to be kept across an await."""
        return self._awaited.keys()

    def contributors(self) -> tuple[int, ...]:
        """Indices among the participants of those whose values are in the mean."""
        return tuple(i for i, m in enumerate(self._members) if m in self._entries and self._entries[m].weight > 0)

    def bounded(
        self,
        factor: float,
        round_weight: float = 0.0,
        rounds: Mapping[PeerId, float] | None = None,
        slack: float = 0.0,
    ) -> tuple["ShardContributions", tuple[Finding, ...]]:
        """All contributions within the bounds that they set each other (see ``bounds.bounded``).

        What goes beyond them is not among them; who brought it still counts as a contributor, lest it be brought again.

        Args:
            factor: see there, like the others.
            round_weight: see there.
            rounds: of which members may bring work; 1 if nothing is said.
            slack: see there.

        Returns:
            They, and what was bounded, by index among the participants.
        """
        indices = self.contributors()
        inside = [self._entries[self._members[i]] for i in indices]
        values = [entry.values_S for entry in inside if entry.values_S is not None]
        each = [1.0 if rounds is None else rounds.get(self._members[i], 1.0) for i in indices]
        # What all have brought decides, honest ones among them: nobody knows beforehand where nobody will look.
        seed = seed_of(b"".join([entry.digest for entry in inside]).hex())
        weights = [entry.weight for entry in inside]
        found = bounded(weights, values, factor, round_weight, each, seed=seed, slack=slack)
        within = ShardContributions(self._members)
        within._entries = dict(self._entries)
        for i, weight, values_S in zip(indices, found.weights, found.values, strict=True):
            member = self._members[i]
            within._entries[member] = replace(self._entries[member], weight=weight, values_S=values_S)
        return within, tuple([replace(finding, index=indices[finding.index]) for finding in found.findings])

    def mean(
        self, *, over_senders: bool = False, directed: Sequence[Range] = (), robust: RobustMerge | None = None
    ) -> Tensor | None:
        r"""$\sum_i w_i x_i / \sum_i w_i$ over the entries, accumulated in float32 in the participants' order.

        Args:
            over_senders: divide each value by the weights of those entries only in which it is not 0: the mean of
                sparse contributions by coordinate, in which one sent by a single member counts in full.
            directed: ranges of the shard, a tensor each, that take ``radial_directional`` instead.
            robust: what is made of them instead of any mean.

        Returns:
            float32 [S], or ``None`` if nobody contributed values.
        """
        entries = (self._entries[self._members[i]] for i in self.contributors())
        inside = [(entry.weight, entry.values_S) for entry in entries if entry.values_S is not None]
        total = sum(weight for weight, _ in inside)
        if total <= 0:
            return None
        shares, values = [weight / total for weight, _ in inside], [values_S for _, values_S in inside]
        if robust is not None:
            return robust(values)
        mean_S = weighted_mean(shares, values)
        if over_senders:
            spread_over_senders(mean_S, shares, values)
        for start, stop in directed:
            radial_directional(mean_S[start:stop], shares, [values_S[start:stop] for values_S in values])
        return mean_S

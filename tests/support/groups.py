"""All groups of a gossip at once, in one pass over the scores: what ``matching.group_of`` finds for one peer."""

from decentral.swarm.matching import rendezvous, score_of
from decentral.types import PeerId, SyncKey


def groups(peers: tuple[PeerId, ...], key: SyncKey, size: int) -> tuple[tuple[PeerId, ...], ...]:
    """Every group, in the order in which they are taken out; see ``matching.group_of``."""
    ranked = [(score_of("group", key, peer), peer) for peer in rendezvous("group", key, peers)]
    formed: list[tuple[PeerId, ...]] = []
    waiting: list[tuple[int, list[PeerId]]] = []
    """Subtries from left to right with who has no group in them: each has a wider one to its right than those after."""
    for place, (score, peer) in enumerate(ranked):
        rest = [peer]
        # The first bit that differs from the next score, from the right: the subtrie that ends here is below it.
        width = (score ^ ranked[place + 1][0]).bit_length() if place + 1 < len(ranked) else 1 << 16
        while waiting and waiting[-1][0] < width:
            rest = waiting.pop()[1] + rest
            if len(rest) >= size:
                formed.append(tuple(rest[:size]))
                rest = rest[size:]
        waiting.append((width, rest))
    remainder = tuple(waiting[0][1]) if waiting else ()
    if len(remainder) == 1 and formed:
        formed[-1] += remainder
        remainder = ()
    return (*formed, remainder) if remainder else tuple(formed)

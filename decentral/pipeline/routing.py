"""The order in which a micro-batch visits the stages, and which replica of each it goes to. Knows no network."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from decentral.pipeline.packets import Load
from decentral.types import PeerId

#: Swaps need two pairs of stages that do not overlap.
_FEWEST_TO_SWAP = 4
#: Of a new measurement in the moving average; the first one counts in full.
_SMOOTHING = 0.2
#: What a micro-batch is taken to cost while nothing was measured, and at least: far below what any stage needs.
_LEAST_S = 1e-3


def stage_order(num_stages: int, index: int, *, swap: bool) -> tuple[int, ...]:
    """The stages in the order in which micro-batch ``index`` of a batch passes them, without the head.

    Args:
        num_stages: at least 1, at least 4 to swap.
        index: every second one is swapped, from 1 on.
        swap: whether the first two and the last two stages change places: 2, 1, 3, ..., S - 2, S, S - 1.

    Raises:
        ValueError: too few stages to swap.

    Source: CheckFree+ (arXiv 2506.15461); odd ones as in the authors' code.
    """
    order = list(range(1, num_stages + 1))
    if not swap:
        return tuple(order)
    if num_stages < _FEWEST_TO_SWAP:
        raise ValueError(f"swaps need at least {_FEWEST_TO_SWAP} stages, got {num_stages}")
    if index % 2:
        order[:2], order[-2:] = order[1::-1], order[:-3:-1]
    return tuple(order)


class Router(Protocol):
    """Chooses among the replicas of a stage."""

    def choose(
        self, stage: int, replicas: Sequence[PeerId], *, slot: int, num_slots: int, batch: int, index: int
    ) -> PeerId:
        """Choose the replica that micro-batch ``index`` of ``batch`` goes to.

        Args:
            stage: 1 or higher.
            replicas: those that may be chosen, distinct, in any order.
            slot: the head's data slot.
            num_slots: slots in the swarm.
            batch: the batch's number in its slot.
            index: the micro-batch's number in its batch.

        Raises:
            ValueError: there are no replicas.
        """
        ...

    def told(self, load: Load) -> None:
        """Learn how busy and how fast a replica is."""
        ...


class Permutation:
    """Random routes that load all replicas alike.

    All heads' micro-batches of a batch number are counted, ``g = index * num_slots + slot``. With R replicas each run
    of R of them is dealt out by a random permutation of its own, so that every replica gets one; heads that see the
    same replicas agree on it without a message. Of ``num_slots * M`` micro-batches no replica gets more than one more
    than another, and all get the same if R divides them.

    Args:
        seed: the run's.

    Source: random pipeline routing of NoLoCo (arXiv 2506.10911, gensyn-ai/noloco). Differences: there every replica
    of a stage sends to one replica of the next, so that R is one number for all stages and a permutation is drawn anew
    for each micro-batch; here a head chooses the whole path, stages may have any number of replicas, and a route
    depends on who is there and not on ranks.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def choose(
        self, stage: int, replicas: Sequence[PeerId], *, slot: int, num_slots: int, batch: int, index: int
    ) -> PeerId:
        """See ``Router``; the same for all who pass the same."""
        _check(stage, replicas)
        block, position = divmod(index * num_slots + slot, len(replicas))
        return sorted(replicas, key=lambda peer: _draw(self._seed, batch, stage, block, peer))[position]

    def told(self, load: Load) -> None:
        """Nothing is made of it."""


class Wiring:
    """Routes by speed: each replica gets micro-batches in proportion to what it is expected to get done.

    Interleaved weighted round robin. A replica's turn is a time: the one with the earliest is chosen, and its turn
    moves on by what a micro-batch is expected to take there: its seconds each, times one more than are queued before
    it, as a moving average. Turns never lie before the last one that was given, so that a newcomer and one that comes
    back are tried at once and owe nobody the past. While nothing is known of a replica it counts as the mean of the
    others.

    Args:
        seed: decides among equals.

    Source: stochastic wiring of SWARM (arXiv 2301.11913), ``balancer.py`` of its code. Differences: there the time
    between request and reply is measured, which includes the network; here replicas tell their queue and their pace,
    so that a head learns of both from every path that passes. Forward and backward go the same path, so that they are
    one choice and need no factor between them. Who failed is left out of ``replicas`` by the head.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._turns: defaultdict[int, dict[PeerId, float]] = defaultdict(dict)
        self._seconds: defaultdict[int, dict[PeerId, float]] = defaultdict(dict)
        self._last: defaultdict[int, float] = defaultdict(float)

    def choose(
        self, stage: int, replicas: Sequence[PeerId], *, slot: int, num_slots: int, batch: int, index: int
    ) -> PeerId:
        """See ``Router``; depends on what was chosen and told before."""
        _check(stage, replicas)
        turns, seconds = self._turns[stage], self._seconds[stage]
        turn, _, peer = min(
            (max(turns.get(peer, 0.0), self._last[stage]), _draw(self._seed, batch, stage, slot, index, peer), peer)
            for peer in replicas
        )
        known = [seconds[peer] for peer in replicas if peer in seconds] or [_LEAST_S]
        self._last[stage] = turn
        turns[peer] = turn + seconds.get(peer, statistics.fmean(known))
        return peer

    def told(self, load: Load) -> None:
        """See ``Router``."""
        seconds = max(load.seconds, _LEAST_S) * (load.queued + 1)
        before = self._seconds[load.stage].setdefault(load.peer, seconds)
        self._seconds[load.stage][load.peer] = before + _SMOOTHING * (seconds - before)


def _check(stage: int, replicas: Sequence[PeerId]) -> None:
    if not replicas:
        raise ValueError(f"stage {stage} has no replica to choose")


def _draw(*parts: int | str) -> bytes:
    """A random number for these parts, the same everywhere."""
    return blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()

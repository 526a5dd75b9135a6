"""What this worker has done so far, for its presence record."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import structs

from decentral.ports.trainer import Steps
from decentral.swarm.presence import Metrics
from decentral.types import PeerId, short_id

_BYTES_PER_VALUE = 4
_MAX_REASON = 160
#: Peers named in one text of a record: 139 of its 200 characters.
_MAX_NAMED = 20
#: A peak is measured over so long at least: shorter ones would be those of buffers, not of the link.
_WINDOW_S = 1.0


class Meter:
    """Counters of one worker since it started; ``metrics`` is what others get to see.

    Args:
        total_numel: values that data-parallel training would exchange at every step.
        version: release of decentral.
        device: where the trainer computes.
    """

    def __init__(self, total_numel: int, version: str, device: str) -> None:
        self.tokens = 0
        self._total_numel = total_numel
        self._seen: dict[str, Any] = structs.asdict(Metrics(version=version, device=device))
        """The record's fields; those that go by the time at which they are asked for are as of then."""
        self._dp_bytes = 0.0
        self._restrained: dict[int, frozenset[PeerId]] = {}
        self._began: float | None = None
        self._sent, self._received = _Flow(), _Flow()
        self._lap = (0.0, 0)
        """When the last round ended and the tokens then."""

    def _set(self, **figures: Any) -> None:
        self._seen.update(figures)

    def _add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._seen[name] += amount

    def start(self, now: float) -> None:
        """Training begins."""
        self._began = now
        self._lap = (now, self.tokens)

    def resume(self, tokens: int, step: int) -> None:
        """So many tokens were trained on in an earlier life, the state of which was saved at ``step``."""
        self.tokens = tokens
        self.saved(step)

    def saved(self, step: int) -> None:
        """What this worker goes on from is on disk as it was at global inner step ``step``."""
        self._set(saved_step=step)

    def trained(self, step: int, steps: Steps, *, num_members: int, waiting_s: float = 0.0) -> None:
        """Inner steps were taken, the last one was ``step``; of their time so much was spent on waiting.

        Data-parallel training would have sent ``2 (n - 1) / n`` times the model in float32 at each of them (ring
        all-reduce, bytes sent by each of n workers).
        """
        self.tokens += steps.report.tokens
        self._set(step=step, loss=steps.report.loss if steps.report.tokens else self._seen["loss"])
        self._add(compute_s=steps.compute_s, data_s=steps.report.data_s, waiting_s=waiting_s)
        self._dp_bytes += 2 * (num_members - 1) / num_members * _BYTES_PER_VALUE * self._total_numel * steps.count

    def synced(self, now: float, *, counted: bool, waiting_s: float, transfer_s: float) -> None:
        """A round ended at the time ``now``; training stood still for so long for others and for moving values."""
        began, tokens = self._lap
        if now > began:
            self._set(tokens_per_s=(self.tokens - tokens) / (now - began))
        self._lap = (now, self.tokens)
        self._add(waiting_s=waiting_s, transfer_s=transfer_s, rounds_in=int(counted), rounds_out=int(not counted))

    def paced(self, delay_steps: int, num_groups: int) -> None:
        """The overlap in use and the launches a round that this worker would like, from now on."""
        self._set(delay_steps=delay_steps, num_groups=num_groups)

    def moved(self, now: float, *, sent_bytes: int, received_bytes: int) -> None:
        """The transport's totals at the time ``now``. To be told about every second, for the peaks."""
        self._sent.reached(now, sent_bytes)
        self._received.reached(now, received_bytes)

    def swapped(self, partners: Sequence[PeerId], spread: float) -> None:
        """Gossip: anchors were swapped with these; a ``spread`` of NaN keeps the last one."""
        self._set(partners=_names(partners), spread=spread if math.isfinite(spread) else self._seen["spread"])

    def stepped_alone(self) -> None:
        """Gossip in rounds: a round ended without a partner."""
        self._set(partners="")
        self._add(rounds_alone=1)

    def unconfirmed(self, count: int) -> None:
        """Gossip: so many more swaps were not confirmed by the other side."""
        self._add(one_sided=count)

    def avoiding(self, peers: Iterable[PeerId]) -> None:
        """Gossip: the peers that are avoided from now on; those named before are no longer, unless named again."""
        self._set(avoids=_names(sorted(peers)))

    def restrained(self, fragment: int, peers: Iterable[PeerId]) -> None:
        """Whose contributions to the last round of a fragment were cut down or left out."""
        self._restrained[fragment] = frozenset(peers)

    def downloaded(self, seconds: float) -> None:
        """A download of the state ended."""
        self._add(transfer_s=seconds)

    def validated(self, round_: int, val_loss: float) -> None:
        """The anchor at the start of a round was validated."""
        if math.isfinite(val_loss):
            self._set(val_round=round_, val_loss=val_loss)

    def explain(self, reason: str) -> None:
        """Why this worker does not contribute; empty if it does."""
        self._set(reason=reason[:_MAX_REASON])

    def metrics(self, now: float) -> Metrics:
        """The counters at the time ``now``."""
        self._set(
            tokens=self.tokens,
            wall_s=0.0 if self._began is None else max(0.0, now - self._began),
            sent_bytes=self._sent.total_bytes,
            received_bytes=self._received.total_bytes,
            peak_sent_bytes_per_s=self._sent.peak_bytes_per_s,
            peak_received_bytes_per_s=self._received.peak_bytes_per_s,
            dp_bytes=int(self._dp_bytes),
            restrained=_names(sorted(frozenset().union(*self._restrained.values()))),
        )
        return Metrics(**self._seen)


class _Flow:
    """Bytes that went one way, and the most of them in any window of a second, or of what lay between two readings."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.peak_bytes_per_s = 0.0
        self._mark: tuple[float, int] | None = None
        """Beginning of the current window and the total then."""

    def reached(self, now: float, total_bytes: int) -> None:
        """The total at the time ``now``."""
        self.total_bytes = total_bytes
        began, before = self._mark or (-math.inf, 0)
        if now - began >= _WINDOW_S:
            self._mark = now, total_bytes
            self.peak_bytes_per_s = max(self.peak_bytes_per_s, (total_bytes - before) / (now - began))


def _names(peers: Sequence[PeerId]) -> str:
    """Short ids with commas; of many peers the first."""
    return ",".join(short_id(peer) for peer in peers[:_MAX_NAMED])

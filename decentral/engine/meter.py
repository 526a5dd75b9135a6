"""What this worker has done so far, for its presence record."""

import math
from collections.abc import Iterable, Sequence

from decentral.ports.trainer import StepReport
from decentral.swarm.presence import Metrics
from decentral.types import PeerId, short_id

_BYTES_PER_VALUE = 4
_MAX_REASON = 160
#: Peers named in one text of a record: 139 of its 200 characters.
_MAX_NAMED = 20


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
        self._version = version
        self._device = device
        self._step = 0
        self._loss = self._val_loss = math.nan
        self._val_round = 0
        self._compute_s = self._waiting_s = self._transfer_s = 0.0
        self._dp_bytes = 0.0
        self._rounds_in = self._rounds_out = 0
        self._tokens_per_s = 0.0
        self._partners = self._avoids = ""
        self._spread = math.nan
        self._rounds_alone = self._one_sided = 0
        self._reason = ""
        self._lap = (0.0, 0)
        """When the last round ended and the tokens then."""

    def start(self, now: float) -> None:
        """Training begins."""
        self._lap = (now, self.tokens)

    def trained(self, step: int, report: StepReport, *, count: int, num_members: int, seconds: float) -> None:
        """Inner steps were taken.

        Data-parallel training would have sent ``2 (n - 1) / n`` times the model in float32 at each of them (ring
        all-reduce, bytes sent by each of n workers).
        """
        self._step = step
        self.tokens += report.tokens
        self._loss = report.loss
        self._compute_s += seconds
        self._dp_bytes += 2 * (num_members - 1) / num_members * _BYTES_PER_VALUE * self._total_numel * count

    def synced(self, now: float, *, counted: bool, waiting_s: float, transfer_s: float) -> None:
        """A round ended at the time ``now``."""
        began, tokens = self._lap
        if now > began:
            self._tokens_per_s = (self.tokens - tokens) / (now - began)
        self._lap = (now, self.tokens)
        self._waiting_s += waiting_s
        self._transfer_s += transfer_s
        self._rounds_in += counted
        self._rounds_out += not counted

    def swapped(self, partners: Sequence[PeerId], spread: float) -> None:
        """Gossip: anchors were swapped with these; a ``spread`` of NaN keeps the last one."""
        self._partners = _names(partners)
        if math.isfinite(spread):
            self._spread = spread

    def stepped_alone(self) -> None:
        """Gossip in rounds: a round ended without a partner."""
        self._partners = ""
        self._rounds_alone += 1

    def unconfirmed(self, count: int) -> None:
        """Gossip: so many more swaps were not confirmed by the other side."""
        self._one_sided += count

    def avoiding(self, peers: Iterable[PeerId]) -> None:
        """Gossip: the peers that are avoided from now on; those named before are no longer, unless named again."""
        self._avoids = _names(sorted(peers))

    def downloaded(self, seconds: float) -> None:
        """A download of the state ended."""
        self._transfer_s += seconds

    def validated(self, round_: int, val_loss: float) -> None:
        """The anchor at the start of a round was validated."""
        if math.isfinite(val_loss):
            self._val_round, self._val_loss = round_, val_loss

    def explain(self, reason: str) -> None:
        """Why this worker does not contribute; empty if it does."""
        self._reason = reason[:_MAX_REASON]

    def metrics(self, *, sent_bytes: int, received_bytes: int) -> Metrics:
        """The counters as of now, with the transport's."""
        return Metrics(
            step=self._step,
            tokens=self.tokens,
            tokens_per_s=self._tokens_per_s,
            loss=self._loss,
            val_loss=self._val_loss,
            val_round=self._val_round,
            compute_s=self._compute_s,
            waiting_s=self._waiting_s,
            transfer_s=self._transfer_s,
            sent_bytes=sent_bytes,
            received_bytes=received_bytes,
            dp_bytes=int(self._dp_bytes),
            rounds_in=self._rounds_in,
            rounds_out=self._rounds_out,
            partners=self._partners,
            spread=self._spread,
            rounds_alone=self._rounds_alone,
            one_sided=self._one_sided,
            avoids=self._avoids,
            reason=self._reason,
            version=self._version,
            device=self._device,
        )


def _names(peers: Sequence[PeerId]) -> str:
    """Short ids with commas; of many peers the first."""
    return ",".join(short_id(peer) for peer in peers[:_MAX_NAMED])

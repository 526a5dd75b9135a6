"""What this worker has done so far, for its presence record."""

import math
from dataclasses import replace

from decentral.ports.trainer import StepReport
from decentral.ports.transport import Traffic
from decentral.swarm.presence import Metrics

_BYTES_PER_VALUE = 4


class Meter:
    """Counters of one worker; ``metrics`` is what others get to see.

    Args:
        total_numel: values that data-parallel training would exchange at every step.
        version: release of decentral.
        device: where the trainer computes.
    """

    def __init__(self, total_numel: int, version: str, device: str) -> None:
        self._total_numel = total_numel
        self._began: float | None = None
        self._tokens_at_began = 0
        self.metrics = Metrics(version=version, device=device)

    def trained(self, step: int, report: StepReport, *, count: int, num_members: int, seconds: float) -> None:
        """Inner steps were taken.

        Data-parallel training would have sent ``2 (n - 1) / n`` times the model in float32 at each of them (ring
        all-reduce, bytes sent by each of n workers).
        """
        m = self.metrics
        ring = 2 * (num_members - 1) / num_members
        self.metrics = replace(
            m,
            step=step,
            tokens=m.tokens + report.tokens,
            loss=report.loss,
            compute_s=m.compute_s + seconds,
            dp_bytes=m.dp_bytes + int(ring * _BYTES_PER_VALUE * self._total_numel * count),
        )

    def synced(self, now: float, *, counted: bool, waiting_s: float, transfer_s: float, traffic: Traffic) -> None:
        """A round ended at the time ``now``."""
        m = self.metrics
        speed = m.tokens_per_s
        if self._began is not None and now > self._began:
            speed = (m.tokens - self._tokens_at_began) / (now - self._began)
        self._began, self._tokens_at_began = now, m.tokens
        self.metrics = replace(
            m,
            tokens_per_s=speed,
            waiting_s=m.waiting_s + waiting_s,
            transfer_s=m.transfer_s + transfer_s,
            sent_bytes=traffic.sent_bytes,
            received_bytes=traffic.received_bytes,
            rounds_in=m.rounds_in + counted,
            rounds_out=m.rounds_out + (not counted),
        )

    def downloaded(self, seconds: float) -> None:
        """A download of the state ended."""
        self.metrics = replace(self.metrics, transfer_s=self.metrics.transfer_s + seconds)

    def validated(self, val_loss: float) -> None:
        """The anchor was validated."""
        if math.isfinite(val_loss):
            self.metrics = replace(self.metrics, val_loss=val_loss)

    def explain(self, reason: str) -> None:
        """Why this worker does not contribute; empty if it does."""
        self.metrics = replace(self.metrics, reason=reason[:160])

    def start(self, now: float) -> None:
        """Training begins."""
        self._began, self._tokens_at_began = now, self.metrics.tokens

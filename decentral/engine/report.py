"""What a worker tells of itself: events for the journal, figures for its presence record."""

import math
from dataclasses import dataclass
from typing import Self

from msgspec.structs import replace

from decentral.engine.meter import Meter
from decentral.engine.options import Parts
from decentral.engine.syncs import Kept, Stepped
from decentral.exchange.api import Excuse, Met, Verdict
from decentral.monitor.events import (
    Avoided,
    Downloading,
    Joined,
    OneSided,
    Paced,
    Pulled,
    Repaired,
    Restrained,
    RolledBack,
    RoundAborted,
    RoundMixed,
    SatOut,
)
from decentral.monitor.figures import download
from decentral.state.download.downloader import Download
from decentral.state.download.sources import Progress
from decentral.swarm.presence import Metrics
from decentral.types import PeerId, SyncKey

#: A download is told of so often at most.
_TELL_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """How long training stood still for a round; what passed during inner steps is not in it."""

    waiting_s: float = 0.0
    """For other workers."""
    transfer_s: float = 0.0
    """While values were moved and applied."""

    @classmethod
    def of(cls, verdict: Verdict, launch_s: float, waited_s: float, landing_s: float) -> Self:
        """For the launch, for the wait at the end, and for the landing, the wait included.

        Of that wait, as much as can be was for moving values.
        """
        moving_s = min(waited_s, verdict.transfer_s)
        return cls(waited_s - moving_s, launch_s + landing_s - waited_s + moving_s)


class Report:
    """Passes on what comes of rounds and downloads.

    Args:
        parts: the journal, which hears of every event; the transport, which counts bytes; the clock.
        meter: keeps the figures.
    """

    def __init__(self, parts: Parts, meter: Meter) -> None:
        self._journal = parts.journal
        self._meter = meter
        self._transport = parts.transport
        self._clock = parts.clock
        self._note = parts.note
        self._avoided: frozenset[PeerId] = frozenset()
        self._pace: Paced | None = None
        self._rollback = ""
        """In words, until the loss is lower than before."""
        self._told_at = parts.clock.monotonic()
        """When a download was last told of, or what came before it."""

    def metrics(self) -> Metrics:
        """This worker's figures as they stand."""
        traffic, now = self._transport.traffic(), self._clock.monotonic()
        self._meter.moved(now, sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes)
        return replace(self._meter.metrics(now), note=self._note() or self._rollback)

    def mixed(self, end: Stepped, *, held: Held = Held(), delay_steps: int = 0, excuse: Excuse | None = None) -> None:
        """A round has ended with a result, which was applied ``delay_steps`` inner steps after its launch."""
        key, verdict, applied, counted = end.key, end.verdict, end.applied, end.judged.counted
        if excuse is None:
            self._meter.explain("" if counted else "the round was closed before our part arrived")
        traffic = self._transport.traffic()
        met = verdict.met or Met()
        self._journal.record(
            RoundMixed(
                round=key.round,
                fragment=key.fragment,
                members=end.judged.mixed.members,
                absent=verdict.absent,
                delta_norm=applied.delta_norm,
                residual_norm=applied.residual_norm,
                sent_bytes=traffic.sent_bytes,
                received_bytes=traffic.received_bytes,
                waiting_s=verdict.waiting_s,
                transfer_s=verdict.transfer_s,
                digest=applied.digest,
                spread=met.spread,
                deadline_s=met.deadline_s,
                held_s=held.waiting_s + held.transfer_s,
                held_waiting_s=held.waiting_s,
                delay_steps=delay_steps,
            )
        )
        self._ended(key, verdict, held, counted=counted)

    def aborted(self, end: Kept, *, held: Held) -> None:
        """A round has ended without a result."""
        key, verdict, aborted = end.key, end.verdict, end.judged.aborted
        self._journal.record(
            RoundAborted(
                round=key.round,
                fragment=key.fragment,
                reason=aborted.reason,
                detail=aborted.detail,
                absent=verdict.absent,
                waiting_s=verdict.waiting_s,
                held_s=held.waiting_s + held.transfer_s,
                held_waiting_s=held.waiting_s,
            )
        )
        self._meter.explain(f"{aborted.reason}: {aborted.detail}")
        self._ended(key, verdict, held, counted=False)

    def paced(self, delay_steps: int, num_groups: int) -> None:
        """The overlap in use and the launches a round that this worker would like; new or as before."""
        pace = Paced(delay_steps, num_groups)
        if pace != self._pace:
            self._pace = pace
            self._journal.record(pace)
            self._meter.paced(delay_steps, num_groups)

    def downloading(self, progress: Progress) -> None:
        """A download is so far; told now and then."""
        now = self._clock.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            left_s = progress.left_s if math.isfinite(progress.left_s) else math.nan
            event = Downloading(progress.received_bytes, progress.total_bytes, progress.num_donors, left_s)
            self._journal.record(event)
            self._meter.explain(download(event.received_bytes, event.total_bytes, event.num_donors, left_s))

    def joined(self, download: Download, seconds: float, residual_norm: float) -> None:
        """This worker has become a member by a download; so much it still had to send."""
        round_ = min(download.head.rounds)
        compared = (download.num_compared, download.passed_by)
        self._journal.record(Joined(download.donor, round_, download.received_bytes, seconds, residual_norm, *compared))

    def repaired(self, download: Download, seconds: float, reason: str) -> None:
        """A member went on from a download."""
        self._meter.downloaded(seconds)
        round_ = min(download.head.rounds)
        self._journal.record(Repaired(download.donor, round_, download.received_bytes, seconds, reason))

    def validated(self, round: int, loss: float, *, best: bool) -> None:
        """The anchor at the start of ``round`` has this loss; none had a lower one if it is the best."""
        self._meter.validated(round, loss)
        if best:
            self._rollback = ""

    def rolled_back(self, event: RolledBack) -> None:
        """This worker goes on from an earlier anchor."""
        self._rollback = f"rolled back to round {event.to_round} in round {event.round}, and has not been better since"
        self._journal.record(event)

    def sat_out(self, key: SyncKey, excuse: Excuse) -> None:
        """This worker had nothing to give in a round."""
        self._journal.record(SatOut(key.round, excuse))
        self._meter.explain(excuse)

    def pulled(self, key: SyncKey, partner: PeerId, spread: float) -> None:
        """Anchors were swapped outside of any round."""
        self._journal.record(Pulled(key.round, key.fragment, partner, spread))
        self._meter.swapped((partner,), spread)

    def _ended(self, key: SyncKey, verdict: Verdict, held: Held, *, counted: bool) -> None:
        self._meter.synced(
            self._clock.monotonic(), counted=counted, waiting_s=held.waiting_s, transfer_s=held.transfer_s
        )
        for each in verdict.restrained:
            kind = each.kind.name.lower()
            self._journal.record(Restrained(key.round, key.fragment, each.peer, kind, each.ratio, each.share))
        self._meter.restrained(key.fragment, (each.peer for each in verdict.restrained))
        if verdict.met is not None:
            self._met(key, verdict.met)

    def _met(self, key: SyncKey, met: Met) -> None:
        """Whom a round of gossip brought together, or did not."""
        if met.partners:
            self._meter.swapped(met.partners, met.spread)
        elif not math.isnan(met.deadline_s):
            self._meter.stepped_alone()
        for peer in met.unconfirmed:
            self._journal.record(OneSided(key.round, key.fragment, peer))
        self._meter.unconfirmed(len(met.unconfirmed))
        for each in met.avoided:
            if each.peer not in self._avoided:
                self._journal.record(Avoided(each.peer, each.reason, each.seconds))
        self._avoided = frozenset(each.peer for each in met.avoided)
        self._meter.avoiding(self._avoided)

"""From workers' journals to a status report: a local run is shown without asking anybody over the network.

Counters are kept by the engine's own ``Meter``, so that they mean what they mean in a presence record.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from decentral.engine.meter import Meter
from decentral.ports.trainer import StepReport, Steps
from decentral.swarm.presence import Presence, State
from decentral.types import PeerId


class Replay:
    """One worker as its journal tells it.

    Args:
        total_numel: values of the model.
        tokens_per_step: of one inner step.
        num_workers: of the swarm, until a round tells how many took part; that of a gossip does not.
        rounds: of the whole run.
        gossip: each worker has an anchor of its own.
    """

    def __init__(
        self, total_numel: int, tokens_per_step: int, num_workers: int, rounds: int, *, gossip: bool = False
    ) -> None:
        self._rounds = rounds
        self._gossip = gossip
        self._avoided: dict[PeerId, float] = {}
        """Until when, in Unix seconds."""
        self._restrained: set[PeerId] = set()
        """In the last round that was mixed."""
        self._total_numel = total_numel
        self._tokens_per_step = max(1, tokens_per_step)
        self._num_members = max(1, num_workers)
        self._meter = Meter(total_numel, "", "")
        self._training = False
        self._overlaps = False
        self._anchors = _Anchors()
        self._presence: Presence | None = None
        self._last_event_at = 0.0

    @property
    def presence(self) -> Presence | None:
        """The worker's record as of its last event; ``None`` before its first."""
        return self._presence and replace(self._presence, metrics=self._meter.metrics(self._last_event_at))

    def age_s(self, wall: float) -> float:
        """Seconds between the last event and the Unix time ``wall``."""
        return max(0.0, wall - self._last_event_at)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take the next event of the journal."""
        time, name = float(event["time"]), event["event"]
        self._last_event_at = time
        if name == "started":
            self._meter = Meter(self._total_numel, event["version"], event["device"])
            self._meter.moved(time, sent_bytes=0, received_bytes=0)
            self._training = self._overlaps = False
            self._anchors = _Anchors()
            self._avoided.clear()
            self._presence = Presence(PeerId(event["peer"]), event["run"], 0, State.JOINING, 0, 0, "")
        elif self._presence is not None:
            self._presence = self._after(self._presence, name, time, event)
            self._meter.avoiding(peer for peer, until in self._avoided.items() if until > time)

    def _after(self, presence: Presence, name: str, time: float, event: Mapping[str, Any]) -> Presence:
        """The record after an event; the meter is brought up to date on the way."""
        meter = self._meter
        if name == "joined":
            self._training = True
            meter.start(time)
            return replace(presence, state=State.TRAINING, round=event["round"])
        if name == "resumed":
            meter.tokens = event["tokens"]
            return replace(presence, state=State.TRAINING, round=event["round"])
        if name == "stretch_done":
            if not self._training:
                self._training = True
                meter.start(time - (event["seconds"] or 0.0))
            self._trained(event)
            state = State.TRAINING if self._overlaps else State.SYNCING
            return replace(presence, state=state, round=event["round"])
        if name == "restrained":
            self._restrained.add(PeerId(event["peer"]))
            meter.restrained(event["fragment"], self._restrained)
        if name == "round_mixed":
            self._restrained.clear()
            meter.restrained(event["fragment"], ())
            counted = presence.peer in event["members"]
            meter.explain("" if counted else "the round was closed before its part arrived")
            if self._gossip:
                self._swapped([peer for peer in event["members"] if peer != presence.peer], event)
            else:
                self._num_members = len(event["members"])
            meter.moved(time, sent_bytes=event["sent_bytes"], received_bytes=event["received_bytes"])
            self._synced(time, event, counted)
            return self._advanced(presence, event, "" if self._gossip else event["digest"])
        if name == "paced":
            self._overlaps = event["delay_steps"] > 0
            meter.paced(event["delay_steps"], event["num_groups"])
        if name == "pulled":
            meter.swapped([event["partner"]], _number(event["spread"]))
        if name == "one_sided":
            meter.unconfirmed(1)
        if name == "avoided":
            self._avoided[event["peer"]] = time + (event["seconds"] or 0.0)
        if name == "round_aborted":
            meter.explain(f"{event['reason']}: {event['detail']}")
            self._synced(time, event, False)
            return self._advanced(presence, event, "")
        if name == "repaired":
            meter.downloaded(event["seconds"] or 0.0)
            meter.explain("")
            self._anchors = _Anchors()
            return replace(presence, state=State.TRAINING, round=event["round"], digest="")
        if name == "validated":
            meter.validated(event["round"], _number(event["val_loss"]))
        if name == "sat_out":
            meter.explain(event["reason"])
        if name == "stopped":
            done = event["round"] >= self._rounds
            return replace(presence, round=event["round"], state=State.DONE if done else State.LEAVING)
        return presence

    def _advanced(self, presence: Presence, event: Mapping[str, Any], digest: str) -> Presence:
        """A fragment is in its next round."""
        self._anchors.replaced(event["fragment"], event["round"] + 1, digest)
        return replace(presence, state=State.TRAINING, round=self._anchors.round, digest=self._anchors.digest())

    def _swapped(self, partners: Sequence[PeerId], event: Mapping[str, Any]) -> None:
        """A round of a gossip ended; one without a deadline had no partner to wait for."""
        if partners:
            self._meter.swapped(partners, _number(event["spread"]))
        elif event["deadline_s"] is not None:
            self._meter.stepped_alone()

    def _trained(self, event: Mapping[str, Any]) -> None:
        report = StepReport(tokens=event["tokens"], loss=_number(event["loss"]), grad_norm=math.nan)
        count = round(event["tokens"] / self._tokens_per_step)
        steps = Steps(count, report, event["seconds"] or 0.0)
        self._meter.trained(event["step"], steps, num_members=self._num_members)

    def _synced(self, time: float, event: Mapping[str, Any], counted: bool) -> None:
        held_s, waiting_s = event["held_s"] or 0.0, event["held_waiting_s"] or 0.0
        self._meter.synced(time, counted=counted, waiting_s=waiting_s, transfer_s=held_s - waiting_s)


class _Anchors:
    """The anchors of all fragments, as far as a journal has told of them."""

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}
        """The next round of every fragment."""
        self._digests: dict[int, dict[int, str]] = {}
        """By the round that began with it, and by fragment."""
        self._all_seen = False

    def replaced(self, fragment: int, round_: int, digest: str) -> None:
        """``round_`` begins with an anchor of this digest, which is empty if it is not known."""
        # Nobody says how many there are; when one comes again, all have been here.
        self._all_seen = self._all_seen or fragment in self._rounds
        self._rounds[fragment] = round_
        self._digests.setdefault(round_, {})[fragment] = digest
        self._digests = {known: digests for known, digests in self._digests.items() if known >= self.round}

    @property
    def round(self) -> int:
        """The earliest that a fragment is in."""
        return min(self._rounds.values())

    def digest(self) -> str:
        """Of all anchors with which the round began; empty while one is unknown."""
        digests = self._digests.get(self.round, {})
        whole = self._all_seen and len(digests) == len(self._rounds) and all(digests.values())
        return "/".join(digests[fragment] for fragment in sorted(digests)) if whole else ""


def _number(value: float | None) -> float:
    """A number of a journal, where ``null`` stands for one that is not finite."""
    return math.nan if value is None else value

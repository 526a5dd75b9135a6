"""What became of a run so far: samples of its status reports, its rounds and what happened. Bounded.

It measures nothing and asks nobody. A sample is a report's totals at a moment; a round is what workers' journals say of
it, or where there is none to read, what two reports in a row tell. Times are Unix seconds and are given.
"""

import math
import re
import secrets
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from msgspec import structs

from decentral.monitor.audit import Line
from decentral.monitor.events import Event
from decentral.monitor.journal import event_name, finite
from decentral.monitor.report import StatusReport, WorkerRow
from decentral.types import PeerId, short_id

#: Of ``History.state``, described in docs/dashboard.md. Raised when a field changes meaning or goes away.
SCHEMA_VERSION = 2
#: When there are more, every second one goes, and from then on they are taken half as often.
_MAX_SAMPLES = 360
#: Between the first ones.
_EVERY_S = 1.0
#: Workers whose losses are kept, one series each; further ones are in the totals alone.
_MAX_SERIES = 128
_MAX_ROUNDS = 200
#: Of each kind; names in one round; characters of a text of somebody's.
_MAX_EVENTS, _MAX_NAMES, _MAX_TEXT = 40, 24, 160

#: Of a journal, what is shown one by one; what comes at every step or batch is not.
_KEPT = frozenset(
    (
        *("started", "joined", "resumed", "repaired", "rolled_back", "sat_out", "stopped", "peer_lost", "paced"),
        *("restrained", "avoided", "one_sided", "saved", "protected", "took_up"),
        *("stage_placed", "stage_lost", "stage_recovered", "recut"),
    )
)
_ROUNDS = (_LAUNCHED, _MIXED, _ABORTED) = ("launched", "round_mixed", "round_aborted")
#: Fields of an event that are peers.
_PEERS = frozenset({"peer", "donor", "donors", "guard", "guards", "owner", "partner"})
#: Of a report's totals, and of its workers together.
_TOTALS = ("round", "tokens", "loss", "val_loss", "tokens_per_s", "sent_bytes", "dp_bytes", "contributing")
_SHARES = ("compute_share", "data_share", "waiting_share", "transfer_share")


@dataclass(slots=True)
class Round:
    """One synchronisation, as those tell it who have launched or ended it."""

    seq: int
    time: float
    """When it was last heard of."""
    round: int
    fragment: int
    """-1 if it is not known."""
    stage: int
    """Of a pipeline; -1 of a whole model."""
    mixed: int = 0
    """Workers that ended it with a result."""
    members: int = 0
    """Of the largest group."""
    flying: set[str] = field(default_factory=set)
    """Short ids of those at whom it is on its way."""
    absent: dict[str, str] = field(default_factory=dict)
    """Short ids of those who were missing, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Those who ended it without a result, and why."""
    held_s: float = 0.0
    """The longest that training stood still for it."""
    delay_steps: int = 0
    spread: float = math.nan


class History:
    """Takes reports and journal lines on any thread, and says what has changed since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._id = secrets.token_hex(4)
        self._seq = 0
        self._report: StatusReport | None = None
        self._sampled_at = 0.0
        self._every_s = _EVERY_S
        self._seqs: list[int] = []
        self._columns: dict[str, list[float | int | None]] = {name: [] for name in ("time", *_TOTALS, "step", *_SHARES)}
        self._losses: dict[PeerId, list[float | None]] = {}
        self._rounds: OrderedDict[tuple[int, int, int], Round] = OrderedDict()
        self._flying: dict[tuple[str, int, int], Round] = {}
        """By worker, fragment and stage."""
        self._events: dict[str, deque[dict[str, Any]]] = {}
        self._tellers: set[PeerId] = set()
        """Whose journals are told here."""

    def sample(self, time: float, report: StatusReport) -> None:
        """Take the newest report; it becomes a sample if the last one is old enough and somebody trains.

        Args:
            time: of the report.
            report: of the swarm; the same one again is no news.
        """
        with self._lock:
            if report is self._report:
                return
            if self._report is not None:
                self._compare(time, self._report, report)
            self._report, self._sampled_at = report, time
            times = self._columns["time"]
            goes_on = report.totals.contributing or (times and self._columns["contributing"][-1])
            if goes_on and (not times or time - (times[-1] or 0) >= self._every_s):
                self._keep(time, report)

    def recall(self, time: float, by: PeerId, row: Mapping[str, float | int | None]) -> None:
        """Take a sample of an earlier life of one worker, before any report is taken.

        Args:
            time: of it.
            by: the worker.
            row: its own figures, by their names in the totals.
        """
        with self._lock:
            self._follow(by)
            loss = row.get("loss")
            self._append(time, row, {} if loss is None else {by: loss})

    def samples(self) -> dict[str, list[float | int | None]]:
        """By name a value of each sample, the newest last; one that is not known is ``None``."""
        with self._lock:
            return {name: list(values) for name, values in self._columns.items()}

    def take(self, line: Line, by: PeerId) -> None:
        """Take an event as the journal of worker ``by`` has it."""
        with self._lock:
            self._tellers.add(by)
            name = str(line["event"])
            if name in _ROUNDS:
                self._went_on(name, line, short_id(by))
            elif name in _KEPT:
                self._happened(name, {**line, "by": short_id(by)})
            if name in ("started", "stopped"):
                for place in [place for place in self._flying if place[0] == short_id(by)]:
                    self._land(place)

    def state(self, since: int = 0) -> dict[str, Any]:
        """All that is known, or of samples, rounds and events those that are newer than ``since``. Plain JSON."""
        with self._lock:
            first = bisect_right(self._seqs, since)
            series = {
                peer: {"id": short_id(peer), "loss": values[first:]}
                for peer, values in self._losses.items()
                if any(value is not None for value in values[first:])
            }
            rounds = [
                {**asdict(each), "flying": sorted(each.flying)} for each in self._rounds.values() if each.seq > since
            ]
            events = [each for kind in self._events.values() for each in kind if each["seq"] > since]
            known = {
                "schema_version": SCHEMA_VERSION,
                "id": self._id,
                "seq": self._seq,
                "time": self._sampled_at,
                "has_journal": bool(self._tellers),
                "status": None if self._report is None else asdict(self._report),
                "samples": {name: values[first:] for name, values in self._columns.items()},
                "losses": series,
                "rounds": rounds,
                "events": sorted(events, key=lambda each: each["seq"]),
            }
        return {name: finite(value) for name, value in known.items()}

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _keep(self, time: float, report: StatusReport) -> None:
        """One more sample."""
        begun = [each for each in report.workers if each.contributes and each.wall_s]
        row: dict[str, float | int | None] = {name: getattr(report.totals, name) for name in _TOTALS}
        row |= {name: sum(getattr(each, name) for each in begun) / len(begun) if begun else None for name in _SHARES}
        row["step"] = max(each.step for each in report.workers)
        for each in report.workers:
            if math.isfinite(each.loss):
                self._follow(each.peer)
        self._append(time, row, {each.peer: each.loss for each in report.workers if each.contributes})

    def _follow(self, peer: PeerId) -> None:
        """Keep a worker's losses from now on, if there is room."""
        if len(self._losses) < _MAX_SERIES:
            self._losses.setdefault(peer, [None] * len(self._seqs))

    def _append(self, time: float, row: Mapping[str, float | int | None], losses: Mapping[PeerId, float]) -> None:
        """One more of everything, of what is not in ``row`` or ``losses`` none; of too many every second one goes."""
        for name, column in self._columns.items():
            column.append(_short(row.get(name)))
        self._columns["time"][-1] = round(time, 1)
        for peer, kept in self._losses.items():
            kept.append(_short(losses.get(peer)))
        self._seqs.append(self._next())
        if len(self._seqs) > _MAX_SAMPLES:
            self._every_s *= 2
            for column in (*self._columns.values(), *self._losses.values()):
                _halve(column)
            _halve(self._seqs)
            self._losses = {peer: kept for peer, kept in self._losses.items() if any(x is not None for x in kept)}

    def _went_on(self, name: str, line: Line, by: str) -> None:
        """A worker has launched a synchronisation, or has ended one, maybe a later one than it launched."""
        number, fragment, stage = (_whole(line.get(key)) for key in ("round", "fragment", "stage"))
        self._land((by, fragment, stage))
        row = self._row(line["time"], number, fragment, stage)
        if name == _LAUNCHED:
            row.flying.add(by)
            self._flying[by, fragment, stage] = row
            return
        members = line.get("members") or ()
        if name == _MIXED:
            row.mixed += 1
            row.members = max(row.members, len(members))
            row.spread = line.get("spread") or math.nan
            row.delay_steps = max(row.delay_steps, _whole(line.get("delay_steps")))
        else:
            row.failed[by] = f"{line.get('reason', '')}: {line.get('detail', '')}"[:_MAX_TEXT]
        row.held_s = max(row.held_s, line.get("held_s") or 0.0)
        for peer, why in (line.get("absent") or ())[: _MAX_NAMES - len(row.absent)]:
            row.absent[short_id(peer)] = str(why)[:_MAX_TEXT]

    def _land(self, place: tuple[str, int, int]) -> None:
        """What a worker had on its way there is no longer."""
        if (row := self._flying.pop(place, None)) is not None:
            row.flying.discard(place[0])
            row.seq = self._next()

    def _row(self, time: float, number: int, fragment: int, stage: int) -> Round:
        """The row of a round, which changes now."""
        key = (number, fragment, stage)
        row = self._rounds.setdefault(key, Round(0, time, *key))
        row.seq, row.time = self._next(), max(row.time, time)
        if len(self._rounds) > _MAX_ROUNDS:
            self._rounds.popitem(last=False)
        return row

    def _happened(self, name: str, line: Mapping[str, Any]) -> None:
        kind = self._events.setdefault(name, deque(maxlen=_MAX_EVENTS))
        shown = {key: _shown(value, is_peer=key in _PEERS) for key, value in line.items()}
        kind.append({**shown, "seq": self._next()})

    def _compare(self, time: float, before: StatusReport, after: StatusReport) -> None:
        """What two reports in a row say that happened, as far as no journal tells it."""
        known = {row.peer: row for row in before.workers}
        savers: list[WorkerRow] = []
        for row in after.workers:
            old = known.get(row.peer)
            if old is None or _why(old) != _why(row):
                why = row.reason or row.note
                line = {"time": time, "event": "changed", "by": row.id, "state": row.state, "reason": why}
                self._happened("changed", line)
            if old is not None and row.peer not in self._tellers:
                self._guess(time, old, row)
                savers += [row] * (row.saved_step > old.saved_step)
        if savers:  # all workers save about the same steps: one event, or nothing else would be seen
            names = [row.id for row in savers[: 1 + _MAX_NAMES]]
            step = max(row.saved_step for row in savers)
            line = {"time": time, "event": "saved", "by": names[0], "others": names[1:], "step": step}
            self._happened("saved", line)

    def _guess(self, time: float, old: WorkerRow, row: WorkerRow) -> None:
        """Of a worker whose journal is not told here; of its rounds only if nobody's is."""
        if not self._tellers and (row.rounds_in > old.rounds_in or row.rounds_out > old.rounds_out):
            ended = self._row(time, row.round - 1, -1, -1)
            if row.rounds_in > old.rounds_in:
                ended.mixed += 1
            else:
                ended.failed[row.id] = row.reason or "it ended without this worker"
        for peer in set(row.restrained) - set(old.restrained):
            self._happened("restrained", {"time": time, "event": "restrained", "by": row.id, "peer": peer})
        if row.recoveries > old.recoveries:
            line = {"time": time, "event": "stage_recovered", "by": row.id, "reason": row.recovery}
            self._happened("stage_recovered", line)


class HistoryJournal:
    """A journal whose events a history takes.

    Args:
        history: takes them.
        wall: the time, seconds since 1970.
        by: the worker whose journal it is.
        more: fields that every event has besides its own.
    """

    def __init__(
        self, history: History, wall: Callable[[], float], by: PeerId, more: Mapping[str, Any] | None = None
    ) -> None:
        self._history, self._wall, self._by, self._more = history, wall, by, dict(more or {})

    def record(self, event: Event) -> None:
        """See ``Journal``."""
        name = event_name(event)
        if name in _KEPT or name in _ROUNDS:
            self._history.take({"time": self._wall(), "event": name, **self._more, **structs.asdict(event)}, self._by)

    def of_stage(self, stage: int) -> "HistoryJournal":
        """See ``StagedJournal``."""
        return HistoryJournal(self._history, self._wall, self._by, {"stage": stage})


def _why(row: WorkerRow) -> str:
    """Why a worker does not contribute, or what is to be looked into, without counts: those are no news."""
    return re.sub(r"\d+", "", row.reason or row.note)


def _shown(value: Any, *, is_peer: bool) -> Any:
    """A field of an event: ids short, texts not long."""
    if isinstance(value, list | tuple):
        return [_shown(item, is_peer=is_peer) for item in value[:_MAX_NAMES]]
    if isinstance(value, str):
        return short_id(PeerId(value)) if is_peer else value[:_MAX_TEXT]
    return value


def _halve(column: list[Any]) -> None:
    """Every second value, the last one among them."""
    column[:] = column[::-2][::-1]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else -1


def _short(value: float | int | None) -> float | int | None:
    """A number with as many digits as a page can show."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None

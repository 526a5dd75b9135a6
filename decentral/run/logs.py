"""Log lines of a worker on stderr: time, level, short id, stage, round, message. Events are told in words."""

import json
import logging
import math
import sys
import time
from functools import singledispatchmethod

from decentral.monitor import events
from decentral.monitor.events import Absent, Event
from decentral.monitor.figures import amount, download, loss, percent, restraint, size
from decentral.monitor.stages import name_of
from decentral.types import PeerId, short_id

logger = logging.getLogger(__name__)

#: Our own names: hivemind renames the standard ones when it is imported.
_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


def install(level: str, format: str) -> "LogJournal":
    """Send everything that decentral logs at ``level`` and above to stderr, and return the journal that tells events.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``text`` or ``json``.
    """
    formatter = _JsonFormatter() if format == "json" else _TextFormatter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger("decentral")
    root.handlers[:] = [handler]
    root.setLevel({name: number for number, name in _LEVELS.items()}[level])
    root.propagate = False
    return LogJournal(formatter)


def quiet() -> "LogJournal":
    """A journal that tells events to whatever logging the program has set up, and sets up nothing."""
    return LogJournal(_TextFormatter())


class _TextFormatter(logging.Formatter):
    """``03:16:01 INFO    a1B2c3 r12 message``."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = ""
        self.stage: int | None = None
        """Of a pipeline, that an event is of."""
        self.round = 0

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = _LEVELS.get(record.levelno, "error").upper()
        stage = "" if self.stage is None else f"s{self.stage} "
        text = f"{moment} {level:7} {self.peer or '-':6} {stage}r{self.round} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(_TextFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": round(record.created, 3),
            "level": _LEVELS.get(record.levelno, "error"),
            "peer": self.peer,
            **({} if self.stage is None else {"stage": self.stage}),
            "round": self.round,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class LogJournal:
    """A journal that tells each event in one log line.

    Args:
        formatter: of the lines.
        stage: of a pipeline, of which the events are.
        me: this worker, if it is known already.
    """

    def __init__(self, formatter: _TextFormatter, stage: int | None = None, me: PeerId | None = None) -> None:
        self._formatter = formatter
        self._stage = stage
        self._me = me or PeerId("")
        self._round = 0
        self._loss = math.nan

    def of_stage(self, stage: int) -> "LogJournal":
        """A journal of one stage of a pipeline, whose lines say so."""
        return LogJournal(self._formatter, stage, self._me)

    def record(self, event: Event) -> None:
        """Log ``event``."""
        self._round = getattr(event, "round", self._round)
        self._formatter.round, self._formatter.stage = self._round, self._stage
        self._tell(event)
        self._formatter.stage = None

    @singledispatchmethod
    def _tell(self, event: Event) -> None:
        logger.debug("%s", event)

    @_tell.register
    def _(self, event: events.Started) -> None:
        self._me = event.peer
        self._formatter.peer = short_id(event.peer)
        logger.info("run %s, decentral %s on %s, peer %s", event.run, event.version, event.device, event.peer)

    @_tell.register
    def _(self, event: events.Downloading) -> None:
        logger.info("%s", download(event.received_bytes, event.total_bytes, event.num_donors, event.left_s))

    @_tell.register
    def _(self, event: events.Joined) -> None:
        logger.info(
            "downloaded the weights of round %d from %s: %s in %.1f s%s",
            event.round,
            short_id(event.donor),
            size(event.downloaded_bytes),
            event.seconds,
            _compared(event),
        )

    @_tell.register
    def _(self, event: events.StretchDone) -> None:
        self._loss = event.loss
        speed = event.tokens / event.seconds if event.seconds > 0 else 0.0
        logger.debug("step %d: loss %s, %s tokens/s", event.step, loss(event.loss), amount(speed))

    @_tell.register
    def _(self, event: events.RoundMixed) -> None:
        logger.info(
            "%s, loss %s, sent %s, waited %.1f s, moved for %.1f s%s",
            self._mixing(event),
            loss(self._loss),
            size(event.sent_bytes),
            event.waiting_s,
            event.transfer_s,
            _without(event.absent),
        )

    def _mixing(self, event: events.RoundMixed) -> str:
        """With whom a round was mixed."""
        others = [short_id(peer) for peer in event.members if peer != self._me]
        if others and not math.isnan(event.spread):
            return f"swapped with {' and '.join(others)}, spread {percent(event.spread)}"
        if not others and not math.isnan(event.deadline_s):
            return f"stepped alone, for no partner came within {event.deadline_s:.1f} s"
        if not others and not event.absent:
            return "stepped alone"
        return f"mixed {len(event.members)} of {len(event.members) + len(event.absent)} workers"

    @_tell.register
    def _(self, event: events.Pulled) -> None:
        logger.info("swapped anchors with %s, spread %s", short_id(event.partner), percent(event.spread))

    @_tell.register
    def _(self, event: events.OneSided) -> None:
        logger.warning("%s did not confirm the swap: it may not have its half of it", short_id(event.peer))

    @_tell.register
    def _(self, event: events.Avoided) -> None:
        logger.warning("avoids %s for %.0f s: %s", short_id(event.peer), event.seconds, event.reason)

    @_tell.register
    def _(self, event: events.Restrained) -> None:
        what = restraint(event.kind, event.ratio)
        logger.warning("what %s brought to round %d %s", short_id(event.peer), event.round, what)

    @_tell.register
    def _(self, event: events.RoundAborted) -> None:
        logger.warning(
            "not mixed (%s)%s%s; the work stays and enters the next round",
            event.reason,
            f": {event.detail}" if event.detail else "",
            _without(event.absent),
        )

    @_tell.register
    def _(self, event: events.Repaired) -> None:
        logger.info(
            "took over the weights of %s (%s): %s in %.1f s",
            short_id(event.donor),
            event.reason,
            size(event.downloaded_bytes),
            event.seconds,
        )

    @_tell.register
    def _(self, event: events.Validated) -> None:
        logger.info("validation loss %s", loss(event.val_loss))

    @_tell.register
    def _(self, event: events.RolledBack) -> None:
        logger.warning(
            "rolled back to the anchor of round %d (validation loss %s): %s",
            event.to_round,
            loss(event.val_loss),
            event.reason,
        )

    @_tell.register
    def _(self, event: events.SatOut) -> None:
        logger.warning("sits out: %s", event.reason)

    @_tell.register
    def _(self, event: events.StagePlaced) -> None:
        donors = f" of {' and '.join(short_id(peer) for peer in event.donors)}" if event.donors else ""
        logger.info(
            "holds %s from step %d on (%s%s): %s in %.1f s",
            name_of(event.stage),
            event.step,
            event.source,
            donors,
            size(event.downloaded_bytes),
            event.seconds,
        )

    @_tell.register
    def _(self, event: events.Recut) -> None:
        stages = ", ".join(str(stop - first) for first, stop in event.spans)
        if event.problem:
            logger.warning("the blocks stay where they are, at step %d: %s", event.step, event.problem)
        else:
            logger.info(
                "cut %d at step %d: stages of %s blocks, %d of which have moved, in %.1f s",
                event.number,
                event.step,
                stages,
                event.num_moved,
                event.seconds,
            )

    @_tell.register
    def _(self, event: events.StageLost) -> None:
        logger.warning(
            "nobody holds %s any more, at step %d, loss %s", name_of(event.stage), event.step, loss(event.loss)
        )

    @_tell.register
    def _(self, event: events.StageRecovered) -> None:
        logger.info(
            "%s is back at step %d (%s), loss %s before and %s after, %.1f s",
            name_of(event.stage),
            event.step,
            event.source,
            loss(event.loss_before),
            loss(event.loss_after),
            event.seconds,
        )

    @_tell.register
    def _(self, event: events.Resent) -> None:
        # Of a batch there may be as many as it has; that a stage is lost is told by itself.
        logger.debug("sends micro-batch %d of batch %d again: %s", event.index, event.batch, event.reason)

    @_tell.register
    def _(self, event: events.PeerSeen) -> None:
        logger.info("worker %s is here", short_id(event.peer))

    @_tell.register
    def _(self, event: events.PeerLost) -> None:
        logger.info("worker %s is gone: %s", short_id(event.peer), event.reason)

    @_tell.register
    def _(self, event: events.Saved) -> None:
        logger.info("saved %s", event.path)

    @_tell.register
    def _(self, event: events.Resumed) -> None:
        dropped = f", leaves {event.dropped_steps} steps out that may count already" if event.dropped_steps else ""
        anew = f"; anew: {'; '.join(event.anew)}" if event.anew else ""
        logger.info("goes on from step %d with %d steps of local work%s%s", event.step, event.work_steps, dropped, anew)

    @_tell.register
    def _(self, event: events.Protected) -> None:
        logger.debug("%d others keep what this worker alone has at step %d", len(event.guards), event.step)

    @_tell.register
    def _(self, event: events.TookUp) -> None:
        used = f"; it {event.problem}" if event.problem else ": inner optimizer, data position and random state go on"
        logger.info("has what worker %s left at step %d%s", short_id(event.owner), event.step, used)

    @_tell.register
    def _(self, event: events.Stopped) -> None:
        logger.info("stopped (%s) after %s tokens", event.reason, amount(event.tokens))


def _without(absent: Absent) -> str:
    """Who was not in a round, and why."""
    named: list[tuple[PeerId, str]] = sorted(absent)[:4]
    if not named:
        return ""
    more = f" and {len(absent) - len(named)} more" if len(absent) > len(named) else ""
    return f"; without {', '.join(f'{short_id(peer)} ({why})' for peer, why in named)}{more}"


def _compared(event: events.Joined) -> str:
    """With whose weights those of a newcomer were compared; empty where all have the same."""
    if event.num_compared is None:
        return ""
    if not event.num_compared:
        return ", compared with nobody's: too few answered"
    far = ", ".join(map(short_id, event.passed_by))
    return f", compared with those of {event.num_compared} others" + (
        f"; far from most are those of {far}" if far else ""
    )

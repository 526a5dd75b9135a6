"""Where events go: a file of JSON lines in a run, a list in tests and simulation.

A journal never disturbs training: ``record`` does not raise, whatever the disk does. What could not be written is
counted, and the count is written as soon as writing works again.
"""

import json
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import structs

from decentral.errors import ConfigError
from decentral.monitor.events import Event
from decentral.monitor.rotation import BoundedFile, Follower, tail


class Journal(Protocol):
    """Takes events in the order in which they happen."""

    def record(self, event: Event) -> None:
        """Keep ``event``. Never raises."""
        ...


class MemoryJournal:
    """A list of events, for tests and simulation."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        """Append ``event`` to ``events``."""
        self.events.append(event)


class StagedJournal(Journal, Protocol):
    """A journal that tells the stages of a pipeline apart."""

    def of_stage(self, stage: int) -> Journal:
        """A journal of one stage of a pipeline, to the same place: its events say of which stage they are."""
        ...


class FanOut:
    """Passes every event on to several journals."""

    def __init__(self, *journals: StagedJournal) -> None:
        self._journals = journals

    def record(self, event: Event) -> None:
        """Pass ``event`` on."""
        for journal in self._journals:
            journal.record(event)

    def of_stage(self, stage: int) -> Journal:
        """See ``StagedJournal``."""
        staged = [journal.of_stage(stage) for journal in self._journals]

        def record(event: Event) -> None:
            for journal in staged:
                journal.record(event)

        return _OfStage(record)


class JsonLinesJournal:
    """One JSON object a line, appended and handed to the operating system at once.

    Each line has ``time`` (Unix seconds by this machine's clock), ``event`` (its name, such as ``round_mixed``) and
    the event's fields; a float that is not finite is ``null``. After a failed write, the next line that succeeds is
    preceded by ``{"event": "dropped", "count": n}``. A line torn by a full disk or a kill never swallows its successor.

    Args:
        path: the file; its folders are created.
        wall: Unix time in seconds, for people.
        max_bytes: of this file and the full ones beside it; the oldest are thrown away (see ``rotation``).

    Raises:
        ConfigError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path, wall: Callable[[], float], max_bytes: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = BoundedFile(path, max_bytes)
            self._torn = _ends_in_mid_line(path)
        except OSError as err:
            raise ConfigError(
                f"Cannot write the journal {path}: {err.strerror or err}.",
                hint="Choose a folder you may write to with --out.",
            ) from err
        self._one_at_a_time = threading.Lock()
        self._wall = wall
        self._unreported = 0
        self.dropped = 0
        """Events that could not be written."""

    def record(self, event: Event) -> None:
        """Append ``event``; on failure count it in ``dropped``."""
        self._append(event, {})

    def of_stage(self, stage: int) -> Journal:
        """See ``StagedJournal``: its lines have ``stage`` as well."""
        return _OfStage(lambda event: self._append(event, {"stage": stage}))

    def _append(self, event: Event, more: dict[str, Any]) -> None:
        line = _line(self._wall(), event_name(event), more | structs.asdict(event))
        with self._one_at_a_time:
            dropped = _line(self._wall(), "dropped", {"count": self._unreported}) if self._unreported else b""
            data = b"\n" * self._torn + dropped + line
            try:
                written = self._file.write(data)
            except (OSError, ValueError):  # ValueError: recorded after close
                written = 0
            if written == len(data):
                self._torn, self._unreported = False, 0
                return
            self._torn = self._torn or written > 0
            self._unreported += 1
            self.dropped += 1

    def close(self) -> None:
        """Close the file. Idempotent; later events count as dropped."""
        self._file.close()


class _OfStage:
    """Part of another journal."""

    def __init__(self, record: Callable[[Event], None]) -> None:
        self._record = record

    def record(self, event: Event) -> None:
        """See ``Journal``."""
        self._record(event)


def event_name(event: Event) -> str:
    """The name of an event in the journal: its class in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def last_events(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """The last events of a journal that nobody writes, of so many bytes at most; torn lines are left out.

    Raises:
        OSError: it cannot be read.
    """
    return [event for event in map(_parse, tail(path, max_bytes)) if event is not None]


class JournalReader:
    """Reads a journal that may still be written, the full files of it first.

    Args:
        path: the file that is written, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._follower = Follower(path)

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call as dictionaries. A torn line is left out, an unfinished one is for later."""
        return [event for event in map(_parse, self._follower.lines()) if event is not None]


def finite(value: Any) -> Any:
    """``value`` with every float that is not finite replaced by ``None``: strict JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def _line(time: float, name: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"time": round(time, 3), "event": name, **finite(fields)}, allow_nan=False).encode() + b"\n"


def _ends_in_mid_line(path: Path) -> bool:
    """Whether the last line of the file, if there is any, lacks its end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # torn by a kill or a full disk
        return None
    return event if isinstance(event, dict) and {"time", "event"} <= event.keys() else None

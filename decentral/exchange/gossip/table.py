"""A host's table: who sits at it with what, until it is closed and everybody has the answer.

Guests may come before the host has finished its own steps; their values wait here. A guest stays for as long as it
said and no longer, so that nobody waits beyond its own deadline.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from decentral.exchange.gossip.swap import Share
from decentral.types import PeerId


@dataclass(slots=True)
class Seat:
    """A guest and what it brought."""

    share: Share
    serial: int
    since: float
    until: float
    """The guest does not wait beyond this moment."""
    asking: bool = False
    """Whether a call of the guest is being held."""
    asked_at: float = 0.0
    """When the last one ended."""


class Table:
    """One fragment's guests."""

    def __init__(self) -> None:
        self.seats: dict[PeerId, Seat] = {}
        self.promised: set[PeerId] = set()
        """Those who were told to come, and whose values are not here yet."""
        self.answers: dict[tuple[PeerId, int], bytes] = {}
        """By guest and serial, once the table is closed."""
        self.fetched: set[PeerId] = set()
        """Guests to whom an answer was sent."""
        self.own: bytes | None = None
        """The host's own pseudo-gradient, once it is at home; empty if it only listens."""
        self.given: dict[PeerId, int] = {}
        """Guests to whom it was sent, with the serials of their visits."""
        self._changed = asyncio.Event()
        self._laid = asyncio.Event()
        self._closed = asyncio.Event()

    def sit(self, seat: Seat) -> None:
        """A guest takes a seat."""
        self.seats[seat.share.peer] = seat
        self.promised.discard(seat.share.peer)
        self.stir()

    def promise(self, peer: PeerId) -> None:
        """Keep a seat for a peer that comes if it is told to."""
        if peer not in self.seats:
            self.promised.add(peer)
            self.stir()

    @property
    def guests(self) -> set[PeerId]:
        """Those who are here or on their way."""
        return self.seats.keys() | self.promised

    def stir(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()

    async def changed(self) -> None:
        """Return when somebody has sat down, or something else has changed, since the last time."""
        await self._changed.wait()
        self._changed.clear()

    def present(self, now: float, grace_s: float) -> list[Seat]:
        """The guests that still ask for an answer, in order of peer id."""
        seats = [seat for _, seat in sorted(self.seats.items())]
        return [seat for seat in seats if now < seat.until and (seat.asking or now - seat.asked_at < grace_s)]

    def tidy(self, now: float, grace_s: float) -> None:
        """Forget the guests that have gone."""
        self.seats = {seat.share.peer: seat for seat in self.present(now, grace_s)}

    def lay(self, own: bytes) -> None:
        """The host is at home, with what it brings itself."""
        self.own = own
        self._laid.set()

    async def laid(self, timeout_s: float) -> None:
        """Return when the host is at home, or after ``timeout_s``."""
        await _happened(self._laid, timeout_s)

    def close(self, answers: dict[tuple[PeerId, int], bytes]) -> None:
        """Everybody who is held gets its answer."""
        self.answers = answers
        self.seats = {}
        self._closed.set()

    async def closed(self, timeout_s: float) -> None:
        """Return when the table is closed, or after ``timeout_s``."""
        await _happened(self._closed, timeout_s)


async def _happened(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()

"""Fetching the swarm's state: from many donors at once, of one content, checked by digest, to an end in any case.

How it goes on is in ``transfer``, what donors are asked in ``questions``.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decentral.errors import DecentralError, FrameError, MismatchError, TransportError, UnreachableError
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.download.filling import Filling
from decentral.state.download.pieces import Cut, Head
from decentral.state.download.questions import Questions
from decentral.state.download.transfer import Report, Transfer
from decentral.state.snapshot import Snapshot
from decentral.swarm.timing import Timing
from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class Download:
    """A finished download."""

    donor: PeerId
    """Who gave the last part of it."""
    head: Head
    snapshot: Snapshot
    received_bytes: int
    """Of all pieces that came, also of those that were of no use."""
    num_compared: int | None = None
    """With the states of so many other donors it was compared, where no two need hold the same."""
    passed_by: tuple[PeerId, ...] = ()
    """Donors whose states were far from most others', in order."""


@dataclass(frozen=True, slots=True)
class NoDownload:
    """Why nobody could give the state."""

    why: str
    """In words, donor by donor."""
    other_model: bool = False
    """Whether a donor said that it trains another model."""

    def __str__(self) -> str:
        return self.why

    def error(self) -> DecentralError:
        """What to say to the user of a worker that cannot do without."""
        if self.other_model:
            return MismatchError(
                f"this worker's model is not the one that the swarm trains: {self}",
                hint="Share parameters of the same names and shapes as the others, and treat buffers as they do.",
            )
        return UnreachableError(
            f"nobody in the swarm could hand over the current state: {self}",
            hint="`decentral status ADDR` shows who is in it.",
        )


class Downloader:
    """Fetches the state of the swarm, one download at a time.

    Args:
        transport: to the donors.
        layout: signature of the cut of this worker's model.
        numels: values in each fragment.
        num_buffers: tensors of the outer rule's state of a fragment.
        timing: bounds for every call.
        clock: for the time, and its second thread for digests.
        secret: where no two workers need hold the same, what this one alone knows: the states of donors are compared
            at positions drawn by it (``comparison``).
    """

    def __init__(
        self,
        transport: Transport,
        layout: str,
        numels: Sequence[int],
        num_buffers: int,
        timing: Timing,
        clock: Clock,
        secret: bytes | None = None,
    ) -> None:
        self._questions = Questions(transport, layout, Cut(numels, 1 + num_buffers), timing)
        self._clock = clock
        self._secret = secret
        self._kept: dict[int, Filling] = {}
        """By fragment, what came in a download that failed."""

    async def heads(self, donors: Sequence[PeerId]) -> Mapping[PeerId, Head]:
        """What each donor has; those that do not answer are missing."""

        async def ask(donor: PeerId) -> tuple[PeerId, Head] | None:
            with contextlib.suppress(TransportError, FrameError):
                return donor, await self._questions.head(donor)
            return None

        answers = await asyncio.gather(*map(ask, donors))
        return dict(answer for answer in answers if answer is not None)

    async def fetch(
        self, donors: Sequence[PeerId], have: Snapshot | None = None, report: Report | None = None
    ) -> Download | NoDownload:
        """Download what the first donor has that answers, and is not far from most others; all that have the same help.

        Args:
            donors: best first.
            have: a state that is here already: what is equal in it is not fetched.
            report: told how far it is, after every piece.

        Returns:
            The state, or why nobody could give it.
        """
        return await self._download(donors, have, report, newest=False)

    async def fetch_newest(
        self, donors: Sequence[PeerId], have: Snapshot | None = None, report: Report | None = None
    ) -> Download | NoDownload:
        """Download, of every fragment, the state of the highest round that a donor has or that is here.

        Of several of one round it is that which most have, and of those that of the highest digest: workers that ask
        each other come to the same. Arguments and result are those of ``fetch``.
        """
        return await self._download(donors, have, report, newest=True)

    async def _download(
        self, donors: Sequence[PeerId], have: Snapshot | None, report: Report | None, *, newest: bool
    ) -> Download | NoDownload:
        secret = None if newest else self._secret
        transfer = Transfer(
            self._questions, self._clock, donors, have, report, self._kept, newest=newest, secret=secret
        )
        done = await transfer.run()
        if done is None:
            return NoDownload(transfer.problems or "there is no donor", transfer.other_model)
        self._kept.clear()
        head, snapshot = done
        passed_by = tuple(sorted(transfer.passed_by))
        return Download(transfer.donor, head, snapshot, transfer.received_bytes, transfer.num_compared, passed_by)

"""Which stage a worker that comes to a pipeline should hold: it asks any member, and members answer alike."""

from collections.abc import Sequence
from typing import Final

import msgspec

from decentral.errors import TransportError, UnreachableError
from decentral.pipeline.assignment import Member, neediest
from decentral.pipeline.holders import Holders
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.placement import CutInForce
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import UNREADABLE, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

PLACE: Final = "place"
_SPARE_ANSWER: Final = -1
#: A joiner that was given a stage counts as its holder for so long, whatever it says of itself.
_GRANT_S: Final = 60.0


class Places:
    """Asks and answers.

    Args:
        transport: to the others.
        holders: who holds what.
        clock: for the time.
        options: of the pipeline.
        cut: the stages there are.
        timing: bounds of a call.
    """

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        clock: Clock,
        options: PipelineOptions,
        cut: CutInForce,
        timing: Timing,
    ) -> None:
        self._transport = transport
        self._holders = holders
        self._clock = clock
        self._options = options
        self._cut = cut
        self._timing = timing
        self._granted: dict[PeerId, tuple[int, float]] = {}

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(PLACE, self._on_place, max_request_bytes=0)

    async def ask(self, peers: Sequence[PeerId]) -> int | None:
        """Where this worker is needed; ``None`` for nowhere.

        Raises:
            UnreachableError: none of the peers answers.
        """
        problem = "nobody was asked"
        for peer in peers:
            try:
                timeout_s = self._timing.call_timeout_s(0)
                reply = await self._transport.call(peer, PLACE, b"", timeout_s=timeout_s, max_reply_bytes=16)
                stage = msgspec.msgpack.decode(reply, type=int)
            except (TransportError, *UNREADABLE) as err:
                problem = str(err)
                continue
            return stage if 0 <= stage <= self._cut.num_stages else None
        raise UnreachableError(
            f"nobody in the swarm could say which stage needs this worker: {problem}",
            hint="`decentral status ADDR` shows who is in it; --stage K takes one without asking.",
        )

    async def _on_place(self, sender: PeerId, request: bytes) -> bytes:
        """A joiner asks for a stage; several at once get different ones."""
        now = self._clock.monotonic()
        self._granted = {peer: grant for peer, grant in self._granted.items() if grant[1] > now}
        members = [member for member in self._holders.members() if member.peer != sender]
        placed = {member.peer for member in members if member.holds or member.takes}
        expected = [
            Member(peer, frozenset(), frozenset({stage}), frozenset(), 0)
            for peer, (stage, _) in self._granted.items()
            if peer not in placed and peer != sender
        ]
        others = [member for member in members if member.peer not in self._granted or member.peer in placed]
        stage = neediest([*others, *expected], self._cut.num_stages, self._options.num_replicas)
        # Whoever comes back to stages that nobody holds agrees with the others first: see ``agreement``.
        waits = not placed and self._holders.is_coming_back()
        if stage is None or waits or self._options.moves or self._holders.is_over():
            return to_wire(_SPARE_ANSWER)
        self._granted[sender] = stage, now + _GRANT_S
        return to_wire(stage)

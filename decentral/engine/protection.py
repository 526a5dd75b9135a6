"""What a worker alone has, in the memory of others: given to guards after each save, taken up by those who come anew.

The swarm has the anchor; this is about the trainer's own state (``WorkerState.trainer``). Who keeps what for whom is
``state.guard``; here it is decided what is given, and when somebody takes up what a lost worker left.
"""

import io
from collections.abc import Sequence
from typing import Any

from decentral.engine.capture import load_trainer_state
from decentral.engine.options import Parts
from decentral.monitor.events import Protected, TookUp
from decentral.ports.trainer import Model, Stateful
from decentral.state.checkpoints.checkpoint import TrainerStateError, read_trainer, write_trainer
from decentral.state.guard import Guard, Protector, claim
from decentral.state.worker_state import WorkerState
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId

#: A trainer's state may have so many bytes for each value of the model, and so many besides: AdamW's takes eight, and
#: whatever is larger by far is no trainer's of this model.
_BYTES_A_VALUE, _BYTES_BESIDES = 32, 64 << 20


class Protection:
    """One worker's part in it.

    Args:
        parts: how many are to keep its state, and how much it keeps for others.
        roster: who lives.
        timing: bounds of calls.
        numel: values of the model.
    """

    def __init__(self, parts: Parts, roster: Roster, timing: Timing, numel: int) -> None:
        self._parts = parts
        self._timing = timing
        self._max_bytes = _BYTES_A_VALUE * numel + _BYTES_BESIDES
        self._guard = Guard(parts.transport, roster, parts.clock, parts.guard_bytes)
        self._protector = Protector(parts.transport, roster, parts.clock, timing, parts.protect, self._told)

    async def start(self) -> None:
        """Begin to keep what others give."""
        await self._guard.start()

    async def run(self) -> None:
        """Give what is offered, until cancelled; nothing of a worker that does not ask for it."""
        if self._parts.protect:
            await self._protector.run()

    def offer(self, state: WorkerState) -> None:
        """There is a newer state; what of it this worker alone has is given to its guards beside the training."""
        if state.trainer:
            self._protector.offer(state.step, lambda: _packed(state.trainer))

    async def take_up(self, peers: Sequence[PeerId]) -> bool:
        """A worker that comes without a state of its own goes on from what a lost one left, if it has asked for that.

        Whoever is protected protects: it is asked for by ``protect``. What cannot be used is as if it were not there.

        Returns:
            Whether the trainer goes on from it.
        """
        model, parts = self._parts.model, self._parts
        if not parts.protect or not isinstance(model, Stateful):
            return False
        found = await claim(parts.transport, peers, self._timing, parts.clock, max_bytes=self._max_bytes)
        if found is None:
            return False
        problem = await parts.clock.run(lambda: _load(model, parts.device, found.data))
        parts.journal.record(TookUp(found.owner, found.guard, found.step, len(found.data), problem))
        return not problem

    def _told(self, step: int, size: int, seconds: float, guards: Sequence[PeerId]) -> None:
        self._parts.journal.record(Protected(step, size, seconds, tuple(guards)))


def _packed(trainer: Any) -> bytes:
    """The bytes of a trainer's state; none of one that nothing reads back without running code."""
    file = io.BytesIO()
    try:
        write_trainer(file, trainer)
    except TrainerStateError:  # told by the first save
        return b""
    return file.getvalue()


def _load(model: Model, device: str, data: bytearray) -> str:
    """Set the trainer to a state that a peer has given; in words why it cannot be used, which is no fault of its."""
    try:
        load_trainer_state(model, device, read_trainer(io.BytesIO(data)))
    except Exception as err:  # whatever somebody's bytes make of a trainer
        return f"cannot be used: {err}"
    return ""

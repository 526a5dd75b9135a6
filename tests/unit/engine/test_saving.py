"""When a worker's state is saved: by steps, by the clock, when asked, when the anchor is the best; and how often."""

import asyncio
import gc
import math
import weakref
from itertools import pairwise
from typing import Any

from decentral.codecs.codec import make_codec
from decentral.engine.options import Parts, RunOptions
from decentral.engine.worker import Worker
from decentral.monitor.events import Saved
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.local_steps import LocalSteps
from decentral.sim.loop import run
from decentral.sim.trainer import ToyProblem
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.state.worker_state import WorkerState, Written

FP32, PEER = make_codec("fp32"), peer_id(0)
STEP_S = 0.1


class Life:
    """One worker alone, and what it saves."""

    def __init__(self, every: Every, *, rounds: int = 4, aside_s: float = 0.0, **options: Any) -> None:
        self.states: list[WorkerState] = []
        self.restored: list[WorkerState] = []
        """What it goes on from, if anything; taken out when it begins."""
        self.times: list[float] = []
        self.journal = MemoryJournal()
        self._every, self._aside_s = every, aside_s
        self._options = RunOptions(
            "run", b"{}", rounds, SyncPlan(10), DiLoCo(lr=0.7, momentum=0.0), FP32, FP32, **options
        )

    def live(self, asked_at_s: tuple[float, ...] = ()) -> None:
        """Play it to its end; somebody asks for a save at these times."""
        run(self._play(asked_at_s), until_s=1e4)

    async def _play(self, asked_at_s: tuple[float, ...]) -> None:
        world = World(0, machines={PEER: Machine(aside_s=self._aside_s)})
        self._is_back = bool(self.restored)

        async def main(peer: SimPeer) -> None:
            self.worker = worker = self._worker(peer)
            await (worker.resume() if self._is_back else worker.found())
            running = asyncio.create_task(worker.run(asyncio.Event()))
            for at_s in asked_at_s:
                await asyncio.sleep(at_s - peer.clock.monotonic())
                await worker.save_now()
            await running
            await worker.keep()

        world.start(PEER, main)
        await world.ended()

    def _worker(self, peer: SimPeer) -> Worker:
        trainer = ToyProblem(seed=1, num_workers=1, momentum=0.5).trainer(0, peer.clock.charge, step_s=STEP_S)
        return Worker(
            self._options,
            Parts(
                peer.transport,
                peer.directory,
                peer.clock,
                peer.identity,
                trainer,
                LocalSteps(trainer, peer.clock),
                self.journal,
                restored=self.restored.pop() if self.restored else None,
                save=self._save,
                save_every=self._every,
            ),
        )

    def _save(self, state: WorkerState) -> Written:
        self.states.append(state)
        self.times.append(asyncio.get_running_loop().time())
        return Written(f"state-{len(self.states)}", 100)


def test_saves_by_steps_are_of_just_these_steps_and_the_last_one_of_the_end() -> None:
    life = Life(Every(steps=7))
    life.live()
    assert [state.step for state in life.states] == [7, 14, 21, 28, 35, 40]
    assert [state.closed for state in life.states] == [False] * 5 + [True]
    saved = [event for event in life.journal.events if isinstance(event, Saved)]
    assert [(event.path, event.step, event.nbytes) for event in saved] == [
        (f"state-{number}", state.step, 100) for number, state in enumerate(life.states, 1)
    ]


def test_saves_by_the_clock_come_within_a_round() -> None:
    life = Life(Every(seconds=0.35), rounds=6)
    life.live()
    assert len(life.states) > 3
    assert all(state.tokens == 32 * state.step for state in life.states)
    assert all(state.trainer for state in life.states)


def test_those_who_save_together_do_so_at_multiples_of_a_power_of_two_within_a_round() -> None:
    """Also if rounds are longer than what was asked for: what is lost is the interval, not a round."""
    life = Life(Every(seconds=0.45, together=True))
    life.live()
    assert [state.step for state in life.states[:-1]] == list(range(4, 41, 4))
    counted = Life(Every(steps=7, together=True))
    counted.live()
    assert [state.step for state in counted.states] == [7, 14, 21, 28, 35, 40]


def test_writing_takes_a_tenth_of_the_time_at_most() -> None:
    life = Life(Every(steps=1), rounds=30, aside_s=0.2)
    life.live()
    times = life.times[:-1]
    assert len(times) > 3
    # Each takes the 0.2 s of the piece of work that it is made by.
    assert all(later - earlier > 1.9 for earlier, later in pairwise(times))


def test_whoever_asks_has_a_state_at_once_and_nobody_waits_for_ever() -> None:
    life = Life(Every())
    life.live(asked_at_s=(1.25, 2.05, 1e3))
    *asked, end = life.states
    assert [math.ceil(state.step * STEP_S) for state in asked[:2]] == [2, 3], "after the steps under way"
    assert [state.closed for state in life.states] == [False, False, True, True]
    assert (end.step, end.digest) == (40, asked[-1].digest)


def test_what_was_read_from_disk_is_let_go_when_training_begins() -> None:
    before, after = Life(Every(steps=7)), Life(Every())
    before.live()
    after.restored.append(before.states[1])
    before.states.clear()
    read = [weakref.ref(value) for value in after.restored[0].own.values()]
    after.live()
    gc.collect()
    assert read
    assert [each() for each in read] == [None] * len(read)
    assert after.states[-1].step == 40


def test_the_best_anchor_is_saved_with_its_loss() -> None:
    life = Life(Every(), rounds=5, eval_every_rounds=1)
    life.live()
    losses = [state.val_loss for state in life.states[:-1]]
    assert len(losses) > 2
    assert all(later < earlier for earlier, later in pairwise(losses))

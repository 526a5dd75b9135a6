"""An anchor that is moved between two outer steps: the work since the last one is what it was, and nothing is lost."""

import math
import threading

import pytest
import torch

from decentral.codecs.feedback import Feedback
from decentral.engine.replica import Continuation, Replica
from decentral.outer.rule import Mixed, OuterState
from decentral.state.snapshot import Snapshot
from decentral.tensors.layout import Layout
from decentral.types import SyncKey
from tests.support.training import train
from tests.unit.engine.test_replica import FIRST, ME, Descent, anchors, apply, founded, launch, mixed, state

SHIFT = torch.tensor([10.0, 20.0, 30.0])


def moved(mix_alpha: float = 0.0) -> tuple[Replica, Descent]:
    """Two inner steps of 1, and a move in between."""
    replica, trainer = founded(mix_alpha=mix_alpha)
    train(replica, 0, 1)
    replica.move(0, SHIFT)
    train(replica, 1, 1)
    return replica, trainer


def test_a_move_changes_the_anchor_its_digest_and_nothing_else() -> None:
    replica, trainer = founded()
    train(replica, 0, 1)
    before = replica.snapshot(1)
    replica.move(0, SHIFT)
    after = replica.snapshot(1)
    assert anchors(replica) == [18.0, 29.0, 34.0]
    assert trainer.flat() == [7.0, 8.0, 3.0]
    assert after.rounds == before.rounds
    assert after.digests != before.digests
    assert after.fragments[0].outer == before.fragments[0].outer
    assert before.fragments[0].anchor_N.tolist() == [8.0, 9.0, 4.0], "snapshots never change"
    held = replica.anchor(0)
    assert held is not None
    assert (held[0], held[1].tolist()) == (after.digests[0], [18.0, 29.0, 34.0])


def test_the_pseudo_gradient_is_what_it_was() -> None:
    replica, _ = moved()
    mine = launch(replica, FIRST)
    assert (mine.delta_N.tolist(), mine.weight) == ([2.0] * 3, 20.0)
    assert mine.base.anchor_N.tolist() == [18.0, 29.0, 34.0]
    assert mine.base.digest == replica.snapshot(2).digests[0]


def test_the_outer_step_starts_from_the_moved_anchor_and_the_parameters_follow() -> None:
    replica, trainer = moved()
    launch(replica, FIRST)
    replica.move(0, -SHIFT / 2)
    # First step of Nesterov: anchor - 0.5 * (1 + 0.5) * delta.
    apply(replica, FIRST, mixed(4.0, 4.0, 4.0), None)
    assert anchors(replica) == trainer.flat() == [13.0 - 3.0, 19.0 - 3.0, 19.0 - 3.0]
    train(replica, 2, 1)
    assert launch(replica, SyncKey(1, 0)).delta_N.tolist() == [1.0] * 3


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_what_is_kept_of_the_parameters_follows_the_move(alpha: float) -> None:
    """Else the next pseudo-gradient would contain the move with the sign reversed, and undo a part of it."""
    replica, trainer = founded(mix_alpha=alpha)
    still, still_trainer = founded(mix_alpha=alpha)
    for one in (replica, still):
        train(one, 0, 2)
        launch(one, FIRST)
        train(one, 2, 2)
    replica.move(0, SHIFT)
    for one in (replica, still):
        apply(one, FIRST, mixed(4.0, 4.0, 4.0), None)
    assert (torch.tensor(trainer.flat()) - torch.tensor(still_trainer.flat())).tolist() == SHIFT.tolist()
    assert launch(replica, SyncKey(1, 0)).delta_N.tolist() == launch(still, SyncKey(1, 0)).delta_N.tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_missed_ranges_keep_their_work_after_a_move(alpha: float) -> None:
    replica, trainer = moved(alpha)
    launch(replica, FIRST)
    apply(replica, FIRST, mixed(4.0, 4.0, 4.0, missed=((1, 3),)), None)
    assert anchors(replica) == [15.0, 26.0, 31.0]
    assert trainer.flat()[1:] == [24.0, 29.0], "two steps below the new anchor"
    assert trainer.flat()[0] == 15.0 + alpha * (16.0 - 15.0)


def test_adopt_after_a_move() -> None:
    replica, trainer = moved()
    replica.adopt(Snapshot(40, (state(100.0, 200.0, 300.0),)))
    assert anchors(replica) == [100.0, 200.0, 300.0]
    assert trainer.flat() == [98.0, 198.0, 298.0]
    assert launch(replica, SyncKey(2, 0)).delta_N.tolist() == [2.0] * 3


def test_going_back_to_the_anchor_goes_to_the_moved_one() -> None:
    replica, trainer = moved()
    trainer.values["layers.0"][0] = math.nan
    assert launch(replica, FIRST).weight == 0.0
    assert trainer.flat() == anchors(replica) == [18.0, 29.0, 34.0]
    train(replica, 2, 1)
    assert launch(replica, SyncKey(1, 0)).delta_N.tolist() == [1.0] * 3


def test_a_move_while_it_goes_back_to_the_anchor_is_no_work() -> None:
    replica, trainer = founded()
    load = trainer.load

    def load_slowly(parameters: dict[str, torch.Tensor]) -> None:
        load(parameters)
        replica.move(0, SHIFT)

    trainer.load = load_slowly  # type: ignore[method-assign,assignment]
    replica.reset()
    trainer.load = load  # type: ignore[method-assign]
    train(replica, 0, 1)
    assert launch(replica, FIRST).delta_N.tolist() == [1.0] * 3
    assert anchors(replica) == [18.0, 29.0, 34.0]


def test_a_round_without_result_and_a_jump_keep_the_move_and_the_work() -> None:
    replica, _ = moved()
    launch(replica, FIRST)
    replica.give_back(FIRST)
    replica.skip(FIRST)
    replica.jump(9)
    assert replica.snapshot(0).rounds == (9,)
    assert anchors(replica) == [18.0, 29.0, 34.0]
    mine = launch(replica, SyncKey(9, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([2.0] * 3, 20.0)


def test_validation_is_of_the_moved_anchor() -> None:
    replica, trainer = moved()
    assert replica.validate()[1] == 18.0 + 29.0 + 34.0
    assert trainer.flat() == [6.0, 7.0, 2.0]


class Sum:
    """An outer rule that adds 1 to every anchor."""

    buffers, num_buffers = (), 0

    def init(self, anchor_N: torch.Tensor) -> OuterState:
        return OuterState((), 0)

    def step(self, anchor_N: torch.Tensor, mixed: Mixed, outer: OuterState) -> tuple[torch.Tensor, OuterState]:
        return anchor_N + 1.0, OuterState((), outer.num_steps + 1)


def test_moves_and_outer_steps_at_once_lose_nothing() -> None:
    trainer = Descent()
    replica = Replica(trainer, Layout.of(trainer.values), Sum(), Feedback(1), Continuation(), ME)
    replica.found((0,))
    num = 300
    start = threading.Barrier(3)

    def move() -> None:
        start.wait()
        for _ in range(num):
            replica.move(0, torch.ones(3))

    movers = [threading.Thread(target=move) for _ in range(2)]
    for mover in movers:
        mover.start()
    start.wait()
    for round_ in range(num):
        key = SyncKey(round_, 0)
        mine = launch(replica, key)
        assert mine.delta_N.tolist() == [0.0] * 3, "it has not trained"
        apply(replica, key, mixed(0.0, 0.0, 0.0), None)
    for mover in movers:
        mover.join()
    assert anchors(replica) == [8.0 + 3 * num, 9.0 + 3 * num, 4.0 + 3 * num]
    assert replica.snapshot(0).rounds == (num,)

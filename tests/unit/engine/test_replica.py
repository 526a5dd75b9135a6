"""The arithmetic between anchors, with numbers that can be checked by hand."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from decentral.codecs.feedback import ErrorFeedback, Feedback
from decentral.engine.replica import Applied, Continuation, Replica
from decentral.exchange.api import Contribution, Excuse
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed, OuterState
from decentral.ports.trainer import StepReport
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.tensors.layout import Layout
from decentral.types import PeerId, SyncKey
from tests.support.training import train

ME = PeerId("me")
FIRST = SyncKey(0, 0)


class Descent:
    """Every step takes 1 from every value and has 10 tokens."""

    def __init__(self) -> None:
        self.values = {"layers.0": torch.tensor([8.0, 9.0]), "layers.1": torch.tensor([[4.0]])}

    def parameters(self) -> Mapping[str, Tensor]:
        return self.values

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        for name, value in parameters.items():
            self.values[name].copy_(value)

    def train_steps(self, first_step: int, count: int) -> StepReport:
        for value in self.values.values():
            value -= count
        return StepReport(tokens=10 * count, loss=1.0, grad_norm=1.0)

    def validate(self) -> float:
        return float(sum(value.sum() for value in self.values.values()))

    def flat(self) -> list[float]:
        return [x for value in self.values.values() for x in value.flatten().tolist()]


def founded(num_fragments: int = 1, mix_alpha: float = 0.0, eager: Eager | None = None) -> tuple[Replica, Descent]:
    trainer = Descent()
    replica = Replica(
        trainer,
        Layout.of(trainer.values, num_fragments),
        DiLoCo(lr=0.5, momentum=0.5),
        Feedback(num_fragments),
        Continuation(mix_alpha, eager),
        ME,
    )
    assert not replica.has_state
    replica.found((0,) * num_fragments)
    assert replica.has_state
    return replica, trainer


def launch(replica: Replica, key: SyncKey, share: float = 1.0) -> Contribution:
    """As the engine does, without an exchange beside the training."""
    mine = replica.bring(key, replica.take(key, share))
    if mine.excuse is Excuse.NOT_FINITE:
        replica.reset()
    return mine


def apply(replica: Replica, key: SyncKey, outcome: Mixed, sent_N: Tensor | None) -> Applied:
    """Take the outer step and its result in."""
    applied = replica.step(key, outcome, sent_N)
    replica.land(key.fragment)
    return applied


def mixed(*delta: float, missed: tuple[tuple[int, int], ...] = ()) -> Mixed:
    return Mixed(torch.tensor(delta), (ME,), missed=missed)


def anchors(replica: Replica) -> list[float]:
    return [x for value in replica.anchors().values() for x in value.flatten().tolist()]


def state(*anchor: float, momentum: float = 0.0, num_steps: int = 2, round_: int = 2) -> FragmentState:
    anchor_N = torch.tensor(anchor)
    return FragmentState.of(round_, anchor_N, OuterState((torch.full_like(anchor_N, momentum),), num_steps))


def test_the_founder_starts_from_its_trainer() -> None:
    replica, trainer = founded()
    assert anchors(replica) == trainer.flat() == [8.0, 9.0, 4.0]
    snapshot = replica.snapshot(0)
    assert (snapshot.step, snapshot.rounds, snapshot.fragments[0].outer.num_steps) == (0, (0,), 0)
    train(replica, 0, 1)
    assert anchors(replica) == [8.0, 9.0, 4.0], "the anchor is no view of the parameters"


def test_launch_takes_anchor_minus_local_and_its_tokens() -> None:
    replica, _ = founded()
    train(replica, 0, 2)
    train(replica, 2, 1)
    assert replica.pending_steps == 3
    mine = launch(replica, FIRST)
    assert mine.delta_N.tolist() == [3.0, 3.0, 3.0]
    assert (mine.weight, mine.base.digest, mine.base.num_steps) == (30.0, replica.snapshot(3).digests[0], 0)
    assert replica.pending_steps == 0


def test_apply_takes_the_outer_step() -> None:
    replica, trainer = founded()
    train(replica, 0, 3)
    launch(replica, FIRST)
    before = replica.snapshot(3)
    applied = apply(replica, FIRST, mixed(2.0, 4.0, -8.0), None)
    # First step of Nesterov: anchor - 0.5 * (1 + 0.5) * delta.
    assert anchors(replica) == trainer.flat() == [6.5, 6.0, 10.0]
    after = replica.snapshot(3)
    assert after.rounds == (1,)
    assert after.fragments[0].outer.num_steps == 1
    assert after.fragments[0].outer.buffers_N[0].tolist() == [2.0, 4.0, -8.0]
    assert (applied.delta_norm, applied.residual_norm) == (pytest.approx(84**0.5), 0.0)
    assert applied.digest == after.digests[0] == after.fragments[0].digest != before.digests[0]
    assert before.fragments[0].anchor_N.tolist() == [8.0, 9.0, 4.0], "snapshots never change"
    # Second step: momentum 0.5 * m + d, anchor - 0.5 * (d + 0.5 * momentum).
    apply(replica, SyncKey(1, 0), mixed(2.0, 2.0, 2.0), None)
    assert anchors(replica) == [6.5 - 1.75, 6.0 - 2.0, 10.0 + 0.5 - 1.0]


def test_steps_that_the_new_anchor_replaces_weigh_nothing() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    launch(replica, FIRST)
    train(replica, 2, 5)
    apply(replica, FIRST, mixed(4.0, 4.0, 4.0), None)
    assert trainer.flat() == anchors(replica)
    train(replica, 7, 1)
    assert launch(replica, SyncKey(1, 0)).weight == 10.0, "of one step, and one step is in it"


def test_apply_keeps_a_share_of_the_steps_taken_meanwhile() -> None:
    replica, trainer = founded(mix_alpha=0.25)
    train(replica, 0, 2)
    launch(replica, FIRST)
    train(replica, 2, 2)
    apply(replica, FIRST, mixed(4.0, 4.0, 4.0), None)
    assert anchors(replica) == [5.0, 6.0, 1.0]
    # 0.25 of local (8 - 4, ...) and 0.75 of the anchor.
    assert trainer.flat() == [4.75, 5.75, 0.75]
    assert replica.pending_steps == 2


def test_ranges_that_missed_our_part_move_along_with_the_anchor() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    launch(replica, FIRST)
    apply(replica, FIRST, mixed(4.0, 4.0, 4.0, missed=((1, 3),)), None)
    assert anchors(replica) == [5.0, 6.0, 1.0]
    assert trainer.flat() == [5.0, 4.0, -1.0], "two steps below the new anchor, as below the old one"


def test_what_was_given_back_enters_the_next_round_with_its_weight() -> None:
    replica, _ = founded()
    train(replica, 0, 2)
    base = launch(replica, FIRST).base.digest
    train(replica, 2, 1)
    replica.give_back(FIRST)
    replica.skip(FIRST)
    assert replica.pending_steps == 3
    assert replica.snapshot(3).rounds == (1,)
    mine = launch(replica, SyncKey(1, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([3.0, 3.0, 3.0], 30.0)
    assert mine.base.digest == base, "a skipped round leaves the anchor and its digest"
    replica.give_back(SyncKey(1, 0))
    replica.give_back(SyncKey(1, 0))
    assert launch(replica, SyncKey(2, 0)).weight == 30.0, "nothing is given back twice"


def test_fragments_are_apart() -> None:
    replica, trainer = founded(num_fragments=2)
    train(replica, 0, 2)
    assert launch(replica, SyncKey(0, 1)).delta_N.tolist() == [2.0]
    apply(replica, SyncKey(0, 1), mixed(4.0), None)
    assert trainer.flat() == [6.0, 7.0, 1.0]
    train(replica, 2, 1)
    mine = launch(replica, SyncKey(0, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([3.0, 3.0], 30.0)
    assert replica.pending_steps == 1
    assert replica.snapshot(3).rounds == (0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite_go_back_to_the_anchor(value: float) -> None:
    replica, trainer = founded()
    train(replica, 0, 3)
    trainer.values["layers.1"].fill_(value)
    mine = launch(replica, FIRST)
    assert (mine.delta_N.tolist(), mine.weight) == ([0.0, 0.0, 0.0], 0.0)
    assert trainer.flat() == anchors(replica) == [8.0, 9.0, 4.0]
    assert replica.pending_steps == 0


def test_lost_steps_give_no_weight_even_if_the_round_is_aborted() -> None:
    replica, trainer = founded(num_fragments=2)
    train(replica, 0, 3)
    launch(replica, SyncKey(0, 0))
    trainer.values["layers.1"].fill_(math.nan)
    assert launch(replica, SyncKey(0, 1)).weight == 0.0
    for fragment in (0, 1):
        replica.give_back(SyncKey(0, fragment))
    train(replica, 3, 1)
    for fragment in (0, 1):
        mine = launch(replica, SyncKey(1, fragment))
        assert (mine.weight, set(mine.delta_N.tolist())) == (10.0, {1.0})


def test_adopt_moves_uncounted_work_along() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    replica.adopt(Snapshot(40, (state(100.0, 200.0, 300.0, momentum=1.0),)))
    assert anchors(replica) == [100.0, 200.0, 300.0]
    assert trainer.flat() == [98.0, 198.0, 298.0]
    mine = launch(replica, SyncKey(2, 0))
    assert (mine.delta_N.tolist(), mine.weight, mine.base.num_steps) == ([2.0, 2.0, 2.0], 20.0, 2)
    assert replica.snapshot(40).rounds == (2,)


def test_adopt_drops_work_that_others_may_have_counted() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    launch(replica, FIRST)
    replica.give_back(FIRST, uncertain=True)
    replica.skip(FIRST)
    train(replica, 2, 1)
    replica.adopt(Snapshot(40, (state(100.0, 200.0, 300.0),)))
    assert trainer.flat() == [100.0, 200.0, 300.0]
    assert launch(replica, SyncKey(2, 0)).weight == 0.0
    train(replica, 40, 1)
    replica.adopt(Snapshot(50, (state(0.0, 0.0, 0.0),)))
    assert trainer.flat() == [-1.0, -1.0, -1.0], "later work is certain again"


def test_a_round_from_the_same_anchor_takes_all_doubt_away() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    launch(replica, FIRST)
    replica.give_back(FIRST, uncertain=True)
    replica.skip(FIRST)
    apply(replica, SyncKey(1, 0), mixed(1.0, 1.0, 1.0), None)
    replica.give_back(SyncKey(1, 0))
    train(replica, 2, 1)
    local = trainer.flat()
    moved = [after - before for before, after in zip(anchors(replica), (100.0, 200.0, 300.0), strict=True)]
    replica.adopt(Snapshot(40, (state(100.0, 200.0, 300.0),)))
    assert trainer.flat() == [value + by for value, by in zip(local, moved, strict=True)]


def test_what_was_left_out_of_doubtful_work_is_dropped_with_it() -> None:
    trainer = Descent()
    replica = Replica(
        trainer, Layout.of(trainer.values), DiLoCo(lr=1.0, momentum=0.0), ErrorFeedback(1), Continuation(), ME
    )
    replica.found((0,))
    train(replica, 0, 2)
    launch(replica, FIRST)
    apply(replica, FIRST, mixed(2.0, 1.0, 2.0), torch.tensor([2.0, 1.0, 2.0]))
    replica.give_back(FIRST, ())
    train(replica, 2, 1)
    launch(replica, SyncKey(1, 0))
    replica.give_back(SyncKey(1, 0), uncertain=True)
    replica.adopt(Snapshot(40, (state(100.0, 200.0, 300.0),)))
    assert replica.kept == (None,)


def test_adopt_of_a_newcomer_takes_the_anchor_as_it_is() -> None:
    trainer = Descent()
    replica = Replica(trainer, Layout.of(trainer.values), DiLoCo(), Feedback(1), Continuation(), ME)
    replica.adopt(Snapshot(40, (state(1.0, 2.0, 3.0),)))
    assert replica.has_state
    assert trainer.flat() == anchors(replica) == [1.0, 2.0, 3.0]
    assert replica.pending_steps == 0


def test_adopt_drops_work_that_is_not_finite() -> None:
    replica, trainer = founded()
    train(replica, 0, 2)
    trainer.values["layers.0"][0] = math.nan
    replica.adopt(Snapshot(40, (state(1.0, 2.0, 3.0),)))
    assert trainer.flat() == [1.0, 2.0, 3.0]
    assert replica.pending_steps == 0


def test_adopt_without_uncounted_work_takes_the_anchor_even_if_the_parameters_differ() -> None:
    replica, trainer = founded()
    trainer.train_steps(0, 5)
    replica.adopt(Snapshot(40, (state(1.0, 2.0, 3.0),)))
    assert trainer.flat() == [1.0, 2.0, 3.0]


def test_validation_is_of_the_anchors_and_keeps_the_local_parameters() -> None:
    replica, trainer = founded(num_fragments=2)
    train(replica, 0, 3)
    snapshot, loss = replica.validate()
    assert (snapshot.name, loss) == (replica.snapshot(0).name, 21.0)
    assert trainer.flat() == [5.0, 6.0, 1.0]
    assert replica.pending_steps == 3


def test_a_validation_that_fails_keeps_the_local_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, trainer = founded()
    train(replica, 0, 3)

    def fail() -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer, "validate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        replica.validate()
    assert trainer.flat() == [5.0, 6.0, 1.0]
    monkeypatch.setattr(trainer, "validate", lambda: math.inf)
    assert replica.validate()[1] == math.inf


def test_error_feedback_keeps_what_was_not_sent_until_the_next_launch() -> None:
    trainer = Descent()
    replica = Replica(
        trainer, Layout.of(trainer.values), DiLoCo(lr=1.0, momentum=0.0), ErrorFeedback(1), Continuation(), ME
    )
    replica.found((0,))
    train(replica, 0, 2)
    assert launch(replica, FIRST).delta_N.tolist() == [2.0, 2.0, 2.0]
    assert replica.kept == (None,)
    applied = apply(replica, FIRST, mixed(2.0, 1.0, 2.0), torch.tensor([2.0, 1.0, 2.0]))
    assert (anchors(replica), applied.residual_norm) == ([6.0, 8.0, 2.0], 1.0)
    assert [value.tolist() for value in replica.kept if value is not None] == [[0.0, 1.0, 0.0]]
    assert replica.residual_norm == 1.0
    train(replica, 2, 1)
    assert launch(replica, SyncKey(1, 0)).delta_N.tolist() == [1.0, 2.0, 1.0]
    replica.give_back(SyncKey(1, 0))
    replica.skip(SyncKey(1, 0))
    train(replica, 3, 1)
    mine = launch(replica, SyncKey(2, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([2.0, 3.0, 2.0], 20.0), "the work of both, the residual once"


def test_values_that_are_not_finite_take_the_residual_along() -> None:
    trainer = Descent()
    feedback = ErrorFeedback(1)
    replica = Replica(trainer, Layout.of(trainer.values), DiLoCo(), feedback, Continuation(), ME)
    replica.found((0,))
    feedback.restore([torch.full((3,), math.inf)])
    train(replica, 0, 1)
    mine = launch(replica, FIRST)
    assert (mine.weight, mine.delta_N.tolist(), replica.rounds_diverged) == (0.0, [0.0] * 3, 1)
    assert replica.kept == (None,)
    train(replica, 1, 1)
    assert launch(replica, FIRST).delta_N.tolist() == [1.0] * 3
    assert replica.rounds_diverged == 0

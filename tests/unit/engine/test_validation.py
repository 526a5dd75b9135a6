"""A run that went wrong says so: by the validation losses of one worker, against its own history."""

import asyncio
import math
from itertools import chain, repeat

import pytest
import torch

from decentral.engine.replica import Replica
from decentral.engine.validation import LossHistory
from decentral.errors import DivergedError
from decentral.monitor.events import Event, RolledBack, RoundMixed, Validated
from decentral.schedule.every import Every
from decentral.sim.loop import run
from decentral.sim.trainer import ToyTrainer
from tests.unit.engine.test_saving import Life


@pytest.mark.parametrize(
    ("losses", "ruined_after"),
    [
        ([5.0, 3.0, 2.0, 5.2, 5.2], 5),
        ([5.0, 3.0, 5.2, 2.9, 5.2], None),  # one alone
        ([5.0, 3.0, 4.9, 4.9, 4.9], None),  # worse, but something is left
        ([5.0, 4.9, 5.1, 5.2, 5.3], None),  # nothing had been gained yet
        ([5.0, 4.9, 11.1, 12.0], 4),
        ([1e-4, 5e-5, 3e-4, 3e-4], None),  # noise of one that has learnt all there is
        ([5.0, math.inf, math.inf], 3),
        ([5.0, 3.0, math.nan, 6.0, math.nan, 6.0], 6),  # NaN says nothing
        ([math.nan, math.nan], None),
        ([-5.0, -6.0, -4.0, -4.0], 4),
    ],
)
def test_a_run_is_ruined_if_two_losses_in_a_row_say_that_nothing_is_left(
    losses: list[float], ruined_after: int | None
) -> None:
    history = LossHistory()
    verdicts = [history.take(loss)[1] for loss in losses]
    assert (verdicts.index(True) + 1 if True in verdicts else None) == ruined_after


def test_after_a_resume_only_what_is_far_worse_than_its_own_first_loss_counts() -> None:
    history = LossHistory()
    history.resume(2.0)
    assert [history.take(loss) for loss in (2.1, 2.2, 2.3, 1.9)] == [(False, False)] * 3 + [(True, False)]
    assert [history.take(loss)[1] for loss in (5.3, 5.3)] == [False, True]


def test_a_ruined_worker_ends_and_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = chain([5.0, 3.0, 2.0], repeat(9.0))
    monkeypatch.setattr(ToyTrainer, "validate", lambda self: next(losses))
    life = Life(Every(), rounds=9, eval_every_rounds=1)
    with pytest.raises(ExceptionGroup) as raised:
        life.live()
    [err] = raised.value.exceptions
    assert isinstance(err, DivergedError)
    assert "loss is 9 after round 4" in str(err)
    validated = [event.val_loss for event in life.journal.events if isinstance(event, Validated)]
    assert validated == [5.0, 3.0, 2.0, 9.0, 9.0]
    run(keep(life), until_s=10)
    assert [state.val_loss for state in life.states] == [5.0, 3.0, 2.0], "the best ones, and none at the end"


def test_a_ruined_worker_goes_back_to_its_best_anchor_and_says_so_until_it_is_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([5.0, 3.0, 2.0, 9.0, 9.0, 2.5, 2.1, 1.9])
    monkeypatch.setattr(ToyTrainer, "validate", lambda self: next(losses))
    life, notes = Life(Every(), rounds=8, eval_every_rounds=1, rolls_back=True), list[str]()
    record = life.journal.record

    def look(event: Event) -> None:
        record(event)
        if isinstance(event, RoundMixed):
            notes.append(life.worker.report.metrics().note)

    monkeypatch.setattr(life.journal, "record", look)
    life.live()
    [event] = [event for event in life.journal.events if isinstance(event, RolledBack)]
    assert (event.round, event.to_round, event.val_loss) == (5, 3, 2.0)
    assert "loss is 9 after round 4" in event.reason
    assert notes == [""] * 5 + ["rolled back to round 3 in round 5, and has not been better since"] * 3
    assert life.worker.report.metrics().note == ""
    bests = [state for state in life.states if not math.isnan(state.val_loss)]
    assert [state.val_loss for state in bests] == [5.0, 3.0, 2.0, 1.9, 1.9]
    [good] = [state for state in bests if state.val_loss == event.val_loss]
    [back] = [state for state in life.states if state.round == event.round]
    assert (back.step, back.tokens) == (50, 50 * 32), "the run goes on, from there"
    assert all(torch.equal(values, good.anchors[name]) for name, values in back.anchors.items())
    assert not any(values.any() for values in back.outer.values())


@pytest.mark.parametrize(
    ("losses", "num_rollbacks"),
    [
        ([9.0, *[math.inf] * 4], 1),
        ([math.inf, math.inf], 0),  # nothing was ever good
        ([5.0, 3.0, 9.0, 9.0, 9.0, 9.0], 1),  # nor better since
        ([5.0, 3.0, 9.0, 9.0, 4.0, 9.0, 9.0], 1),
        ([5.0, 3.0, 9.0, 9.0, 2.9, 9.0, 9.0, 2.8, 9.0, 9.0, 2.7, 9.0, 9.0], 3),  # often enough
    ],
)
def test_a_run_that_is_ruined_and_has_nothing_better_to_go_back_to_ends(
    losses: list[float], num_rollbacks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining = chain(losses, repeat(0.0))
    monkeypatch.setattr(Replica, "validate", lambda self: (self.snapshot(0), next(remaining)))
    life = Life(Every(), rounds=20, eval_every_rounds=1, rolls_back=True)
    with pytest.raises(ExceptionGroup) as raised:
        life.live()
    assert isinstance(raised.value.exceptions[0], DivergedError)
    told = [type(event) for event in life.journal.events if isinstance(event, Validated | RolledBack)]
    assert (told.count(Validated), told.count(RolledBack)) == (len(losses), num_rollbacks)


async def keep(life: Life) -> None:
    await asyncio.wait_for(life.worker.keep(), 1)

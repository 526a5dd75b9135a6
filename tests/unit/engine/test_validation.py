"""A run that went wrong says so: by the validation losses of one worker, against its own history."""

import asyncio
import math
from itertools import chain, repeat

import pytest

from decentral.engine.validation import LossHistory
from decentral.errors import DivergedError
from decentral.monitor.events import Validated
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


async def keep(life: Life) -> None:
    await asyncio.wait_for(life.worker.keep(), 1)

"""The loop of a worker of the command line: what its trainer does wrong, and data that end."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from decentral.errors import DataError, DecentralError, ReportError, TrainerError
from decentral.ports.trainer import StepReport
from decentral.run.worker import train as run_loop

GOOD = StepReport(tokens=8, loss=2.5, grad_norm=1.0)


def train(*answers: Any) -> list[tuple[int, int, float]]:
    """Steps, tokens and losses that reach the swarm, of a trainer that gives or raises ``answers`` in turn."""
    counted: list[tuple[int, int, float]] = []
    left = iter(answers)

    def train_steps(first_step: int, count: int) -> Any:
        assert (first_step, count) == (member.global_step, 1)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def step(*, loss: float, tokens: int, grad_norm: float, data_s: float) -> None:
        counted.append((member.global_step, tokens, loss))
        member.global_step += 1
        member.ended = member.global_step == 5

    member: Any = SimpleNamespace(ended=False, global_step=3, step=step, num_ranks=1)
    run_loop(member, SimpleNamespace(train_steps=train_steps))  # type: ignore[arg-type]
    return counted


def test_it_goes_on_until_the_worker_is_out_of_the_swarm() -> None:
    assert train(GOOD, GOOD, TrainerError(ValueError("not asked for this one"), "")) == [(3, 8, 2.5), (4, 8, 2.5)]


def test_data_that_end_are_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="decentral"):
        assert train(GOOD, StopIteration()) == [(3, 8, 2.5)]
    assert "the data is over at step 4" in caplog.text


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (ValueError("upside down"), TrainerError, "ValueError while taking inner step 3"),
        (DataError("gone"), DataError, "gone"),
        (None, ReportError, r"report of train_steps is None \(NoneType\)"),
    ],
)
def test_a_fault_is_told_for_what_it_is(answer: Any, kind: type[DecentralError], text: str) -> None:
    with pytest.raises(kind, match=text):
        train(answer)

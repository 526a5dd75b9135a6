"""Steps that are counted twice, in part or not at all are told from each other in an anchor."""

from dataclasses import replace

import pytest
import torch

from decentral.sim.scenario import Record, simulate
from scripts.benches.lib.checkers import counted_once, most_counted
from scripts.benches.lib.counting import ADD_UP, ADD_UP_AT_SERVERS, Counting

MOST = 60


def swarm(**settings: object) -> tuple[Counting, Record]:
    scenario = Counting(1, 3, 4, together=True, most_steps=MOST, **settings)  # type: ignore[arg-type]
    return scenario, simulate(scenario, until_s=100.0)


@pytest.mark.parametrize("method", [ADD_UP, ADD_UP_AT_SERVERS])
def test_every_step_is_counted_once(method: dict[str, object]) -> None:
    scenario, record = swarm(**method)
    assert not list(counted_once(scenario, record))
    assert most_counted(scenario, record).tolist() == [[40.0, 40.0, 40.0]] * 3
    assert list(scenario.taken.values()) == [40, 40, 40]


@pytest.mark.parametrize("times", [2.0, 0.5, -1.0])
@pytest.mark.parametrize("step", [0, 39])
def test_what_is_not_counted_once_is_named(times: float, step: int) -> None:
    scenario, record = swarm(**ADD_UP)
    peer, outcome = next(iter(record.outcomes.items()))
    anchors = {name: values.clone() for name, values in outcome.anchors.items()}
    anchors["layers.1"].view(3, MOST)[2, step] = times
    record.outcomes[peer] = replace(outcome, anchors=anchors)
    (found,) = counted_once(scenario, record)
    assert f"counts 1 steps wrongly; step {step} of worker 2, which took 40, {times:g} times" in found


def test_a_step_that_nobody_took_is_named() -> None:
    scenario, record = swarm(**ADD_UP)
    peer, outcome = next(iter(record.outcomes.items()))
    record.outcomes[peer] = replace(outcome, anchors={k: torch.ones_like(v) for k, v in outcome.anchors.items()})
    (found,) = counted_once(scenario, record)
    assert "step 40 of worker 0, which took 40, 1 times" in found


def test_more_steps_than_there_are_places_are_refused() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        simulate(Counting(1, 2, 9, most_steps=50, **ADD_UP))
    assert "takes more than 50 steps" in str(caught.value.exceptions[0])

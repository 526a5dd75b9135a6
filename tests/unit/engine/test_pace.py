"""Workers of different pace: noise splits no round, and a true straggler ends with the others' anchor."""

import pytest

from decentral.monitor.events import RoundMixed
from decentral.sim.scenario import Record, Scenario, simulate
from scripts.benches.lib.checkers import agreement, reunion


def sizes(record: Record) -> list[int]:
    """Members of every round, as the founder saw them."""
    journals = next(iter(record.journals.values()))
    return [len(event.members) for event in journals[0].events if isinstance(event, RoundMixed)]


@pytest.mark.parametrize("seed", range(3))
def test_in_rounds_of_milliseconds_nobody_is_a_straggler(seed: int) -> None:
    scenario = Scenario(seed, num_workers=2, rounds=60, step_s=0.01, paces={1: 3.0})
    record = simulate(scenario)
    sizes_seen = sizes(record)
    # The founder has begun alone.
    assert sizes_seen[sizes_seen.index(2) :] == [2] * (60 - sizes_seen.index(2))
    assert [*agreement(record), *reunion(scenario, record)] == []


@pytest.mark.parametrize("pace", [2.1, 2.4, 2.8])
def test_a_straggler_that_misses_the_last_round_takes_over_its_result(pace: float) -> None:
    scenario = Scenario(0, num_workers=3, rounds=5, step_s=0.5, paces={2: pace})
    record = simulate(scenario)
    assert min(sizes(record)[1:]) == 2
    assert [*agreement(record), *reunion(scenario, record)] == []

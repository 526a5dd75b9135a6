"""Every method under drawn scripts of faults, seeds of ``scripts/bench chaos-sim``; and whole swarms that die."""

from typing import Any

import pytest

from decentral.monitor.events import Resumed
from decentral.schedule.every import Every
from decentral.sim.faults import Fault, Kind
from decentral.sim.network import Conditions
from decentral.sim.scenario import simulate
from decentral.sim.tape import FaultTape
from scripts.benches.chaos_sim import METHODS, Case, drawn, play
from scripts.benches.lib.checkers import agreement, counted_once, events, most_counted, reunion
from scripts.benches.lib.counting import ADD_UP, Counting


def assert_holds(seed: int) -> None:
    result = play(drawn(seed))
    assert not result.violations, f"seed {seed} ({result.method}): {result.violations}"


@pytest.mark.parametrize("seed", [METHODS.index(name) for name in ("gossip-random", "counted rounds", "async")])
def test_survives_drawn_scripts(seed: int) -> None:
    assert_holds(seed)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_survives_two_hundred_scripts(first: int) -> None:
    for seed in range(first, first + 20):
        assert_holds(seed)


def test_a_seed_draws_the_same_case() -> None:
    assert drawn(15).script == drawn(15).script != drawn(31).script
    assert {drawn(seed).method for seed in range(len(METHODS))} == set(METHODS)


def test_what_goes_wrong_is_a_violation() -> None:
    case = drawn(METHODS.index("counted rounds"))
    late = (*case.script, Fault(Kind.KILL, 1e5, (0,)))
    result = play(Case(case.seed, case.method, case.scenario, late))
    assert "Overrun" in result.violations[0]


# -- whole swarms that die --------------------------------------------------------------------------------------------


def dying(*back: int, **settings: Any) -> tuple[Counting, Any]:
    """Four workers, all killed at 12.4 s; these come back."""
    usual = {**ADD_UP, "save_every": Every(seconds=1.0), "patient": True, "conditions": Conditions(jitter=0.3)}
    scenario = Counting(3, 4, 30, **{**usual, **settings})
    faults = [Fault(Kind.KILL, 12.4, (0, 1, 2, 3)), *(Fault(Kind.START, 13.0 + n / 4, (n,)) for n in back)]
    tape = FaultTape(faults)
    record = simulate(scenario, tape, until_s=1000.0)
    assert tape.exhausted()
    assert not [*agreement(record), *reunion(scenario, record), *counted_once(scenario, record)]
    return scenario, record


@pytest.mark.parametrize("back", [(0, 1, 2, 3), (1, 3), (2,)])
def test_a_swarm_comes_back_with_all_that_its_newest_checkpoint_held(back: tuple[int, ...]) -> None:
    scenario, record = dying(*back)
    assert sum(isinstance(event, Resumed) for _, event in events(record)) == len(back)
    assert record.comebacks
    newest = max((comeback.state for comeback in record.comebacks), key=lambda state: (state.round, state.step))
    held_TW, end_TW = scenario.counted(newest.anchors), most_counted(scenario, record)
    assert bool((end_TW >= held_TW).all()), "something that a checkpoint held is lost"
    assert set(record.outcomes) == {scenario.peers[number] for number in back}


def test_one_whose_swarm_has_just_died_comes_back_alone() -> None:
    """The records of the dead say for some seconds that they live, and none of them answers."""
    _, record = dying(2, patient=False, reunited=True)
    assert [comeback.peer for comeback in record.comebacks] == ["sim-0002"]

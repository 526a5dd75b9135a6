"""The model of utilisation: by hand, at its limits, and beside the paper's table."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.sim.utilisation import Method, Model, Swarm, bandwidth_for, utilisation
from scripts.benches.lib.table4 import GRID, PUBLISHED, compare, methods, place_of

#: Two layers and steps of 5 s are pieces of 1 s: forward 0, forward 1, towards layer 0, own of layer 1, own of layer 0.
TWO = Model(parameters=2.0, layers=2, step_s=5.0)
METHODS = st.sampled_from([*methods(), Method("short", 2), *methods(inner_steps=7, delay_steps=4)])
MODELS = st.builds(Model, st.floats(1e6, 1e12), st.integers(1, 30), st.floats(0.01, 10.0))
SWARMS = st.builds(Swarm, st.integers(2, 64), st.sampled_from([0.0, 0.05, 3.0]))


def period_s(method: Method, bits_per_s: float, workers: int = 2, latency_s: float = 0.0) -> float:
    """How long ``inner_steps`` take in the end."""
    return method.inner_steps * TWO.step_s / utilisation(TWO, method, bits_per_s, Swarm(workers, latency_s))


@pytest.mark.parametrize(
    ("reduce_s", "expected_s"),
    [
        # Layer 1 is on the link from 4 s on, layer 0 from 5 s on: forward 0 waits for all of it.
        (0.5, 5.5),
        (1.0, 6.0),
        # Layer 0 waits for the link: 4 s and two reduces.
        (3.0, 10.0),
        (10.0, 24.0),
    ],
)
def test_data_parallel_by_hand(reduce_s: float, expected_s: float) -> None:
    method = Method("data parallel", 1, bits=1.0)
    assert period_s(method, 1 / reduce_s) == pytest.approx(expected_s)


def test_latency_and_the_factor_of_an_all_reduce_by_hand() -> None:
    method = Method("data parallel", 1, bits=1.0)
    # Two reduces of 3 s on the link from 4 s on, and the last result is 2 s under way.
    assert period_s(method, 1 / 3, latency_s=2.0) == pytest.approx(12.0)
    # Of four workers each moves 2 * 3 / 4 times the values.
    assert period_s(method, 1 / 2, workers=4) == pytest.approx(10.0)


def test_fragments_by_hand() -> None:
    """H = 4: layer 0 is due in step 1, layer 1 in step 3, each on the link for 3 s."""
    method = Method("streaming", 4, layers_per_fragment=1, bits=1.0)
    assert method.due(2) == {1: frozenset({0}), 3: frozenset({1})}
    # Layer 0 is ready at the end of its step: 3 s lost. Layer 1 a second before, and its forward pass a second after.
    assert period_s(method, 1 / 3) == pytest.approx(20.0 + 3.0 + 1.0)


def test_overlap_by_hand() -> None:
    """As above with a whole step (5 s) in between: what takes 7 s costs 2 s of layer 0, and nothing of layer 1."""
    method = Method("overlap", 4, layers_per_fragment=1, delay_steps=1, bits=1.0)
    assert period_s(method, 1 / 5) == pytest.approx(20.0)
    assert period_s(method, 1 / 7) == pytest.approx(20.0 + 2.0)


def test_a_sync_at_the_end_of_its_step_by_hand() -> None:
    """As our engine does it: both layers are on the link from 5 s on."""
    method = Method("DiLoCo", 1, bits=1.0, at_end=True)
    assert period_s(method, 1 / 3) == pytest.approx(5.0 + 3.0 + 3.0)
    assert period_s(Method("data parallel", 1, bits=1.0), 1 / 3) == pytest.approx(10.0)


def test_strided_fragments_leave_no_layer_out() -> None:
    due = Method("streaming", 100, layers_per_fragment=3).due(24)
    assert [step + 1 for step in due] == [12, 25, 37, 50, 62, 75, 87, 100]
    assert due[11] == frozenset({0, 8, 16})
    assert sorted(layer for layers in due.values() for layer in layers) == list(range(24))
    assert sorted(layer for layers in Method("few", 2, 1).due(9).values() for layer in layers) == list(range(9))


@given(model=MODELS, method=METHODS, swarm=SWARMS, low=st.floats(1e3, 1e13), times=st.floats(1.0, 100.0))
def test_never_less_for_more_bandwidth(model: Model, method: Method, swarm: Swarm, low: float, times: float) -> None:
    shares = [utilisation(model, method, bits_per_s, swarm) for bits_per_s in (low, low * times)]
    assert 0 < shares[0] <= shares[1] * (1 + 1e-9) <= 1 + 1e-9


@given(model=MODELS, method=METHODS)
def test_limits(model: Model, method: Method) -> None:
    assert utilisation(model, method, 0.0) == 0.0
    assert utilisation(model, method, math.inf) == pytest.approx(1.0)
    assert utilisation(model, method, 1e-3) == pytest.approx(0.0, abs=1e-6)


@given(model=MODELS, method=METHODS, swarm=SWARMS, target=st.floats(0.1, 0.99))
def test_bandwidth_is_the_least_that_does(model: Model, method: Method, swarm: Swarm, target: float) -> None:
    needed = bandwidth_for(target, model, method, swarm)
    if math.isinf(needed):
        assert utilisation(model, method, math.inf, swarm) < target
        return
    assert utilisation(model, method, needed, swarm) >= target
    assert utilisation(model, method, needed / (1 + 1e-4), swarm) < target
    if swarm.latency_s == 0:
        more = replace(method, bits=2 * method.bits)
        assert bandwidth_for(target, model, more, swarm) == pytest.approx(2 * needed, rel=1e-4)


def test_latency_can_put_a_target_out_of_reach() -> None:
    assert bandwidth_for(0.95, Model(1e9, 24, 0.1), Method("data parallel", 1), Swarm(2, 0.05)) == math.inf


def test_a_link_that_is_just_too_slow_is_noticed_although_results_have_time() -> None:
    """It falls behind by a step in every cycle, so that the first ten wait for nothing."""
    model, method = Model(1.0, 2, 1.0), Method("overlap", 100, 1, delay_steps=60, bits=1.0)
    assert utilisation(model, method, 1 / 101) == pytest.approx(100 / 101)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model(0, 24, 0.1), "parameters"),
        (lambda: Model(1e9, 0, 0.1), "layers"),
        (lambda: Model(1e9, 24, math.nan), "time of a step"),
        (lambda: Method("", 0), "inner_steps"),
        (lambda: Method("", 10, -1), "layers_per_fragment"),
        (lambda: Method("", 10, 3, 10), "delay_steps"),
        (lambda: Method("", 10, bits=0), "bits"),
        (lambda: Swarm(1), "workers"),
        (lambda: Swarm(2, -1.0), "latency_s"),
        (lambda: utilisation(TWO, Method("", 1), -1.0), "bandwidth"),
        (lambda: bandwidth_for(1.0, TWO, Method("", 1)), "utilisation"),
    ],
)
def test_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_everything_published_is_on_the_grid() -> None:
    printed = {figure for rows in PUBLISHED.values() for row in rows.values() for figure in row}
    assert all(abs(math.log(GRID[place_of(figure)] / figure)) < 0.13 for figure in printed)
    assert GRID[place_of(569.0)] == pytest.approx(569.0, rel=1e-4)


def test_published_table() -> None:
    """Nothing is fitted: most figures are the grid's last ones below ours, no ratio is more than a step of 1.21 off."""
    rows = compare()
    assert len(rows) == 15
    ratios = [ratio for row in rows for ratio in row.ratios]
    assert 0.94 < min(ratios) <= max(ratios) < 1.24
    off = Counter(steps for row in rows for steps in row.steps_off)
    assert set(off) == {-1, 0, 1}
    assert off[0] >= 60

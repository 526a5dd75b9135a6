"""The choice among replicas, and their mean and spread against a computation over all of them at once."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.errors import ConfigError, DecentralError, DivergedError, MismatchError, UsageError
from decentral.state.average import Chosen, Replica, RunningMean, Survey, choose, ensure_same_shapes, survey


def weights(*values: float) -> dict[str, Tensor]:
    """Two parameters that hold ``values``."""
    x_N = torch.tensor(values, dtype=torch.float32)
    return {"a": x_N[:1].clone(), "b": x_N[1:].clone()}


def replica(name: str, *values: float, round: int = 40, run: str = "demo-1", named: bool = False) -> Replica:
    return Replica(name, run, round, lambda: weights(*values), named=named)


def first_value(given: Mapping[str, Tensor]) -> float:
    """Stands for a loss: the value of ``a``."""
    return float(given["a"])


def named_rows(found: Survey) -> dict[str, str]:
    return {row.replica.name: row.left_out for row in found.rows}


@given(seed=st.integers(0, 1000), count=st.integers(1, 9), apart=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]))
def test_mean_and_spread_are_those_of_all_at_once(seed: int, count: int, apart: float) -> None:
    random = np.random.default_rng(seed)
    common = random.standard_normal(50)
    replicas = (common + apart * random.standard_normal((count, 50))).astype(np.float32)
    running = RunningMean()
    for values in replicas:
        running.add({"a": torch.from_numpy(values[:8]).view(2, 4), "b": torch.from_numpy(values[8:])})
    mean = replicas.astype(np.float64).mean(axis=0)
    assert running.mean()["a"].shape == (2, 4)
    assert torch.cat([value.flatten() for value in running.mean().values()]).numpy() == pytest.approx(mean, rel=1e-6)
    assert all(value.dtype == torch.float32 for value in running.mean().values())
    exact = replicas.astype(np.float64)
    squares = [np.square(exact[i] - exact[j]).mean() for i in range(count) for j in range(i)]
    spread = np.sqrt(np.mean(squares) / np.square(mean).mean()) if squares else 0
    assert running.spread() == pytest.approx(spread, rel=1e-6, abs=1e-15)


def test_equal_replicas_give_themselves_and_no_spread() -> None:
    running = RunningMean()
    x_N = torch.randn(1000)
    for _ in range(7):
        running.add({"x": x_N})
    assert torch.equal(running.mean()["x"], x_N)
    assert running.spread() == 0


def test_what_is_counted_is_not_changed() -> None:
    x_N = torch.zeros(3)
    running = RunningMean()
    running.add({"x": x_N})
    running.add({"x": torch.ones(3)})
    assert x_N.tolist() == [0, 0, 0]


def test_replicas_about_nothing_are_infinitely_far_apart() -> None:
    running = RunningMean()
    running.add({"x": torch.ones(2)})
    running.add({"x": -torch.ones(2)})
    assert running.spread() == math.inf


def test_replicas_that_differ_are_measured_one_by_one_and_together() -> None:
    found = survey([replica("0", 1, 2), replica("1", 3, 6)], first_value)
    assert found.differ
    assert [row.loss for row in found.rows] == [1, 3]
    assert found.average_loss == 2
    assert found.average["b"].tolist() == [4]
    assert found.spread == pytest.approx(math.sqrt(20 / 20))


def test_equal_replicas_are_measured_once() -> None:
    measured = []

    def measure(given: Mapping[str, Tensor]) -> float:
        measured.append(given)
        return 1.5

    found = survey([replica("0", 1, 2), replica("1", 1, 2), replica("2", 1, 2)], measure)
    assert len(measured) == 1
    assert not found.differ
    assert [row.loss for row in found.rows] == [1.5, 1.5, 1.5]
    assert found.average_loss == 1.5
    chosen = choose(found, "average")
    assert [source.name for source in chosen.sources] == ["0"]


def test_without_a_measure_there_are_no_losses() -> None:
    found = survey([replica("0", 1, 2), replica("1", 3, 6)], None)
    assert all(math.isnan(loss) for loss in (*(row.loss for row in found.rows), found.average_loss))
    with pytest.raises(DivergedError, match="No replica has a finite loss"):
        choose(found, "best")
    assert choose(found, "average").weights["a"].tolist() == [2]


@pytest.mark.parametrize(
    ("newest", "behind", "counts"), [(3, 2, True), (3, 3, False), (20, 2, True), (100, 10, True), (100, 11, False)]
)
def test_a_replica_from_long_ago_is_shown_but_not_averaged(newest: int, behind: int, counts: bool) -> None:
    found = survey([replica("0", 1, 2, round=newest), replica("1", 3, 6, round=newest - behind)], first_value)
    assert named_rows(found) == {"0": "", "1": "" if counts else f"{behind} rounds behind"}
    assert [row.loss for row in found.rows] == [1, 3]
    assert found.differ is counts
    assert found.average_loss == (2 if counts else 1)
    assert choose(found, "1").weights["a"].tolist() == [3]


def test_a_replica_that_was_named_counts_however_old() -> None:
    found = survey([replica("0", 1, 2), replica("1", 3, 6, round=1, named=True)], first_value)
    assert named_rows(found) == {"0": "", "1": ""}
    chosen = choose(found, "average")
    assert (chosen.weights["a"].tolist(), chosen.round) == ([2], 40)


class TestChoice:
    @pytest.fixture
    def found(self) -> Survey:
        replicas = [replica("0", 3, 0, round=39), replica("1", 1, 0), replica("2", 8, 0, round=41), replica("3", 4, 0)]
        return survey(replicas, lambda given: math.nan if first_value(given) == 8 else first_value(given))

    def taken(self, chosen: Chosen) -> tuple[list[str], float, float]:
        return [source.name for source in chosen.sources], first_value(chosen.weights), chosen.loss

    def test_what_can_be_taken(self, found: Survey) -> None:
        assert self.taken(choose(found, "average")) == (["0", "1", "2", "3"], 4, 4)
        assert self.taken(choose(found, "best")) == (["1"], 1, 1)
        assert self.taken(choose(found, "newest"))[:2] == (["2"], 8)
        assert self.taken(choose(found, "3")) == (["3"], 4, 4)

    def test_a_name_that_does_not_exist_lists_those_that_do(self, found: Survey) -> None:
        with pytest.raises(UsageError, match="There is no replica '4'; there are 0, 1, 2, 3"):
            choose(found, "4")

    def test_a_name_that_two_have(self) -> None:
        found = survey([replica("0", 1, 2), replica("0", 3, 4)], None)
        with pytest.raises(UsageError, match="More than one replica is called '0'"):
            choose(found, "0")


def test_replicas_of_two_runs_are_refused() -> None:
    replicas = [replica("0", 1, 2), replica("1", 1, 2, run=""), replica("2", 1, 2, run="demo-2")]
    with pytest.raises(MismatchError, match="0 is of demo-1, 2 is of demo-2"):
        survey(replicas, None)
    assert named_rows(survey(replicas[:2], None)) == {"0": "", "1": ""}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"a": torch.ones(1)},
            "1 is another model than 0: parameter 'b' does not exist in the one and has shape \\[1\\]",
        ),
        ({"a": torch.ones(2), "b": torch.ones(1)}, "parameter 'a' has shape \\[2\\] in the one and has shape \\[1\\]"),
        ({"a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}, "parameter 'c' has shape \\[1\\] in the one"),
    ],
)
def test_replicas_of_two_models_are_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        survey([replica("0", 1, 2), Replica("1", "demo-1", 40, lambda: other)], None)


def test_the_order_of_names_does_not_matter() -> None:
    there = {"b": (1,), "a": (1,)}
    ensure_same_shapes("0", weights(1, 2), "1", there)


def test_weights_that_cannot_be_had_are_refused() -> None:
    def load() -> dict[str, Tensor]:
        raise OSError("a has values that are not finite")

    with pytest.raises(ConfigError, match="replica 1 cannot be used: a has values that are not finite") as caught:
        survey([replica("0", 1, 2), Replica("1", "demo-1", 40, load)], None)
    assert isinstance(caught.value, DecentralError)
    assert caught.value.hint

"""Recovery against a version of its own, written from the paper's rule in numpy and double precision.

Legend: N = values of a stage.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.pipeline.cut import Healing
from decentral.pipeline.recovery import Norm, Recovery, Source, blend, decide, lr_scale, weights

Array = npt.NDArray[np.float64]
#: A stage's parameters, by name.
Stage = Mapping[str, Array]

HEALINGS: tuple[Healing, ...] = ("checkfree+", "checkfree", "checkpoint")
NORMS: tuple[Norm, ...] = ("l2", "squared")

#: By healing and place: what stands in for a stage, and how far from it those are that it takes.
STAND_INS: dict[tuple[str, str], tuple[Source, tuple[int, ...]]] = {
    ("checkfree+", "first"): (Source.COPY, (+1,)),
    ("checkfree+", "middle"): (Source.BLEND, (-1, +1)),
    ("checkfree+", "last"): (Source.COPY, (-1,)),
    ("checkfree", "middle"): (Source.BLEND, (-1, +1)),
}


def place(stage: int, num_stages: int) -> str:
    return {0: "head", 1: "first", num_stages: "last"}.get(stage, "middle")


def subsets(items: Sequence[int]) -> Iterator[frozenset[int]]:
    for size in range(len(items) + 1):
        yield from map(frozenset, itertools.combinations(items, size))


#: Ages of the newest checkpoint in a run of so many steps: none, near, far.
STEP = 100
AGES = (None, 50, 51)


def expected(
    stage: int,
    num_stages: int,
    alive: frozenset[int],
    healing: str,
    started: bool,
    kept: frozenset[int],
    age: int | None,
) -> Recovery:
    """All that would do, best first; the first one is it."""
    ways = [Recovery(Source.REPLICA, (stage,))] if stage in alive else []
    ways += [] if started else [Recovery(Source.INITIAL)]
    copies = tuple(s for s in range(1, num_stages + 1) if s in kept and s in alive)
    if healing == "checkfree+" and stage == 0 and copies:
        ways.append(Recovery(Source.KEPT, copies))
    ways += [Recovery(Source.CHECKPOINT)] if age == 50 else []
    source, offsets = STAND_INS.get((healing, place(stage, num_stages)), (Source.NOTHING, ()))
    donors = tuple(stage + offset for offset in offsets)
    if donors and all(donor in alive for donor in donors):
        ways.append(Recovery(source, donors))
    ways += [] if age is None else [Recovery(Source.CHECKPOINT)]
    return [*ways, Recovery(Source.NOTHING)][0]


@pytest.mark.parametrize("healing", HEALINGS)
@pytest.mark.parametrize("num_stages", range(2, 7))
def test_the_decision_in_every_case(num_stages: int, healing: Healing) -> None:
    everything = range(num_stages + 1)
    seen = set()
    for alive, kept in itertools.product(subsets(everything), subsets(sorted({1, 2, num_stages}))):
        for stage, started, age in itertools.product(everything, (False, True), AGES):
            given: dict[str, Any] = {"num_stages": num_stages, "alive": alive, "healing": healing, "kept": kept}
            found = decide(stage, started=started, step=STEP, age=age, **given)
            want = expected(stage, num_stages, alive, healing, started, kept, age)
            assert found == want, (stage, alive, started, kept, age)
            seen.add(found.source)
    always = {Source.REPLICA, Source.INITIAL, Source.CHECKPOINT, Source.NOTHING}
    blended = {Source.BLEND} if healing != "checkpoint" and num_stages > 2 else set()
    assert seen == always | blended | ({Source.COPY, Source.KEPT} if healing == "checkfree+" else set())


def of(stage: int, alive: set[int], healing: Healing = "checkfree+", *, stored: bool = False) -> Recovery:
    """With ``stored`` there is a checkpoint that is far away."""
    age = 51 if stored else None
    return decide(stage, num_stages=4, alive=alive, healing=healing, started=True, kept={1, 4}, step=STEP, age=age)


def test_the_cases_that_the_issue_names() -> None:
    assert of(2, {0, 1, 2, 3, 4}) == Recovery(Source.REPLICA, (2,))
    assert of(2, {0, 1, 3, 4}) == Recovery(Source.BLEND, (1, 3))
    assert of(1, {0, 2, 3, 4}) == Recovery(Source.COPY, (2,))
    assert of(4, {0, 1, 2, 3}) == Recovery(Source.COPY, (3,))
    assert of(0, {1, 2, 3, 4}) == Recovery(Source.KEPT, (1, 4))
    assert of(0, {2, 3, 4}) == Recovery(Source.KEPT, (4,))
    # Adjacent stages: the outer one waits for the inner one, and that for a checkpoint.
    assert of(1, {0, 3, 4}) == of(2, {0, 3, 4}) == Recovery(Source.NOTHING)
    assert of(2, {0, 3, 4}, stored=True) == Recovery(Source.CHECKPOINT)
    assert of(1, {0, 2, 3, 4}) == Recovery(Source.COPY, (2,))
    # The two in the middle.
    assert of(2, {0, 1, 4}) == of(3, {0, 1, 4}) == Recovery(Source.NOTHING)
    # Everything.
    assert all(of(stage, set()) == Recovery(Source.NOTHING) for stage in range(5))
    assert all(of(stage, set(), stored=True) == Recovery(Source.CHECKPOINT) for stage in range(5))
    # Without swaps there is nothing like the first stage, and the head is no neighbour to average with.
    assert of(1, {0, 2, 3, 4}, "checkfree") == of(4, {0, 1, 2, 3}, "checkfree") == Recovery(Source.NOTHING)
    assert of(2, {0, 1, 3, 4}, "checkpoint", stored=True) == Recovery(Source.CHECKPOINT)


@pytest.mark.parametrize("healing", HEALINGS)
def test_a_checkpoint_of_the_very_step_comes_before_healing_and_after_all_that_is_exact(healing: Healing) -> None:
    for stage in range(5):
        given: dict[str, Any] = {"num_stages": 4, "healing": healing, "kept": {1, 4}, "step": 7, "age": 0}
        others = frozenset(range(5)) - {stage}
        assert decide(stage, alive=others, started=True, **given) == Recovery(Source.CHECKPOINT)
        assert decide(stage, alive=others | {stage}, started=True, **given) == Recovery(Source.REPLICA, (stage,))
        assert decide(stage, alive=others, started=False, **given) == Recovery(Source.INITIAL)


@pytest.mark.parametrize("healing", HEALINGS)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_single_stage_has_nothing_to_heal_from(stage: int, healing: Healing) -> None:
    alive = frozenset({0, 1} - {stage})
    found = decide(stage, num_stages=1, alive=alive, healing=healing, started=True, kept=frozenset())
    assert found == Recovery(Source.NOTHING)


@pytest.mark.parametrize("stage", [-1, 5])
def test_a_stage_that_is_none_is_refused(stage: int) -> None:
    with pytest.raises(ValueError, match="only the head 0 and 1 to 4"):
        of(stage, {0, 1, 2, 3, 4})


def stages(num_stages: int, seed: int) -> dict[int, Stage]:
    """Stages of equal shapes, with values that differ."""
    rng = np.random.default_rng(seed)
    shapes = {"attention.weight": (6, 4), "attention.bias": (6,), "norm": (4,), "mlp.weight": (3, 4, 2)}
    return {s: {name: rng.normal(size=shape) for name, shape in shapes.items()} for s in range(1, num_stages + 1)}


def by_the_paper(lost: int, living: Mapping[int, Stage], norms: Mapping[int, float], norm: Norm, plus: bool) -> Stage:
    """The rules of CheckFree and CheckFree+, tensor by tensor."""
    last = max([*living, lost])
    if plus and lost == 1:
        return living[2]
    if plus and lost == last:
        return living[last - 1]
    omega = {s: norms[s] ** (2 if norm == "squared" else 1) + 1e-4 for s in (lost - 1, lost + 1)}
    return {
        name: (omega[lost - 1] * living[lost - 1][name] + omega[lost + 1] * living[lost + 1][name])
        / (omega[lost - 1] + omega[lost + 1])
        for name in living[lost - 1]
    }


def flat(stage: Stage) -> torch.Tensor:
    return torch.cat([torch.tensor(values, dtype=torch.float32).reshape(-1) for values in stage.values()])


def ours(lost: int, living: Mapping[int, Stage], norms: Mapping[int, float], norm: Norm, healing: Healing) -> Stage:
    """What a healer does with what ``decide`` says: fetch flat vectors and put the result into the model."""
    found = decide(
        lost,
        num_stages=max([*living, lost]),
        alive={0, *living},
        healing=healing,
        started=True,
        kept=set(),
    )
    donors = [flat(living[s]) for s in found.stages]
    if found.source is Source.COPY:
        healed_N = donors[0]
    else:
        below, above = found.stages
        healed_N = blend(donors[0], donors[1], norms[below], norms[above], norm)
    like = next(iter(living.values()))
    pieces = healed_N.numpy().astype(np.float64)
    cuts = np.cumsum([values.size for values in like.values()])[:-1]
    return {
        name: piece.reshape(values.shape)
        for (name, values), piece in zip(like.items(), np.split(pieces, cuts), strict=True)
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("num_stages", "lost", "healing"),
    [(S, lost, "checkfree+") for S in (4, 6) for lost in range(1, S + 1)]
    + [(S, lost, "checkfree") for S in (3, 4, 6) for lost in range(2, S)],
)
def test_every_stage_heals_as_the_paper_has_it(num_stages: int, lost: int, healing: Healing, norm: Norm) -> None:
    all_stages = stages(num_stages, seed=num_stages)
    norms = dict(zip(all_stages, np.random.default_rng(lost).uniform(0.05, 1, num_stages).tolist(), strict=True))
    living = {s: stage for s, stage in all_stages.items() if s != lost}
    want = by_the_paper(lost, living, norms, norm, plus=healing == "checkfree+")
    found = ours(lost, living, norms, norm, healing)
    assert found.keys() == want.keys()
    for name, values in want.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)


def test_the_neighbour_that_changes_most_counts_for_more() -> None:
    assert weights(0.6, 0.2, "l2") == pytest.approx((0.6001 / 0.8002, 0.2001 / 0.8002))
    assert weights(0.6, 0.2, "squared") == pytest.approx((0.3601 / 0.4002, 0.0401 / 0.4002))
    below, above = torch.zeros(3), torch.ones(3)
    assert blend(below, above, 0.2, 0.6, "l2").tolist() == pytest.approx([0.6001 / 0.8002] * 3)


@pytest.mark.parametrize("norm", NORMS)
def test_stages_that_both_reach_the_clip_count_equally(norm: Norm) -> None:
    assert weights(1.0, 1.0, norm) == weights(0.0, 0.0, norm) == (0.5, 0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, -1.0])
def test_norms_that_cannot_be_compared_count_equally(strange: float, norm: Norm) -> None:
    assert weights(strange, 0.1, norm) == weights(0.1, strange, norm) == (0.5, 0.5)


@given(below=st.floats(0, 1e300), above=st.floats(0, 1e300), norm=st.sampled_from(NORMS))
def test_weights_are_shares(below: float, above: float, norm: Norm) -> None:
    found = weights(below, above, norm)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert min(found) >= 0
    assert found == weights(above, below, norm)[::-1]


def test_a_blend_leaves_the_neighbours_as_they_are() -> None:
    below_N, above_N = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    healed_N = blend(below_N, above_N, 1.0, 1.0, "l2")
    assert healed_N.tolist() == [2.0, 4.0]
    assert healed_N.dtype == torch.float32
    assert (below_N.tolist(), above_N.tolist()) == ([1.0, 2.0], [3.0, 6.0])


def test_unequal_stages_cannot_be_blended() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        blend(torch.zeros(2), torch.zeros(1), 1.0, 1.0, "l2")


def test_the_boost_begins_with_healing_and_ends() -> None:
    assert [lr_scale(since, 1.1, 3) for since in (None, 0, 1, 2, 3, 1000)] == [1.0, 1.1, 1.1, 1.1, 1.0, 1.0]
    assert lr_scale(0, 1.1, 0) == 1.0

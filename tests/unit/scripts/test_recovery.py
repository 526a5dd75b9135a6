"""The rig behind docs/benchmarks/recovery.md trains what it says, loses what it says and brings it back."""

import numpy as np
import pytest
import torch

from decentral.pipeline.cut import Healing
from decentral.pipeline.recovery import Source
from decentral.workers.lm.corpus import load_corpus
from decentral.workers.lm.model import GPT
from decentral.workers.lm.settings import read_settings
from decentral.workers.optimizer import make_optimizers
from scripts.benches.recovery_pipeline import NUM_STAGES, TASK, Pipeline, Plan, draw_failures, play

SEED = 3
Data = tuple[str, ...]
SWAPPED = (1, 0, 2, 3, 5, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    words = ["alpha", "beta", "gamma", "delta", "and", "or", "not"]
    path = tmp_path_factory.mktemp("data") / "text"
    path.write_text(" ".join(np.random.default_rng(SEED).choice(words, 5000)))
    return (str(path),)


def whole(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """Weights of all stages."""
    parts = (pipeline.head, *pipeline.stages.values())
    return {name: value for part in parts for name, value in part.parameters().items()}


def flat(pipeline: Pipeline, stage: int) -> np.ndarray:
    return np.concatenate([value.numpy().ravel() for value in pipeline.stages[stage].parameters().values()])


@pytest.mark.parametrize("healing", ["checkfree", "checkfree+"])
def test_without_failures_it_trains_the_unsplit_model(data: Data, healing: Healing) -> None:
    settings = read_settings(TASK)
    pipeline = Pipeline(Plan(healing), SEED, data)
    source = Pipeline(Plan("checkfree"), SEED, data).blocks.data()  # With a whole batch as its only micro-batch.
    model = GPT(settings.model, torch.Generator())
    model.load_state_dict(whole(pipeline))
    named = dict(model.named_parameters())
    [optimizer] = make_optimizers(named, settings.optimizer)
    stages = [[named[name] for name in named if name.startswith(f"blocks.{number}.")] for number in range(NUM_STAGES)]
    head = [value for name, value in named.items() if not name.startswith("blocks.")]
    natural = list(model.blocks)
    for step in range(4):
        inputs, targets = source.batch(0, step, 0)
        windows = torch.cat([inputs, targets[:, -1:]], dim=1)
        half = len(windows) // 2
        loss = model.loss(windows[:half]) / 2
        if healing == "checkfree+":
            model.blocks = torch.nn.ModuleList(natural[number] for number in SWAPPED)
        loss = loss + model.loss(windows[half:]) / 2
        model.blocks = torch.nn.ModuleList(natural)
        loss.backward()
        for part in (head, *stages):
            torch.nn.utils.clip_grad_norm_(part, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.learning_rate_at(step, 10**9)
        optimizer.step()
        optimizer.zero_grad()
        assert pipeline.train() == pytest.approx(loss.item(), abs=1e-5)
    for name, value in whole(pipeline).items():
        torch.testing.assert_close(value, named[name].detach(), rtol=1e-4, atol=1e-5)


def test_the_learning_rate_stays_what_it_is_after_the_warm_up(data: Data) -> None:
    rate = Pipeline(Plan("checkfree"), SEED, data).blocks.learning_rate
    assert rate(50) == rate(5000) == TASK["optimizer"]["learning_rate"]


def test_validation_is_on_the_held_out_text_with_the_stages_in_their_order(data: Data) -> None:
    pipeline = Pipeline(Plan("checkfree+"), SEED, data)
    for _ in range(2):
        pipeline.train()
    settings = read_settings(TASK)
    model = GPT(settings.model, torch.Generator())
    model.load_state_dict(whole(pipeline))
    inputs, targets = pipeline._held_out
    windows = load_corpus(data, settings.window).held_out_batch(0, 1, len(inputs), settings.window)
    assert torch.equal(windows, torch.cat([inputs, targets[:, -1:]], dim=1))
    assert pipeline.validate() == pytest.approx(model.loss(windows).item(), abs=1e-5)


@pytest.mark.parametrize("norm", ["l2", "squared"])
def test_an_inner_stage_becomes_the_weighted_mean_of_its_neighbours(data: Data, norm: str) -> None:
    pipeline = Pipeline(Plan("checkfree", norm=norm), SEED, data)  # type: ignore[arg-type]
    for _ in range(3):
        pipeline.train()
    pipeline.norms |= {2: 0.2, 3: 0.9, 4: 0.7}
    below, above = flat(pipeline, 2), flat(pipeline, 4)
    power = 2 if norm == "squared" else 1
    weight_below, weight_above = (value**power + 1e-4 for value in (0.2, 0.7))
    assert pipeline.restore([3]) == Source.BLEND
    expected = (weight_below * below + weight_above * above) / (weight_below + weight_above)
    np.testing.assert_allclose(flat(pipeline, 3), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("stage", "twin"), [(1, 2), (NUM_STAGES, NUM_STAGES - 1)])
def test_with_swaps_an_outer_stage_becomes_its_twin(data: Data, stage: int, twin: int) -> None:
    pipeline = Pipeline(Plan("checkfree+"), SEED, data)
    for _ in range(3):
        pipeline.train()
    expected = flat(pipeline, twin)
    assert pipeline.restore([stage]) == Source.COPY
    np.testing.assert_array_equal(flat(pipeline, stage), expected)


@pytest.mark.parametrize(("stage", "twin"), [(2, 1), (NUM_STAGES - 1, NUM_STAGES)])
def test_as_in_the_authors_code_their_neighbours_are_copies_too(data: Data, stage: int, twin: int) -> None:
    pipeline = Pipeline(Plan("checkfree+", copies=True), SEED, data)
    for _ in range(3):
        pipeline.train()
    expected = flat(pipeline, twin)
    assert pipeline.restore([stage]) == Source.COPY
    np.testing.assert_array_equal(flat(pipeline, stage), expected)
    assert pipeline.restore([3]) == Source.BLEND


def test_norms_are_those_after_clipping(data: Data) -> None:
    pipeline = Pipeline(Plan("checkfree"), SEED, data)
    clipped = {**TASK, "optimizer": {**TASK["optimizer"], "clip_norm": 1e-3}}
    small = Pipeline(Plan("checkfree", task=clipped), SEED, data)
    pipeline.train()
    small.train()
    assert max(pipeline.norms.values()) > 1e-3
    assert set(small.norms.values()) <= {0.0, 1e-3}


def test_a_healed_stage_learns_faster_for_a_while(data: Data) -> None:
    def moved(boost: float) -> np.ndarray:
        pipeline = Pipeline(Plan("checkfree", boost=boost, boost_steps=1), SEED, data)
        for _ in range(3):
            pipeline.train()
        pipeline.restore([3])
        stages = [flat(pipeline, 3)]
        for _ in range(2):
            pipeline.train()
            stages.append(flat(pipeline, 3))
        return np.linalg.norm(np.diff(stages, axis=0), axis=1)

    plain, boosted = moved(1.0), moved(1.5)
    assert boosted[0] == pytest.approx(1.5 * plain[0], rel=1e-2)
    assert boosted[1] == pytest.approx(plain[1], rel=0.2)


def test_a_rollback_takes_all_back_and_goes_the_same_way_again(data: Data) -> None:
    plan = Plan("checkpoint", checkpoint_every=3)
    straight = play(plan, SEED, [()] * 7, every=1, data=data)
    torn = play(plan, SEED, [(), (), (2,), (), (), (3, 5), (), (), ()], every=1, data=data)
    assert torn.steps == [0, 1, 2, 1, 2, 3, 4, 5, 6, 7]
    assert torn.losses == [straight.losses[step] for step in torn.steps]
    assert [(lost.iteration, lost.stage, lost.source) for lost in torn.lost] == [
        (2, 2, "checkpoint"),
        (5, 3, "checkpoint"),
        (5, 5, "checkpoint"),
    ]


def test_all_methods_lose_the_same_and_never_two_neighbours() -> None:
    few, many = (draw_failures(SEED, 3000, probability, {2, 3, 4, 5}) for probability in (0.01, 0.1))
    assert draw_failures(SEED, 3, 1.0, {1, 2, 3, 4, 5}) == [(), (1, 3, 5), (1, 3, 5)]
    assert all(stage + 1 not in lost for lost in many for stage in lost)
    assert draw_failures(SEED, 100, 0.1, {2, 3, 4, 5}) == many[:100]
    assert 3000 * 4 * 0.01 * 0.7 < sum(map(len, few)) < 3000 * 4 * 0.01 * 1.3
    assert sum(set(rare) <= set(often) for rare, often in zip(few, many, strict=True)) > 2990

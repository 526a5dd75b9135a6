import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from decentral.errors import ConfigError
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.routing import stage_order
from decentral.ports.model_blocks import ModelBlocks
from tests.unit.pipeline.models import (
    NUM_BLOCKS,
    NUM_MICROBATCHES,
    Pipeline,
    lm_batch,
    lm_blocks,
    whole_loss,
    whole_model,
    with_plain_steps,
)

KEY = (0, 0, 0)
WIDTH = 6


class Inputs(nn.Module):
    """Two layers, so that its gradient depends on its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, WIDTH)
        self.more = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(torch.tanh(self.inputs(x)))


class Squared(nn.Module):
    def __init__(self, below: nn.Module) -> None:
        super().__init__()
        self.outputs = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return (self.outputs(x) - targets).square().mean()


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def seeded(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


MLP = ModelBlocks(
    num_blocks=NUM_BLOCKS,
    activation_shape=(5, WIDTH),
    num_tokens=5,
    embedding=lambda: seeded(Inputs(), 100),
    block=lambda number: seeded(perceptron(), number),
    output=lambda below: seeded(Squared(below), 101),
    optimizer=lambda named: torch.optim.AdamW(list(named.values())),
    learning_rate=lambda step: 0.01,
    clip_norm=1.0,
    data=lambda: pytest.fail("a stage opens no data"),
    check=lambda num_blocks, is_head, device: None,
)
PLAIN = with_plain_steps(MLP)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def copied(part: HeadCompute | StageCompute) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in part.parameters().items()}


def applied(part: HeadCompute | StageCompute, slots: list[int], num_microbatches: int) -> dict[str, Tensor]:
    """The gradient that a plain step applies."""
    before = copied(part)
    part.apply(slots, num_microbatches, step=0)
    return {name: before[name] - value for name, value in part.parameters().items()}


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("num_stages", "swap"), [(1, False), (2, False), (4, False), (4, True)])
def test_loss_and_gradients_are_those_of_one_process(num_stages: int, swap: bool, tied: bool) -> None:
    pipeline = Pipeline(with_plain_steps(lm_blocks(tie_embeddings=tied)), num_stages)
    pipeline.shake()
    batch, orders = lm_batch(), [stage_order(num_stages, index, swap=swap) for index in range(NUM_MICROBATCHES)]
    model = whole_model(pipeline.parameters(), tie_embeddings=tied)
    expected = whole_loss(model, batch, orders)
    expected.backward()

    assert pipeline.run(batch, orders) == pytest.approx(expected.item(), abs=1e-5)
    moved: dict[str, Tensor] = {}
    for part in pipeline.parts:
        moved |= applied(part, [0], NUM_MICROBATCHES)
    assert_close(moved, {name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient.abs().max() > 1e-3 for gradient in moved.values())


def test_swaps_change_what_is_computed() -> None:
    pipeline = Pipeline(lm_blocks(), 4)
    pipeline.shake()
    straight, swapped = ([stage_order(4, index, swap=swap) for index in range(4)] for swap in (False, True))
    assert abs(pipeline.run(lm_batch(), straight) - pipeline.run(lm_batch(), swapped, number=1)) > 1e-3


@pytest.mark.parametrize("lr_scale", [1.0, 1.1])
def test_steps_are_those_of_adamw_in_one_process_with_clipping_by_stage(lr_scale: float) -> None:
    blocks = replace(lm_blocks(), clip_norm=0.3)
    pipeline = Pipeline(blocks, 2)
    pipeline.shake()
    model = whole_model(pipeline.parameters())
    named = dict(model.named_parameters())
    [adamw] = blocks.optimizer(named)
    orders = [stage_order(2, index, swap=False) for index in range(NUM_MICROBATCHES)]
    for step in range(4):
        batch = lm_batch(step)
        whole_loss(model, batch, orders).backward()
        norms = [
            torch.nn.utils.clip_grad_norm_([named[name] for name in part.parameters()], 0.3).item()
            for part in pipeline.parts
        ]
        for group in adamw.param_groups:
            group["lr"] = blocks.learning_rate(step) * lr_scale
        adamw.step()
        adamw.zero_grad()

        pipeline.run(batch, orders, number=step)
        mine = [part.apply([0], NUM_MICROBATCHES, step, lr_scale) for part in pipeline.parts]
        assert mine == pytest.approx(norms, rel=1e-4)
        assert min(norms) > 0.3
    assert_close(pipeline.parameters(), {name: parameter.detach() for name, parameter in named.items()})


def test_any_list_of_modules_can_be_cut() -> None:
    inputs, targets = draw(5, 3), draw(5, 2)
    pipeline = Pipeline(PLAIN, 2)
    embedding = MLP.embedding()
    layers, output = [MLP.block(number) for number in range(NUM_BLOCKS)], MLP.output(embedding)
    expected = output(nn.Sequential(embedding, *layers)(inputs), targets)
    expected.backward()

    assert pipeline.run([(inputs, targets)], [(1, 2)]) == pytest.approx(expected.item(), abs=1e-6)
    theirs = {
        name: parameter.grad
        for prefix, module in [("", embedding), ("", output), *((f"blocks.{n}.", m) for n, m in enumerate(layers))]
        for name, parameter in module.named_parameters(prefix.rstrip("."))
    }
    mine: dict[str, Tensor] = {}
    for part in pipeline.parts:
        mine |= applied(part, [0], 1)
    assert_close(mine, theirs)


def test_a_batch_may_be_split_over_replicas() -> None:
    whole, *replicas = (StageCompute(PLAIN, 1, 3) for _ in range(3))
    for index in range(5):
        x, gradient = draw(5, WIDTH, seed=index), draw(5, WIDTH, seed=50 + index)
        for stage in (whole, replicas[index % 2]):
            stage.forward((0, 0, index), x)
        answers = [stage.backward((0, 0, index), gradient) for stage in (whole, replicas[index % 2])]
        assert answers[0].equal(answers[1])
    expected, first, second = applied(whole, [0], 5), applied(replicas[0], [0], 3), applied(replicas[1], [0], 2)
    assert_close({name: (3 * first[name] + 2 * second[name]) / 5 for name in first}, expected)


def test_sums_are_kept_by_slot() -> None:
    mixed, *alone = (StageCompute(PLAIN, 0, 1) for _ in range(4))
    for index, slot in enumerate((0, 1, 0, 2, 1)):
        for stage in (mixed, alone[slot]):
            stage.forward((slot, 0, index), draw(5, WIDTH, seed=index))
            stage.backward((slot, 0, index), draw(5, WIDTH, seed=50 + index))
    gradients = [applied(stage, [slot], 1) for slot, stage in enumerate(alone)]
    assert_close(applied(mixed, [0, 2], 3), {n: (gradients[0][n] + gradients[2][n]) / 3 for n in gradients[0]})
    assert_close(applied(mixed, [1], 2), {name: value / 2 for name, value in gradients[1].items()})
    assert mixed.apply([0, 1, 2], 3, step=0) == 0.0  # Used up.


@pytest.mark.parametrize("change", ["load", "apply"])
def test_backward_after_the_weights_changed_is_that_of_the_new_weights(change: str) -> None:
    stage, fresh = StageCompute(PLAIN, 0, 2), StageCompute(PLAIN, 0, 2)
    x, gradient = draw(5, WIDTH), draw(5, WIDTH, seed=1)
    stage.forward((0, 0, 0), x)
    stage.forward((0, 0, 1), x)
    old = stage.backward((0, 0, 1), gradient)
    if change == "load":
        stage.load({name: value + 0.5 for name, value in copied(stage).items()})
        stage.apply([0], 0, step=0)  # Uses the sum up.
    else:
        stage.apply([0], 1, step=0)
    fresh.load(copied(stage))
    fresh.forward((0, 0, 0), x)
    late = stage.backward((0, 0, 0), gradient)
    assert late.equal(fresh.backward((0, 0, 0), gradient))
    assert not late.allclose(old)
    new, expected = applied(stage, [0], 1), applied(fresh, [0], 1)
    assert all(new[name].equal(expected[name]) for name in expected)


def test_a_head_too_computes_again_what_changed() -> None:
    head, fresh = HeadCompute(PLAIN), HeadCompute(PLAIN)
    inputs, gradient = draw(5, 3), draw(5, WIDTH, seed=1)
    head.embed(KEY, inputs)
    changed = {name: value + 0.5 for name, value in copied(head).items()}
    for one in (head, fresh):
        one.load(changed)
    fresh.embed(KEY, inputs)
    for one in (head, fresh):
        one.finish(KEY, gradient)
    new, expected = applied(head, [0], 1), applied(fresh, [0], 1)
    assert all(new[name].equal(expected[name]) for name in expected)
    assert not new["inputs.weight"].equal(torch.zeros(WIDTH, 3))


def test_what_does_not_count_leaves_the_sums_alone() -> None:
    stage, head = StageCompute(PLAIN, 0, 2), HeadCompute(PLAIN)
    x, gradient, targets = draw(5, WIDTH), draw(5, WIDTH, seed=1), draw(5, 2)
    answers, losses = [], []
    for count in (True, False):
        stage.forward(KEY, x)
        answers.append(stage.backward(KEY, gradient, count=count))
        head.embed(KEY, draw(5, 3))
        losses.append(head.loss(KEY, x, targets, count=count))
        head.finish(KEY, gradient, count=count)
    assert answers[0].equal(answers[1])
    assert losses[0][0] == losses[1][0]
    assert losses[0][1].equal(losses[1][1])

    once = StageCompute(PLAIN, 0, 2), HeadCompute(PLAIN)
    once[0].forward(KEY, x)
    once[0].backward(KEY, gradient)
    once[1].embed(KEY, draw(5, 3))
    once[1].loss(KEY, x, targets)
    once[1].finish(KEY, gradient)
    for mine, theirs in zip((stage, head), once, strict=True):
        assert_close(applied(mine, [0], 1), applied(theirs, [0], 1))


def test_a_pass_that_is_not_for_training_leaves_nothing_behind() -> None:
    stage, head = StageCompute(PLAIN, 0, 2), HeadCompute(PLAIN)
    x, targets = draw(5, WIDTH), draw(5, 2)
    assert stage.forward(KEY, x, train=False).equal(stage.forward((0, 0, 1), x))
    assert head.embed(KEY, draw(5, 3), train=False).equal(head.embed((0, 0, 1), draw(5, 3)))
    loss, gradient = head.loss(KEY, x, targets, train=False)
    assert gradient.numel() == 0
    assert head.apply([0], 1, step=0) == 0.0
    assert loss == head.loss(KEY, x, targets)[0]
    with pytest.raises(KeyError):
        stage.backward(KEY, x)
    with pytest.raises(KeyError):
        head.finish(KEY, x, count=False)


def test_a_slot_that_is_dropped_takes_its_gradients_along() -> None:
    stage, other = StageCompute(PLAIN, 0, 2), StageCompute(PLAIN, 0, 2)
    for slot in (0, 1):
        for index in (0, 1):
            stage.forward((slot, 0, index), draw(5, WIDTH, seed=index))
        stage.backward((slot, 0, 0), draw(5, WIDTH, seed=2 + slot))
    stage.drop(0)
    with pytest.raises(KeyError):
        stage.backward((0, 0, 1), draw(5, WIDTH))
    assert stage.apply([0], 1, step=0) == 0.0
    other.forward((1, 0, 0), draw(5, WIDTH, seed=0))
    other.backward((1, 0, 0), draw(5, WIDTH, seed=3))
    assert_close(applied(stage, [1], 1), applied(other, [1], 1))
    stage.backward((1, 0, 1), draw(5, WIDTH))


def test_a_micro_batch_ends_by_its_backward_pass_or_by_being_forgotten() -> None:
    stage = StageCompute(PLAIN, 0, 2)
    for end in (lambda: stage.backward(KEY, draw(5, WIDTH)), lambda: stage.forget(KEY), lambda: stage.forget(KEY)):
        stage.forward(KEY, draw(5, WIDTH))
        end()
        with pytest.raises(KeyError):
            stage.backward(KEY, draw(5, WIDTH))
    stage.forget(KEY)  # Forgotten already.


def test_no_graph_outlives_its_use() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            kept = x * self.weight
            alive.append(weakref.ref(kept))
            return kept.square()

    def num_alive() -> int:
        return sum(kept() is not None for kept in alive)

    stage = StageCompute(replace(PLAIN, block=lambda number: Watched()), 0, 1)
    x = draw(5, WIDTH)
    for index in range(4):
        stage.forward((0, 0, index), x)
    assert num_alive() == 4
    stage.backward((0, 0, 0), x)
    stage.forget((0, 0, 1))
    assert num_alive() == 2
    stage.load(copied(stage))
    assert num_alive() == 0
    stage.backward((0, 0, 2), x)
    assert num_alive() == 0


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_not_learnt_from(value: float) -> None:
    stage, other = StageCompute(MLP, 0, 2), StageCompute(MLP, 0, 2)
    for one in (stage, other):
        one.forward(KEY, draw(5, WIDTH))
        one.backward(KEY, draw(5, WIDTH, seed=1))
        one.apply([0], 1, step=0)
    stage.forward((0, 1, 0), draw(5, WIDTH))
    stage.backward((0, 1, 0), torch.full((5, WIDTH), value))
    assert not math.isfinite(stage.apply([0], 1, step=1))
    for one in (stage, other):
        one.forward((0, 2, 0), draw(5, WIDTH))
        one.backward((0, 2, 0), draw(5, WIDTH, seed=1))
        assert one.apply([0], 1, step=2) > 0
    assert all(value.equal(other.parameters()[name]) for name, value in stage.parameters().items())


def test_a_replica_without_a_share_takes_no_step() -> None:
    stage = StageCompute(MLP, 0, 2)
    before = copied(stage)
    stage.forward(KEY, draw(5, WIDTH))
    stage.backward(KEY, draw(5, WIDTH, seed=1))
    assert stage.apply([0], 0, step=0) == 0.0
    assert stage.apply([0], 1, step=0) == 0.0  # What it counted was nobody's.
    assert all(value.equal(before[name]) for name, value in stage.parameters().items())


def test_names_are_those_of_the_whole_model() -> None:
    assert all(name.startswith("blocks.2.") for name in StageCompute(lm_blocks(), 2, 3).parameters())
    assert list(HeadCompute(lm_blocks()).parameters()) == ["embedding", "final_norm"]
    assert list(HeadCompute(lm_blocks(tie_embeddings=False)).parameters()) == ["embedding", "final_norm", "head"]
    with pytest.raises(ConfigError, match="'weight'"):
        HeadCompute(replace(MLP, embedding=lambda: nn.Linear(3, WIDTH), output=lambda below: nn.Linear(WIDTH, 2)))


@pytest.mark.parametrize("wrong", [{"unknown": torch.zeros(WIDTH)}, {"blocks.1.0.weight": torch.zeros(WIDTH)}])
def test_load_refuses_what_does_not_fit_and_changes_nothing(wrong: dict[str, Tensor]) -> None:
    stage = StageCompute(MLP, 1, 2)
    before = copied(stage)
    with pytest.raises(ValueError, match=r"parameter|shape"):
        stage.load({"blocks.1.0.bias": torch.full((WIDTH,), 7.0), **wrong})
    assert all(value.equal(before[name]) for name, value in stage.parameters().items())


def test_what_takes_no_gradient_is_neither_trained_nor_shared() -> None:
    def frozen() -> nn.Module:
        return MLP.embedding().requires_grad_(False)

    pipeline = Pipeline(replace(MLP, embedding=frozen), 2)
    assert list(pipeline.head.parameters()) == ["outputs.weight", "outputs.bias"]
    pipeline.run([(draw(5, 3), draw(5, 2))], [(1, 2)])
    assert pipeline.head.apply([0], 1, step=0) > 0


def test_no_part_has_a_loss_of_its_own() -> None:
    assert math.isnan(StageCompute(MLP, 0, 1).validate())
    assert math.isnan(HeadCompute(MLP).validate())

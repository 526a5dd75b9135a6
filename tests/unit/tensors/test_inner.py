"""Parameters with their inner optimizer: loaded as a whole or not at all, stepped along finite gradients only."""

import math

import pytest
import torch
from torch import Tensor, nn

from decentral.tensors.inner import InnerModel


def make(clip_norm: float = 100.0) -> tuple[InnerModel, nn.Parameter, nn.Parameter]:
    weight, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    named = {"weight": weight, "frozen": frozen}
    model = InnerModel(named, lambda named: torch.optim.SGD(named.values()), lambda step: 0.5 * step, clip_norm)
    return model, weight, frozen


def test_a_step_clips_and_takes_the_rate_of_its_step() -> None:
    model, weight, frozen = make(clip_norm=1.0)
    weight.grad = torch.tensor([0.0, 4.0])
    assert model.step(2, lr_scale=0.5) == 4.0
    assert torch.allclose(weight, torch.tensor([1.0, 0.5]))
    assert weight.grad is None
    assert torch.equal(frozen, torch.ones(2))


@pytest.mark.parametrize(
    ("gradient", "loss"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (1.0, torch.tensor(math.nan))]
)
def test_what_is_not_finite_moves_nothing(gradient: float, loss: Tensor | float) -> None:
    model, weight, _ = make()
    weight.grad = torch.full((2,), gradient)
    model.step(1, loss=loss)
    assert torch.equal(weight, torch.ones(2))
    assert weight.grad is None


@pytest.mark.parametrize(("name", "shape"), [("frozen", 2), ("other", 2), ("weight", 3)])
def test_a_parameter_that_does_not_fit_is_refused_before_any_is_loaded(name: str, shape: int) -> None:
    model, weight, _ = make()
    with pytest.raises(ValueError, match=f"{name!r}"):
        model.load({"weight": torch.zeros(2)} | {name: torch.zeros(shape)})
    assert list(model.parameters()) == ["weight"]
    assert torch.equal(weight, torch.ones(2))

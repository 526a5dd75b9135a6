"""Parameters with their inner optimizer: loaded as a whole or not at all, stepped along finite gradients only."""

import io
import math
from collections.abc import Mapping

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


def adamw(*, reverse: bool = False, factor: float = 1.0) -> tuple[InnerModel, dict[str, nn.Parameter]]:
    """Two parameters in two groups, in this order or the other."""
    named = {name: nn.Parameter(torch.full((size,), factor)) for name, size in (("a", 2), ("b", 3), ("unused", 1))}

    def optimizer(named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": [value]} for value in named.values()]
        return torch.optim.AdamW(groups[::-1] if reverse else groups, fused=True)

    return InnerModel(named, optimizer, lambda step: 0.1 / (1 + step), 100.0), named


def stepped(model: InnerModel, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        for name in ("a", "b"):
            named[name].grad = named[name].detach() * (step + 1) - 0.5
        model.step(step)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_optimizer_goes_on_bit_for_bit_by_the_names_of_its_parameters(reverse: bool) -> None:
    whole, first, second = adamw(), adamw(), adamw(reverse=reverse, factor=9.0)
    stepped(*whole, range(8))
    stepped(*first, range(3))
    file = io.BytesIO()
    torch.save(dict(first[0].state_dict()), file)
    file.seek(0)
    second[0].load({name: value.clone() for name, value in first[0].parameters().items()})
    second[0].load_state_dict(torch.load(file, weights_only=True))
    stepped(*second, range(3, 8))
    assert all(torch.equal(whole[1][name], second[1][name]) for name in whole[1])
    assert whole[0].state_dict()["optimizer"].keys() == {"a", "b"}


def test_a_state_of_a_part_of_the_model_is_taken_and_one_that_does_not_fit_is_refused() -> None:
    (source, named), (model, _) = adamw(), adamw()
    stepped(source, named, range(3))
    state = source.state_dict()["optimizer"]
    model.load_state_dict({"optimizer": {"a": state["a"], "elsewhere": state["b"]}})
    assert model.state_dict()["optimizer"].keys() == {"a"}
    with pytest.raises(ValueError, match=r"'exp_avg' of 'b' has shape \[2\], not \[3\]"):
        model.load_state_dict({"optimizer": {"b": state["a"]}})
    assert torch.equal(model.state_dict()["optimizer"]["a"]["exp_avg"], state["a"]["exp_avg"])

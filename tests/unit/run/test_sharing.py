"""What of a model a swarm shares."""

import io
import math

import pytest
import torch
from torch import nn

from decentral.errors import ConfigError
from decentral.ports.trainer import Stateful
from decentral.run.sharing import SharedModel, check_optimizer, model_of, shared_of
from decentral.tensors.layout import Layout


class Odd(nn.Module):
    """Tied, frozen, not contiguous, empty and 0-dim parameters, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
        self.empty = nn.Parameter(torch.empty(0, 5))
        self.scalar = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
        self.low = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.norm = nn.BatchNorm1d(4)


NAMES = ["turned", "empty", "scalar", "low", "first.weight", "first.bias", "norm.weight", "norm.bias"]


def test_by_default_what_requires_a_gradient_is_shared_once() -> None:
    shared = shared_of(Odd())
    assert list(shared.tensors) == NAMES
    assert shared.text == (
        "shares 37 values in 8 parameters; 1 tied name counted once; 3 frozen values stay here; "
        '2 float buffers stay each worker\'s own (buffers="local")'
    )


def test_float_buffers_are_averaged_by_choice_and_whole_numbers_never() -> None:
    shared = shared_of(Odd(), "average")
    assert list(shared.tensors) == [*NAMES, "norm.running_mean", "norm.running_var"]
    assert 'are averaged as well (buffers="average")' in shared.text


def test_values_come_back_as_they_were_whatever_their_type_and_strides() -> None:
    model = Odd()
    port = SharedModel(shared_of(model))
    layout = Layout.of(port.parameters())
    before = {name: value.clone() for name, value in port.parameters().items()}
    flat = layout.gather(port.parameters(), 0)
    port.load({name: torch.zeros(value.shape) for name, value in before.items()})
    assert all(not value.any() for value in port.parameters().values())
    port.load(layout.scatter(flat, 0))
    for name, value in port.parameters().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name
    assert model.turned.stride() == (1, 3)
    assert model.second.weight is model.first.weight


def test_a_model_that_is_moved_is_found_again() -> None:
    model = nn.Linear(2, 2)
    port = SharedModel(shared_of(model))
    model.to(torch.float64)
    port.load({"weight": torch.ones(2, 2)})
    assert model.weight.sum() == 4.0


def test_named_tensors_are_shared_as_they_are() -> None:
    values = {"a": torch.zeros(2), "b": torch.zeros(())}
    shared = shared_of(values)
    assert shared.text == "shares 3 values in 2 parameters"
    SharedModel(shared).load({"a": torch.ones(2)})
    assert values["a"].tolist() == [1.0, 1.0]


def test_nothing_to_share_and_whole_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to share"):
        shared_of(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ConfigError, match=r"'a' is torch\.int64"):
        shared_of({"a": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ConfigError, match='"average" or "local"'):
        shared_of(nn.Linear(2, 2), "both")  # type: ignore[arg-type]


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), shared_of(model).tensors)
    with pytest.raises(ConfigError, match="trains none of the model's"):
        check_optimizer(torch.optim.SGD(other.parameters(), lr=0.1), shared_of(model).tensors)


def test_validation_is_the_users_own_or_none() -> None:
    shared = shared_of(nn.Linear(2, 2))
    assert SharedModel(shared, lambda: 3).validate() == 3.0
    assert math.isnan(SharedModel(shared).validate())


def trained(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_optimizer_and_whatever_else_has_a_state_go_on() -> None:
    def made() -> tuple[SharedModel, nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return model_of(model, "local", None, optimizer, {"schedule": schedule}), model, optimizer, schedule

    first, model, optimizer, schedule = made()
    trained(model, optimizer, 3)
    schedule.step()
    file = io.BytesIO()
    assert isinstance(first, Stateful)
    torch.save(first.state_dict(), file)
    second, again, other, plan = made()
    assert isinstance(second, Stateful)
    second.load({name: value.clone() for name, value in first.parameters().items()})
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert (plan.last_epoch, other.param_groups[0]["lr"]) == (1, 0.05)
    for one, its in ((model, optimizer), (again, other)):
        trained(one, its, 2)
    assert torch.equal(model.weight, again.weight)


def test_what_a_checkpoint_does_not_have_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    port = model_of(model, "local", None, torch.optim.SGD(model.parameters(), lr=0.1), None)
    assert isinstance(port, Stateful)
    port.load_state_dict({"gone": {}})
    assert "no state of 'optimizer', which starts anew" in caplog.text
    assert not isinstance(model_of(model, "local", None, None, None), Stateful)


def test_what_has_no_state_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"stateful\['loader'\] is a list, which has no state_dict"):
        model_of(model, "local", None, optimizer, {"loader": []})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="there is optimizer="):
        model_of(model, "local", None, optimizer, {"optimizer": optimizer})

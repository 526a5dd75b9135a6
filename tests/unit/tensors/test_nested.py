"""What of an inner optimizer's state begins anew after a fault."""

import math

import pytest
import torch

from decentral.tensors.nested import begun_anew


def adamw_after(steps: int) -> torch.optim.Optimizer:
    weight_N = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight_N, torch.nn.Parameter(torch.ones(2))])
    for _ in range(steps):
        for each in optimizer.param_groups[0]["params"]:
            each.grad = torch.ones_like(each)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -1e30])
def test_moments_with_an_absurd_value_begin_at_0_and_the_rest_stays(absurd: float) -> None:
    optimizer = adamw_after(3)
    assert begun_anew(optimizer.state_dict()) is None
    first, second = optimizer.state.values()
    first["exp_avg"][1] = absurd
    kept = {key: value.clone() for key, value in (*second.items(), ("v", first["exp_avg_sq"]))}
    state = begun_anew(optimizer.state_dict())
    assert state is not None
    optimizer.load_state_dict(state)
    first, second = optimizer.state.values()
    assert first["exp_avg"].eq(0).all()
    assert first["step"] == 3
    assert first["exp_avg_sq"].equal(kept.pop("v"))
    assert all(second[key].equal(value) for key, value in kept.items())

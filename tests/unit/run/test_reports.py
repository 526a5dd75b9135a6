"""What a training loop may report of a step."""

from typing import Any

import numpy as np
import pytest
import torch

from decentral.errors import ReportError
from decentral.run.swarm import loss_of, tokens_of


@pytest.mark.parametrize("tokens", [0, 7, 7.0, np.int64(7), torch.tensor(7), torch.tensor([7])])
def test_whole_numbers_are_tokens(tokens: Any) -> None:
    assert tokens_of(tokens) in (0, 7)


@pytest.mark.parametrize(
    "tokens", [-1, -1.0, 1.5, float("nan"), float("inf"), True, None, "7", torch.tensor(7.0), torch.tensor([1, 2])]
)
def test_what_is_no_number_of_tokens_is_refused_by_name_and_type(tokens: Any) -> None:
    with pytest.raises(ReportError, match=f"tokens is .*{type(tokens).__name__}.*: must be a whole number"):
        tokens_of(tokens)


@pytest.mark.parametrize("loss", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([[2.0]]), torch.tensor(2)])
def test_numbers_and_tensors_of_one_value_are_losses(loss: Any) -> None:
    assert float(loss_of(loss)) == 2.0


def test_a_loss_that_is_not_a_number_is_one_all_the_same() -> None:
    assert loss_of(float("nan")) != loss_of(float("nan"))


@pytest.mark.parametrize("loss", [None, "2", True, [2.0], torch.tensor([1.0, 2.0]), torch.tensor(1j)])
def test_what_is_no_loss_is_refused_by_name_and_type(loss: Any) -> None:
    with pytest.raises(ReportError, match=f"loss is .*{type(loss).__name__}.*: must be a number or a tensor of one"):
        loss_of(loss)

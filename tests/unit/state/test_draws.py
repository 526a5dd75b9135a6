"""What is drawn after random state is put back is what would have been drawn."""

import io
import random

import numpy as np
import torch

from decentral.state import draws


def drawn() -> tuple[float, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        torch.randn(()).item(),
        torch.rand(3).sum().item(),
    )


def test_draws_go_on_also_after_a_file_that_runs_no_code() -> None:
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        drawn()  # half a pair of normal numbers is left over
        file = io.BytesIO()
        torch.save(draws.taken("cpu"), file)
        expected = [drawn() for _ in range(3)]
        assert drawn() != expected[0]
        file.seek(0)
        draws.put_back(torch.load(file, weights_only=True), "cpu")
        assert [drawn() for _ in range(3)] == expected


def test_draws_of_another_device_are_left_out() -> None:
    state = draws.taken("cpu")
    expected = drawn()
    draws.put_back({**state, "cuda": torch.zeros(16, dtype=torch.uint8)}, "cpu")
    assert drawn() == expected

import numpy as np
import pytest

from decentral.tensors.finite import all_finite


@pytest.mark.parametrize("size", [0, 1, 5, (1 << 17) + 1])
def test_numbers_are_finite(size: int) -> None:
    assert all_finite(np.zeros(size, dtype=np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 77, 1 << 17, -1])
def test_one_value_spoils_them(value: float, place: int) -> None:
    x_N = np.ones((1 << 17) + 5, dtype=np.float32)
    x_N[place] = value
    assert not all_finite(x_N)

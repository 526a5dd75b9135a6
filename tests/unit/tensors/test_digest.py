import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.tensors.digest import digest


def test_digest_is_pinned_to_its_bytes() -> None:
    # Peers of different releases compare digests, so the value may not change by accident.
    assert digest(torch.tensor([1.0, -2.5])) == "d7b30518f4804d96"


def test_equal_values_in_other_memory_agree() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert digest(x) == digest(x.clone()) == digest(x.flatten()) == digest(x.t().contiguous().t())


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    data=st.data(),
)
def test_any_flipped_bit_is_seen(values: list[float], data: st.DataObject) -> None:
    x = torch.tensor(values)
    flipped = x.clone()
    index = data.draw(st.integers(0, len(values) - 1))
    bit = data.draw(st.integers(0, 31))
    flipped.view(torch.int32)[index] ^= (1 << bit) if bit < 31 else -(1 << 31)
    assert digest(x) != digest(flipped)


def test_zeros_of_both_signs_differ_though_they_compare_equal() -> None:
    plus, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    assert torch.equal(plus, minus)
    assert digest(plus) != digest(minus)


def test_nan_with_the_same_bits_agrees() -> None:
    assert digest(torch.tensor([math.nan])) == digest(torch.tensor([math.nan]))


def test_where_a_tensor_ends_matters() -> None:
    x = torch.arange(4.0)
    cuts = {digest(x), digest(x[:2], x[2:]), digest(x[:1], x[1:]), digest(x, torch.empty(0)), digest(torch.empty(0), x)}
    assert len(cuts) == 5
    assert digest(x[:2], x[2:]) != digest(x[2:], x[:2])


def test_a_length_cannot_pose_as_values() -> None:
    one = torch.tensor([1.0])
    length_as_values = torch.tensor(struct.unpack("<2f", (1).to_bytes(8, "little")))
    assert digest(one, one) != digest(torch.cat([one, length_as_values, one]))


def test_parameters_that_require_grad_are_accepted() -> None:
    assert digest(torch.ones(3, requires_grad=True)) == digest(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="float32 tensors on the CPU"):
        digest(torch.zeros(2, dtype=dtype))


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="on meta"):
        digest(torch.empty(2, device="meta"))

"""Memory for the values of a whole fragment, and its way back to the system."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from decentral.tensors.blank import LARGE_VALUES, blank, blank_like, give_back_freed

#: Below the size from which glibc maps every block by itself, whatever it has learnt.
_BLOCK_BYTES, _BLOCKS = 64 << 10, 2000


def resident_bytes() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def test_what_was_freed_goes_back_to_the_system() -> None:
    blocks = [np.ones(_BLOCK_BYTES, np.uint8) for _ in range(_BLOCKS)]
    top = np.ones(_BLOCK_BYTES, np.uint8)  # keeps the heap from shrinking by itself
    del blocks
    before = resident_bytes()
    give_back_freed()
    assert before - resident_bytes() > _BLOCKS * _BLOCK_BYTES / 2
    assert top.all()


def test_a_blank_is_of_the_same_shape_and_its_own_memory() -> None:
    values = torch.ones(3, 2)
    other = blank_like(values).fill_(2)
    assert (other.shape, other.dtype) == (values.shape, values.dtype)
    assert (values == 1).all()


@pytest.fixture
def _nothing_kept() -> Iterator[None]:
    give_back_freed()
    yield
    give_back_freed()


@pytest.mark.usefixtures("_nothing_kept")
def test_a_large_block_is_taken_again_once_nobody_refers_to_it() -> None:
    values = blank(LARGE_VALUES)
    at, part, seen = values.data_ptr(), values[5:7], values.numpy()[8:]
    del values
    assert blank(LARGE_VALUES).data_ptr() != at, "a slice refers to it"
    del part
    assert blank(LARGE_VALUES).data_ptr() != at, "an array refers to it"
    del seen
    again = blank_like(torch.empty(LARGE_VALUES // 2, 2))
    assert (again.data_ptr(), again.shape) == (at, (LARGE_VALUES // 2, 2))
    assert blank(LARGE_VALUES + 1).data_ptr() != at


@pytest.mark.usefixtures("_nothing_kept")
def test_no_more_than_four_large_blocks_are_kept_and_all_are_given_back() -> None:
    blocks = [blank(LARGE_VALUES).fill_(number) for number in range(6)]
    before = resident_bytes()
    blocks.clear()
    assert before - resident_bytes() == pytest.approx(2 * 4 * LARGE_VALUES, rel=0.1)
    give_back_freed()
    assert before - resident_bytes() == pytest.approx(6 * 4 * LARGE_VALUES, rel=0.1)

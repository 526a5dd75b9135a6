"""Memory for the values of a whole fragment, and its way back to the system."""

import os
import re
from pathlib import Path

import numpy as np
import torch

from decentral.tensors.blank import blank_like, give_back_freed

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

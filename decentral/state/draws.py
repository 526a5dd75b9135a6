"""The random state of this process, taken and put back: a worker that goes on draws what it would have drawn.

Torch's on the CPU and on the worker's device, numpy's global one, and Python's. Generators that a trainer has made
for itself are its own to keep (``Stateful``). Plain numbers and tensors, so that reading it back runs no code.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def taken(device: str) -> dict[str, Any]:
    """The random state as it is; ``device`` is the one that the trainer computes on."""
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    draws = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(words).astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if device.startswith("cuda"):
        draws["cuda"] = torch.cuda.get_rng_state(device)
    elif device == "mps":
        draws["mps"] = torch.mps.get_rng_state()
    return draws


def put_back(draws: Mapping[str, Any], device: str) -> None:
    """Set the random state to what was ``taken``; that of another kind of device is left out."""
    random.setstate(draws["python"])
    words, position, has_gauss, gauss = draws["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(draws["torch"])
    if device.startswith("cuda") and "cuda" in draws:
        torch.cuda.set_rng_state(draws["cuda"], device)
    elif device == "mps" and "mps" in draws:
        torch.mps.set_rng_state(draws["mps"])

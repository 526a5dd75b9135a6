"""Vectors that codecs are tested on, and hypothesis strategies that draw them."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

ALL_CODECS = (
    *("fp32", "bf16", "fp16", "int8-b8", "int8-b100", "int8-b128", "int8-b65536", "int8-b101-sr"),
    *(
        "int4-b8",
        "int4-b128",
        "int4-b128-sr",
        "e3m0-b8",
        "e3m0-b128",
        "e3m0-b128-sr",
        "e3m0-b65536",
        "int2-b8",
        "int2-b100",
        "int2-b128",
        "sign-b8",
        "sign-b1024",
    ),
    *("topk0.4-8bit", "topk1.5-2bit", "topk6-4bit"),
)
#: Those that round every value alike; the others by chance, or send only some.
ROUNDED = tuple(name for name in ALL_CODECS if not name.endswith("-sr") and not name.startswith("topk"))
FLOAT_MAX = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).smallest_normal

#: Any finite float32, subnormals and the largest included.
finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    """Arbitrary finite values, or normal noise on any scale with some values zeroed; 0 to 300 of them."""
    if draw(st.booleans()):
        return torch.tensor(draw(st.lists(finite_floats, max_size=40)), dtype=torch.float32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numel, exponent = draw(st.integers(0, 300)), draw(st.integers(-149, 124))
    noise = np.ldexp(rng.normal(size=numel).clip(-7, 7), exponent) * (
        rng.random(numel) < draw(st.sampled_from((0.1, 1)))
    )
    return torch.from_numpy(noise.astype(np.float32))


def normal(numel: int, *, seed: int = 0, scale: float = 1e-3) -> Tensor:
    """Normal noise of the size of a pseudo-gradient."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * scale


def bits(x_N: Tensor) -> list[int]:
    """The bits of every value, so that -0 differs from 0."""
    return x_N.view(torch.int32).tolist()

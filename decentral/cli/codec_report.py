"""What codecs cost and what they lose, measured on this machine: bits, error on a pseudo-gradient, speed on one core.

It knows the interface of a codec and of a trainer; how the numbers are shown is ``cli.codecs``.

Legend: N = values in the vector.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decentral.codecs.codec import Codec, bits_per_value
from decentral.errors import ConfigError, DivergedError
from decentral.ports.trainer import Trainer
from decentral.tensors.finite import all_finite
from decentral.tensors.layout import Layout

#: Values that speed is measured on: more than a core's caches hold.
SPEED_NUMEL = 1 << 22
#: Spent on timing one direction of one codec, beyond the least number of calls.
_BUDGET_S = 0.03
_LEAST_CALLS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Values per second on one core, the fastest of a few calls."""

    encode: float
    decode: float


@dataclass(frozen=True, slots=True)
class CodecRow:
    """One codec, measured."""

    name: str
    bits_per_value: float
    relative_error: float
    """||x' - x|| / ||x||."""
    speed: Speed | None
    """``None`` if it was not measured."""

    @property
    def compression(self) -> float:
        """Bytes of float32 values over the bytes of the payload."""
        return 32 / self.bits_per_value

    def to_dict(self) -> dict[str, Any]:
        """For JSON; described in ``docs/configuration.md``."""
        return {
            "name": self.name,
            "bits_per_value": self.bits_per_value,
            "compression": self.compression,
            "relative_error": self.relative_error,
            "encode_values_per_s": self.speed and self.speed.encode,
            "decode_values_per_s": self.speed and self.speed.decode,
        }


def pseudo_gradient(trainer: Trainer, inner_steps: int) -> Tensor:
    """What the trainer would send after its first round: initial minus trained parameters, float32 [N].

    Raises:
        DivergedError: a value is not finite.
        ConfigError: no parameter has changed.
    """
    layout = Layout.of(trainer.parameters())
    anchor_N = layout.gather(trainer.parameters(), 0)
    trainer.train_steps(0, inner_steps)
    delta_N = anchor_N.sub_(layout.gather(trainer.parameters(), 0))
    if not all_finite(delta_N.numpy()):
        raise DivergedError(f"The parameters are not finite after {inner_steps} inner steps.")
    if not delta_N.any():
        raise ConfigError(
            f"No parameter has changed after {inner_steps} inner steps: there is no pseudo-gradient to encode.",
            hint="Take more steps: --set method.inner_steps=N.",
        )
    return delta_N


def measure(codecs: Sequence[Codec], delta_N: Tensor, *, with_speed: bool) -> list[CodecRow]:
    """A row for each codec, from many bits per value to few.

    Args:
        codecs: to measure.
        delta_N: error and bits are those of this vector; speed is that of its values, repeated or cut.
        with_speed: time the codecs as well.
    """
    timed_N = delta_N.repeat(-(-SPEED_NUMEL // delta_N.numel()))[:SPEED_NUMEL] if with_speed else None
    with _one_thread():
        rows = [_row(codec, delta_N, timed_N) for codec in codecs]
    return sorted(rows, key=lambda row: -row.bits_per_value)


def _row(codec: Codec, delta_N: Tensor, timed_N: Tensor | None) -> CodecRow:
    numel = delta_N.numel()
    error_N = codec.decode(codec.encode(delta_N), numel).sub_(delta_N)
    return CodecRow(
        codec.name,
        bits_per_value(codec, numel),
        _norm(error_N) / _norm(delta_N),
        None if timed_N is None else _speed(codec, timed_N),
    )


def _speed(codec: Codec, x_N: Tensor) -> Speed:
    payload, numel = codec.encode(x_N), x_N.numel()
    encode_s = _fastest_s(lambda: codec.encode(x_N))
    decode_s = _fastest_s(lambda: codec.decode(payload, numel))
    return Speed(numel / encode_s, numel / decode_s)


def _fastest_s(call: Callable[[], object]) -> float:
    """Seconds of the fastest call: whatever else the machine does can only slow one down."""
    fastest_s, spent_s, calls = math.inf, 0.0, 0
    while calls < _LEAST_CALLS or spent_s < _BUDGET_S:
        began = time.perf_counter()
        call()
        took_s = time.perf_counter() - began
        fastest_s, spent_s, calls = min(fastest_s, took_s), spent_s + took_s, calls + 1
    return fastest_s


def _norm(x_N: Tensor) -> float:
    return float(torch.linalg.vector_norm(x_N, dtype=torch.float64))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

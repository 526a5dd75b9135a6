"""The utilisation that the Streaming DiLoCo paper prints, beside what our own model of it says.

Source: Streaming DiLoCo (arXiv 2501.18512), table 4. H = 100, fragments of three layers, two replicas.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from decentral.sim.utilisation import Method, Model, bandwidth_for

#: Shares of time in compute.
TARGETS = (0.5, 0.8, 0.9, 0.95, 0.99)

MODELS: Mapping[str, Model] = {
    "1B": Model(1e9, 24, 0.1),
    "10B": Model(1e10, 48, 0.8),
    "100B": Model(1e11, 108, 4.9),
}

#: Gbit/s by model and method, for each of the targets.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "1B": {
        "data parallel": (86.8, 152.6, 184.2, 222.3, 569.0),
        "DiLoCo": (1.4, 6.2, 13.3, 23.3, 86.8),
        "+ streaming": (1.4, 5.2, 9.1, 16.0, 28.1),
        "+ overlap": (1.4, 4.3, 6.2, 9.1, 11.0),
        "+ fp4": (0.4, 0.9, 1.7, 2.0, 3.0),
    },
    "10B": {
        "data parallel": (104.8, 222.3, 222.3, 268.3, 471.5),
        "DiLoCo": (1.7, 7.5, 16.0, 33.9, 104.8),
        "+ streaming": (1.7, 5.2, 9.1, 13.3, 19.3),
        "+ overlap": (1.7, 3.6, 5.2, 6.2, 7.5),
        "+ fp4": (0.4, 0.9, 1.4, 1.4, 1.7),
    },
    "100B": {
        "data parallel": (184.2, 323.8, 390.7, 390.7, 471.5),
        "DiLoCo": (3.0, 11.0, 23.3, 49.4, 184.2),
        "+ streaming": (2.4, 6.2, 9.1, 11.0, 19.3),
        "+ overlap": (1.7, 3.6, 4.3, 5.2, 5.2),
        "+ fp4": (0.5, 0.9, 1.1, 1.1, 1.4),
    },
}

#: The bandwidths that the paper tried, Gbit/s: all it prints are among them.
GRID = tuple(10 ** (-1 + 4 * place / 49) for place in range(50))


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one model."""

    model: str
    method: str
    ours: tuple[float, ...]
    """Gbit/s for each of ``TARGETS``."""
    published: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over the paper's bandwidth before it was rounded for print."""
        return tuple(our / GRID[place_of(theirs)] for our, theirs in zip(self.ours, self.published, strict=True))

    @property
    def steps_off(self) -> tuple[int, ...]:
        """How many places of the paper's grid there are between the grid's last bandwidth below ours and theirs."""
        places = (math.floor((math.log10(our) + 1) * 49 / 4) for our in self.ours)
        return tuple(place - place_of(theirs) for place, theirs in zip(places, self.published, strict=True))


def methods(inner_steps: int = 100, delay_steps: int = 1) -> tuple[Method, ...]:
    """The five methods of the paper; where there are fragments, of three layers each."""
    return (
        Method("data parallel", 1),
        Method("DiLoCo", inner_steps),
        Method("+ streaming", inner_steps, 3),
        Method("+ overlap", inner_steps, 3, delay_steps),
        Method("+ fp4", inner_steps, 3, delay_steps, bits=4.0),
    )


def printed(gbit_per_s: float) -> float:
    """A bandwidth as the paper prints it: rounded to two decimals, then to one."""
    return float(f"{round(gbit_per_s, 2):.1f}")


def place_of(published: float) -> int:
    """The place on the grid of a bandwidth as printed.

    Raises:
        ValueError: it is none of the grid's.
    """
    return [printed(gbit_per_s) for gbit_per_s in GRID].index(published)


def compare(delay_steps: int = 1) -> list[Row]:
    """Our figures beside the paper's, with ``delay_steps`` where there is overlap."""
    settings = methods(delay_steps=delay_steps)
    return [_row(name, model, method) for name, model in MODELS.items() for method in settings]


def _row(model_name: str, model: Model, method: Method) -> Row:
    ours = tuple(bandwidth_for(target, model, method) / 1e9 for target in TARGETS)
    return Row(model_name, method.name, ours, PUBLISHED[model_name][method.name])

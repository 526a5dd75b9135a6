"""How often something is done: by time, or by inner steps. Pure."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Every:
    """After so many seconds, or at every multiple of so many inner steps; never, if neither is said."""

    seconds: float = math.inf
    """Since it was begun last; wherever in a round a worker is then."""
    steps: int = 0
    """0: it goes by time."""
    together: bool = False
    """Of stages that save together: at steps that are common to all of them (``schedule.together``)."""

"""What swarms of any method have to survive in the simulator: faults drawn from a seed, on unequal machines."""

from typing import Any

from decentral.sim.faults import Fault, Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
from decentral.sim.world import Machine, peer_id


def hardships(
    seed: int, num_workers: int, between_s: tuple[float, float], late_s: float = 9.0, aside_s: float = 0.03
) -> tuple[dict[str, Any], FaultTape]:
    """5 % loss, two crashes with restarts, a pause, a partition, a late joiner, wrong clocks.

    Args:
        seed: of what is drawn; of every second one work is done aside.
        num_workers: the last of which comes late.
        between_s: virtual seconds in which faults happen.
        late_s: when the late one comes.
        aside_s: what work aside takes.

    Returns:
        Settings of the scenario, and what happens to it.
    """
    skews = {1: 600.0, 2: -600.0}
    machines = {
        peer_id(number): Machine(skew_s=skews.get(number, 0.0), aside_s=aside_s * (seed % 2))
        for number in range(num_workers)
    }
    plan = Plan(*between_s, num={Kind.KILL: 2, Kind.PAUSE: 1, Kind.CUT: 1}, loss=0.05)
    faults = [*draw(seed, range(num_workers - 1), plan), Fault(Kind.START, late_s, (num_workers - 1,))]
    return {"machines": machines, "latest": 1, "conditions": Conditions(jitter=0.3)}, FaultTape(faults)

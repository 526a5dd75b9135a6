"""After which inner step to launch which fragment. Knows no tensors, no peers and no time.

Steps are counted as finished inner steps since the start of the run: after the first one, ``step`` is 1.
"""

from dataclasses import dataclass

from decentral.types import SyncKey


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Every fragment is launched once in ``inner_steps`` steps; the launches are evenly spread.

    With H, P, tau and G for the four arguments, fragments p, p + G, p + 2 G, ... are launched together: in round k at
    step ``k H + floor((p + 1) H / G) - tau``, where p < G. A result that is used tau steps after its launch is
    therefore in use by the end of its round, and the last one exactly then. P = 1 and tau = 0 is plain DiLoCo.

    When a result is used is up to each worker: its link may be slow, and nobody else's plan depends on it.

    Args:
        inner_steps: H, steps between two launches of the same fragment, >= 1.
        num_fragments: P, >= 1.
        delay_steps: tau, in [0, floor(H / G)): how many steps before the end of its share of the round a fragment is
            launched.
        num_groups: G, launches a round, in [1, min(P, H)]; 0 for P.

    Raises:
        ValueError: an argument out of range.

    Source: Streaming DiLoCo (arXiv 2501.18512), algorithm 2. Differences: the phases are spread evenly and G need
    not divide H; tau is bounded by the distance of two launches (as in torchft), not by H.
    """

    inner_steps: int
    num_fragments: int = 1
    delay_steps: int = 0
    num_groups: int = 0

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if self.num_fragments < 1:
            raise ValueError(f"num_fragments must be at least 1, got {self.num_fragments}")
        if not 0 <= self.num_groups <= self.num_fragments:
            raise ValueError(
                f"num_groups must be between 0 and num_fragments = {self.num_fragments}, got {self.num_groups}"
            )
        if not self.num_groups:
            object.__setattr__(self, "num_groups", self.num_fragments)
        if self.num_groups > self.inner_steps:
            raise ValueError(f"{self.num_groups} launches do not fit into inner_steps = {self.inner_steps}")
        distance = self.inner_steps // self.num_groups
        if not 0 <= self.delay_steps < distance:
            raise ValueError(
                f"delay_steps must be at least 0 and below inner_steps / launches a round = {distance}, "
                f"got {self.delay_steps}"
            )

    def launch_step(self, key: SyncKey) -> int:
        """The number of finished steps at which ``key`` is launched."""
        place = key.fragment % self.num_groups + 1
        return self.step_of_round(key.round) + place * self.inner_steps // self.num_groups - self.delay_steps

    def is_together(self, one: int, other: int) -> bool:
        """Whether two fragments are launched at the same step."""
        return (one - other) % self.num_groups == 0

    def rounds_after(self, step: int) -> tuple[int, ...]:
        """For each fragment the first round that is launched after ``step`` finished steps."""
        rounds = [max(0, step // self.inner_steps - 1)] * self.num_fragments
        for fragment in range(self.num_fragments):
            while self.launch_step(SyncKey(rounds[fragment], fragment)) <= step:
                rounds[fragment] += 1
        return tuple(rounds)

    def step_of_round(self, round: int) -> int:
        """The number of finished steps at which ``round`` begins: where a joiner starts to count."""
        return round * self.inner_steps

"""Which fragment to launch and which to apply after an inner step. Knows no tensors, no peers and no time.

Steps are counted as finished inner steps since the start of the run: after the first one, ``step`` is 1.
"""

from dataclasses import dataclass

from decentral.types import SyncKey


@dataclass(frozen=True, slots=True)
class Launch:
    """Take the pseudo-gradient of ``key.fragment`` now and start its exchange."""

    key: SyncKey


@dataclass(frozen=True, slots=True)
class Apply:
    """Wait for the exchange of ``key`` and take the outer step with its result."""

    key: SyncKey


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Every fragment once in ``inner_steps`` steps, evenly spread, each result used ``delay_steps`` later.

    With H, P and tau for the three arguments, round k of fragment f is applied at step ``floor((f + 1) H / P) + k H``
    and launched tau steps earlier. Hence

    * round k lies wholly within steps k H + 1 to (k + 1) H, and no exchange is in flight where a round begins;
    * at most one exchange is in flight: fragments are at least floor(H / P) > tau steps apart;
    * a step has no event, one event, or (only if tau is 0) the ``Launch`` and then the ``Apply`` of one key.

    P = 1 and tau = 0 is plain DiLoCo.

    Args:
        inner_steps: H, steps between two synchronisations of the same fragment, >= 1.
        num_fragments: P, in [1, H].
        delay_steps: tau, in [0, floor(H / P)).

    Raises:
        ValueError: an argument out of range.

    Source: Streaming DiLoCo (arXiv 2501.18512), algorithm 2. Differences: the phases are spread evenly and P need
    not divide H; tau is bounded by the distance of two fragments (as in torchft), not by H.
    """

    inner_steps: int
    num_fragments: int = 1
    delay_steps: int = 0

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if not 1 <= self.num_fragments <= self.inner_steps:
            raise ValueError(
                f"num_fragments must be between 1 and inner_steps = {self.inner_steps}, got {self.num_fragments}"
            )
        distance = self.inner_steps // self.num_fragments
        if not 0 <= self.delay_steps < distance:
            raise ValueError(
                f"delay_steps must be at least 0 and below inner_steps / num_fragments = {distance}, "
                f"got {self.delay_steps}"
            )

    def events_at(self, step: int) -> tuple[Launch | Apply, ...]:
        """What is due once ``step`` inner steps are finished, in the order in which to do it."""
        if step < 1:
            return ()
        # Offsets run from 1 to H, hence the last step of a round belongs to it and not to the next one.
        round, offset = (step - 1) // self.inner_steps, (step - 1) % self.inner_steps + 1
        events: list[Launch | Apply] = []
        for fragment in range(self.num_fragments):
            due = self._apply_offset(fragment)
            if offset == due - self.delay_steps:
                events.append(Launch(SyncKey(round, fragment)))
            if offset == due:
                events.append(Apply(SyncKey(round, fragment)))
        return tuple(events)

    def next_event_after(self, step: int) -> int:
        """The first step later than ``step`` (>= 0) that has an event: train up to there without asking again."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        due = [self._apply_offset(fragment) for fragment in range(self.num_fragments)]
        offsets = [*due, *(offset - self.delay_steps for offset in due)]
        return min(step + 1 + (offset - step - 1) % self.inner_steps for offset in offsets)

    def step_of_round(self, round: int) -> int:
        """The number of finished steps at which ``round`` begins: where a joiner starts to count."""
        return round * self.inner_steps

    def launch_step(self, key: SyncKey) -> int:
        """The step at which ``key`` is launched."""
        return self.step_of_round(key.round) + self._apply_offset(key.fragment) - self.delay_steps

    def _apply_offset(self, fragment: int) -> int:
        """The step of the first round at which ``fragment`` is applied, in [1, H]."""
        return (fragment + 1) * self.inner_steps // self.num_fragments

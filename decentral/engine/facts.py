"""What of a worker's state is no tensor, as plain JSON with names: written by ``capture``, checked and read here.

It says how the run was cut, mixed and stepped when the state was made. Whoever goes on with another cut, rule or method
finds out by comparing.
"""

from typing import Any

import msgspec

from decentral.engine.options import Mixing, RunOptions
from decentral.errors import MismatchError
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.exchange.api import Excuse
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.server.options import ServerOptions
from decentral.state.worker_state import WorkerState
from decentral.tensors.layout import Layout
from decentral.types import PeerId

#: [start, stop) of values of a fragment.
Span = tuple[int, int]


class Shape(msgspec.Struct, frozen=True):
    """What work on its way depends on: with another shape it is taken back first."""

    names: tuple[tuple[str, ...], ...]
    """Of the parameters in each fragment, in order."""
    inner_steps: int
    delay_steps: int
    num_groups: int
    mixing: str
    eager: bool


class Made(msgspec.Struct, frozen=True):
    """By what a state was made."""

    shape: Shape
    buffers: tuple[str, ...]
    """What each tensor of the outer state is."""
    keeps: str
    """What feedback keeps; empty for nothing."""

    @staticmethod
    def by(options: RunOptions, layout: Layout, keeps: str) -> "Made":
        """By a worker with these; its feedback keeps what ``keeps`` says."""
        plan, eager = options.plan, options.eager is not None
        return Made(
            Shape(layout.names, plan.inner_steps, plan.delay_steps, plan.num_groups, _mixing(options.mixing), eager),
            options.rule.buffers,
            keeps,
        )


def _mixing(mixing: Mixing) -> str:
    match mixing:
        case AllReduceOptions():
            return "all-reduce"
        case ServerOptions():
            return "parameter servers"
        case GossipOptions(swaps=None):
            return "gossip in rounds"
        case GossipOptions():
            return "gossip at random moments"


class FragmentFacts(msgspec.Struct, frozen=True):
    """Of one fragment; see ``engine.fragment``."""

    round: int
    num_steps: int
    counted: tuple[PeerId, ...]
    pending: tuple[int, int]
    """Tokens and steps."""
    launched: tuple[int, int]
    diverged: int
    ends: tuple[tuple[int, str], ...]
    num_members: int
    """Of its last round; 0 before that."""
    share: float = 0.0
    """Of its lead, if there is one."""
    arrived: tuple[Span, ...] | None = None
    """Of an outer step that has arrived and is not taken in, the ranges that were closed without us."""


class EndedFacts(msgspec.Struct, frozen=True):
    """Of a sync whose outer step was taken and is not taken in."""

    members: tuple[PeerId, ...]
    uncounted: tuple[Span, ...] | None
    missed: tuple[Span, ...]
    digest: str
    delta_norm: float
    residual_norm: float
    excuse: Excuse | None
    late: bool


class SyncFacts(msgspec.Struct, frozen=True):
    """Of a sync on its way."""

    round: int
    fragment: int
    step: int
    group: float
    tokens: int
    steps: int
    ended: EndedFacts | None = None


class Facts(msgspec.Struct, frozen=True):
    """All of them."""

    made: Made
    fragments: tuple[FragmentFacts, ...]
    syncs: tuple[SyncFacts, ...]
    course: dict[str, float]
    """See ``Course.facts``."""
    since: int
    """See ``Presence``."""
    exchange: dict[str, Any]
    """See ``Memory``."""
    cut_of: int = 0
    """Of how many stages' states it was made (``recut``), so that nothing of it is on its way any more; 0 for none, -1
    if it goes on at a later step than it was saved."""
    turned: bool = False
    """Whether a stage of now was cut out of a whole model's, or a whole model made of stages'."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @staticmethod
    def of(state: WorkerState) -> "Facts":
        """Those of a state.

        Raises:
            MismatchError: they are not what this version writes.
        """
        try:
            facts = msgspec.convert(state.facts, Facts)
            if len(facts.fragments) != len(facts.made.shape.names):
                raise ValueError("the fragments are not those of the cut")
            if any(not 0 <= sync.fragment < len(facts.fragments) for sync in facts.syncs):
                raise ValueError("a sync of a fragment that there is not")
        except (msgspec.ValidationError, ValueError) as err:
            raise unreadable(err) from err
        return facts


def unreadable(err: Exception) -> MismatchError:
    """What is said of a state that this release cannot read."""
    return MismatchError(
        f"the saved state cannot be read: {err}",
        hint="It was written by another release of decentral: go on with that one, or begin a new run.",
    )

"""This worker's copy of the model: the user's trainer, the anchors, and the arithmetic between them.

Everything here blocks and runs on the clock's thread, except ``move``, which may come at any time; nothing here knows a
peer. Anchors and outer states are never changed in place, so a snapshot is a handful of references.

Legend: N = values in a fragment.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decentral.codecs.feedback import Feedback, Sent
from decentral.exchange.api import Contribution
from decentral.outer.blend import blend, rebase
from decentral.outer.rule import Mixed, OuterRule
from decentral.ports.trainer import StepReport, Trainer
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.tensors.finite import all_finite
from decentral.tensors.layout import Layout
from decentral.types import PeerId, SyncKey


@dataclass(slots=True)
class _Pending:
    """Work of a fragment that no round has counted yet."""

    tokens: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Applied:
    """A round that has become part of the replica."""

    digest: str
    """Of the new anchor and outer state."""
    delta_norm: float
    """L2 norm of the mean as it came."""
    residual_norm: float
    """L2 norm of what this worker still has to send."""


class Replica:
    """The local model between two anchors.

    Args:
        trainer: the user's side.
        layout: how its parameters are cut into fragments.
        rule: the outer rule.
        feedback: what becomes of the codec's error.
        mix_alpha: share of the local parameters kept when a new anchor is applied.
        me: this worker, whom an outer state may count.
    """

    def __init__(
        self, trainer: Trainer, layout: Layout, rule: OuterRule, feedback: Feedback, mix_alpha: float, me: PeerId
    ) -> None:
        self._trainer = trainer
        self._layout = layout
        self._rule = rule
        self._feedback = feedback
        self._mix_alpha = mix_alpha
        self._me = me
        self.rounds_diverged = 0
        """Launches in a row at which the parameters were not finite."""
        self._fragments: list[FragmentState] = []
        self._bases_N: list[Tensor] = []
        """What the local parameters were last set to: the anchors, unless these were moved since."""
        self._changing = threading.Lock()
        self._pending = [_Pending() for _ in range(layout.num_fragments)]
        self._launched = [_Pending() for _ in range(layout.num_fragments)]

    @property
    def has_state(self) -> bool:
        """Whether there is an anchor yet."""
        return bool(self._fragments)

    def anchor(self, fragment: int) -> tuple[str, Tensor] | None:
        """A fragment's anchor [N] with the digest of its state; ``None`` as long as there is none."""
        return (self._fragments[fragment].digest, self._fragments[fragment].anchor_N) if self._fragments else None

    @property
    def pending_steps(self) -> int:
        """Inner steps that no round has counted, of the fragment that waits longest."""
        return max(pending.steps for pending in self._pending)

    def found(self) -> None:
        """Take the trainer's initial parameters as the first anchor."""
        parameters = self._trainer.parameters()
        for fragment in range(self._layout.num_fragments):
            anchor_N = self._layout.gather(parameters, fragment)
            self._fragments.append(FragmentState.of(0, anchor_N, self._rule.init(anchor_N)))
            self._bases_N.append(anchor_N)

    def snapshot(self, step: int) -> Snapshot:
        """The anchors as they stand, for newcomers and for files."""
        return Snapshot(step, tuple(self._fragments))

    def train(self, first_step: int, count: int) -> StepReport:
        """Take inner steps and count them as pending."""
        report = self._trainer.train_steps(first_step, count)
        for pending in self._pending:
            pending.tokens += report.tokens
            pending.steps += count
        return report

    def launch(self, key: SyncKey) -> Contribution:
        """The pseudo-gradient of one fragment as of now; of weight 0 if there is nothing (finite) to give.

        A replica whose parameters are not finite goes back to the anchor: its steps are lost, the swarm's are not.
        """
        state = self._fragments[key.fragment]
        delta_N = self._bases_N[key.fragment] - self._layout.gather(self._trainer.parameters(), key.fragment)
        launched = self._launched[key.fragment] = self._pending[key.fragment]
        self._pending[key.fragment] = _Pending()
        brought = self._feedback.bring(key.fragment, delta_N)
        mine = Contribution(
            brought.values_N,
            self._feedback.weight(launched.tokens),
            state.digest,
            state.outer.num_steps,
            brought.relative_N,
            state.outer.counted,
            anchor_N=state.anchor_N,
            num_inner_steps=launched.steps,
        )
        tensors = [values_N for values_N in (brought.values_N, brought.relative_N) if values_N is not None]
        if not all(all_finite(values_N.numpy()) for values_N in tensors):
            self.reset()
            self.rounds_diverged += 1
            nothing_N = torch.zeros_like(delta_N)
            excuse = "the parameters were not finite; went back to the anchor"
            return replace(mine, delta_N=nothing_N, relative_N=None, weight=0.0, excuse=excuse)
        self.rounds_diverged = 0
        if self._me in state.outer.counted and not self._feedback.remembers(key.fragment):
            return replace(mine, weight=0.0, excuse="listens once: what the others count of this worker was lost")
        return mine

    def give_back(self, key: SyncKey) -> None:
        """The round did not count the contribution; the work is still in the parameters and enters the next one."""
        pending, launched = self._pending[key.fragment], self._launched[key.fragment]
        pending.tokens += launched.tokens
        pending.steps += launched.steps
        self._launched[key.fragment] = _Pending()

    def apply(self, key: SyncKey, mixed: Mixed, sent_N: Tensor | None) -> Applied:
        """Take the outer step and blend the new anchor into the parameters.

        Ranges that were closed without us keep our local work, moved along with the anchor.

        Args:
            key: what was mixed.
            mixed: what came out.
            sent_N: what of ours is in it, as the others decoded it; ``None`` for nothing.
        """
        with self._changing:
            old = self._fragments[key.fragment]
            anchor_N, outer = self._rule.step(old.anchor_N, mixed, old.outer)
            self._fragments[key.fragment] = FragmentState.of(key.round + 1, anchor_N, outer)
        new_local_N, base_N = anchor_N, self._bases_N[key.fragment]
        if self._mix_alpha or mixed.missed:
            local_N = self._layout.gather(self._trainer.parameters(), key.fragment)
            if old.anchor_N is not base_N:
                # First to where the anchor was moved, or what is kept of them would pull it back.
                local_N = rebase(local_N, base_N, old.anchor_N)
            new_local_N = blend(local_N, anchor_N, self._mix_alpha)
            for span in (slice(*bounds) for bounds in mixed.missed):
                new_local_N[span] = rebase(local_N[span], old.anchor_N[span], anchor_N[span])
        self._load(key.fragment, new_local_N)
        self._bases_N[key.fragment] = anchor_N
        if sent_N is not None:
            self._feedback.commit(key.fragment, Sent(sent_N, mixed.relative, mixed.missed, mixed.whole))
        residual_N = self._feedback.residuals()[key.fragment]
        residual_norm = float(residual_N.norm()) if residual_N is not None else 0.0
        return Applied(self._fragments[key.fragment].digest, float(mixed.delta_N.norm()), residual_norm)

    def skip(self, key: SyncKey) -> None:
        """The round ended without a result: the same anchor, the next round.

        Nobody is counted on any more, else a swarm in which all have lost their references would listen for ever.
        """
        with self._changing:
            state = replace(self._fragments[key.fragment], round=key.round + 1)
            if state.outer.counted:
                state = FragmentState.of(state.round, state.anchor_N, replace(state.outer, counted=()))
            self._fragments[key.fragment] = state

    def jump(self, round: int) -> None:
        """Go on in another round, with the same anchors and the same work."""
        with self._changing:
            self._fragments = [replace(state, round=round) for state in self._fragments]

    def move(self, fragment: int, shift_N: Tensor) -> None:
        """Move an anchor outside of any round. On any thread: inner steps may be under way.

        The local parameters follow with the next outer step; the work since the last one is what it was.
        """
        with self._changing:
            state = self._fragments[fragment]
            self._fragments[fragment] = FragmentState.of(state.round, state.anchor_N + shift_N, state.outer)

    def adopt(self, snapshot: Snapshot) -> None:
        """Replace the anchors by downloaded ones; local work not counted yet moves along with them."""
        parameters = self._trainer.parameters()
        for fragment, state in enumerate(snapshot.fragments):
            local_N = state.anchor_N
            if self.has_state and self._pending[fragment].tokens:
                own_N = self._layout.gather(parameters, fragment)
                local_N = rebase(own_N, self._bases_N[fragment], state.anchor_N)
                if not all_finite(local_N.numpy()):
                    local_N, self._pending[fragment] = state.anchor_N, _Pending()
            self._load(fragment, local_N)
        with self._changing:
            self._fragments = list(snapshot.fragments)
        self._bases_N = [state.anchor_N for state in snapshot.fragments]
        self._feedback.adopted()

    def reset(self) -> None:
        """Go back to the anchors; work not counted yet is lost, also what is on its way and may come back."""
        self._bases_N = self._load_anchors()
        self._pending = [_Pending() for _ in self._fragments]
        self._launched = [_Pending() for _ in self._fragments]
        self._feedback.forget()

    def validate(self) -> float:
        """Validation loss of the anchors; the local parameters are kept."""
        parameters = self._trainer.parameters()
        local = [self._layout.gather(parameters, fragment) for fragment in range(self._layout.num_fragments)]
        try:
            self._load_anchors()
            loss = self._trainer.validate()
        finally:
            for fragment, local_N in enumerate(local):
                self._load(fragment, local_N)
        return loss if math.isfinite(loss) else math.nan

    def anchors(self) -> dict[str, Tensor]:
        """Named parameters of the anchors: what a run is about."""
        values: dict[str, Tensor] = {}
        for fragment, state in enumerate(self._fragments):
            values |= self._layout.scatter(state.anchor_N, fragment)
        return values

    def residuals(self) -> dict[str, Tensor]:
        """Named parts, shaped as the parameters, of what is still to be sent; empty if nothing is."""
        values: dict[str, Tensor] = {}
        for fragment, residual_N in enumerate(self._feedback.residuals()):
            if residual_N is not None:
                values |= self._layout.scatter(residual_N, fragment)
        return values

    def restore_residuals(self, values: Mapping[str, Tensor]) -> float:
        """Go on with the residuals of an earlier life, if there are any; returns their L2 norm.

        Raises:
            MismatchError: a parameter is missing or has another shape.
        """
        if not values:
            return 0.0
        residuals = [
            self._layout.gather(values, fragment) if any(slot.name in values for slot in slots) else None
            for fragment, slots in enumerate(self._layout.fragments)
        ]
        self._feedback.restore(residuals)
        return math.hypot(*(float(residual_N.norm()) for residual_N in residuals if residual_N is not None))

    def _load(self, fragment: int, values_N: Tensor) -> None:
        self._trainer.load(self._layout.scatter(values_N, fragment))

    def _load_anchors(self) -> list[Tensor]:
        """Set the parameters to the anchors and return these: they may be moved meanwhile."""
        anchors = [state.anchor_N for state in self._fragments]
        for fragment, anchor_N in enumerate(anchors):
            self._load(fragment, anchor_N)
        return anchors

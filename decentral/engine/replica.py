"""This worker's copy of the model: the user's model, the anchors, and the arithmetic between them.

What touches the local parameters (``take``, ``land``, ...) runs on the clock's thread. What does not
(``bring``, ``step``, ``move``) may run on any other at the same time: a fragment is cut out of the parameters at once,
and everything until its new anchor is there goes on beside the training. Nothing here knows a peer. Anchors and outer
states are never changed in place, so a snapshot is a handful of references.

Legend: N = values in a fragment.
"""

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decentral.codecs.feedback import Feedback, Sent
from decentral.engine.fragment import Ahead, Arrived, Fragment, Pending, Restored, Taken
from decentral.exchange.api import Base, Contribution, Excuse
from decentral.exchange.merge import WeightBy, norm_of, weight_of
from decentral.outer.blend import blend, blend_, rebase
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed, OuterRule
from decentral.ports.trainer import Model, Spread, Stateful, StepReport
from decentral.state.snapshot import FragmentState, Snapshot, combined_digest
from decentral.tensors.finite import all_finite
from decentral.tensors.layout import Layout
from decentral.tensors.nested import begun_anew
from decentral.tensors.staging import Staging
from decentral.types import PeerId, SyncKey


@dataclass(frozen=True, slots=True)
class Applied:
    """A round that has become part of the replica."""

    digest: str
    """Of the new anchor and outer state."""
    delta_norm: float
    """L2 norm of the mean as it came."""
    residual_norm: float
    """L2 norm of what this worker still has to send."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How local parameters go on from an outer step."""

    mix_alpha: float = 0.0
    """Share of the local parameters kept when a new anchor is taken in."""
    eager: Eager | None = None
    """Go on from the own fresh work at the launch instead, and take in the anchor with the next one."""


class Replica:
    """The local model between two anchors.

    Args:
        model: the user's side.
        layout: how its parameters are cut into fragments.
        rule: the outer rule.
        feedback: what becomes of the codec's error.
        onward: how local parameters go on from an outer step.
        me: this worker, whom an outer state may count.
        weight_by: what a contribution weighs.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        rule: OuterRule,
        feedback: Feedback,
        onward: Continuation,
        me: PeerId,
        weight_by: WeightBy = "tokens",
    ) -> None:
        self._model = model
        self._layout = layout
        self._rule = rule
        self._feedback = feedback
        self._onward = onward
        self._me = me
        self._weight_by = weight_by
        self._is_spread = isinstance(model, Spread)
        store = model.store if isinstance(model, Spread) else None
        self._staging = Staging(layout, next(iter(model.parameters().values())).device, store)
        self._fragments: list[Fragment] = []
        """Empty until there is an anchor."""
        self._changing = threading.Lock()
        """Held to change a state, which may happen on either thread."""

    @property
    def has_state(self) -> bool:
        """Whether there is an anchor yet."""
        return bool(self._fragments)

    def anchor(self, fragment: int) -> tuple[str, Tensor] | None:
        """A fragment's anchor [N] with the digest of its state; ``None`` as long as there is none."""
        if not self._fragments:
            return None
        state = self._fragments[fragment].state
        return state.digest, state.anchor_N

    @property
    def fragments(self) -> list[Fragment]:
        """All that is known of each fragment, to be read only; empty if there is no anchor yet."""
        return self._fragments

    @property
    def kept(self) -> tuple[Tensor | None, ...]:
        """What feedback keeps of each fragment."""
        return self._feedback.kept()

    def local(self) -> list[Tensor]:
        """A copy of the local parameters, of each fragment."""
        parameters = self._model.parameters()
        return [self._staging.copy(parameters, fragment) for fragment in range(self._layout.num_fragments)]

    @property
    def rounds_diverged(self) -> int:
        """Launches in a row at which the parameters were not finite, of the fragment with most of them.

        Of all fragments together there may be several at one step.
        """
        return max((each.launches_diverged for each in self._fragments), default=0)

    @property
    def pending_steps(self) -> int:
        """Inner steps that no round has counted, of the fragment that waits longest."""
        return max((each.pending.steps for each in self._fragments), default=0)

    def found(self, rounds: Sequence[int]) -> None:
        """Take the model's parameters as they are as the first anchor, which begins these rounds of the fragments."""
        parameters = self._model.parameters()
        for fragment, round_ in enumerate(rounds):
            anchor_N = self._staging.copy(parameters, fragment)
            self._fragments.append(Fragment(FragmentState.of(round_, anchor_N, self._rule.init(anchor_N)), anchor_N))

    def restore(self, restored: Restored) -> None:
        """Be as in an earlier life."""
        for fragment, local_N in enumerate(restored.local_N):
            self._load(fragment, local_N)
        for of in restored.fragments:
            if of.arrived is not None:
                of.arrived = replace(of.arrived, there_N=self._staging.put(of.arrived.anchor_N))
        self._feedback.restore(restored.kept_N)
        self._fragments = restored.fragments

    def digest_of(self, round: int) -> str:
        """Of all anchors and outer states as they were where ``round`` began; empty if this worker was not there.

        Members agree on it although each fragment has rounds of its own.
        """
        if self._layout.num_fragments == 1 or round == 0:
            return self.snapshot(0).name if self._fragments and round == self._fragments[0].state.round else ""
        ends = [each.ends.get(round - 1) for each in self._fragments]
        known = tuple(digest for digest in ends if digest is not None)
        return combined_digest(known) if known and len(known) == len(ends) else ""

    def snapshot(self, step: int) -> Snapshot:
        """The anchors as they stand, for newcomers and for files."""
        return Snapshot(step, tuple(each.state for each in self._fragments))

    def trained(self, report: StepReport, count: int) -> None:
        """So many inner steps were taken; they are pending."""
        for each in self._fragments:
            each.pending.tokens += report.tokens
            each.pending.steps += count

    def take(self, key: SyncKey, share: float) -> Taken:
        """Cut one fragment out of the parameters as they are now; its work so far counts as launched.

        Args:
            key: what is launched.
            share: that this worker's contribution will have in the mean, as far as it knows; for eager updates.
        """
        of = self._fragments[key.fragment]
        base_N, values_N = of.base_N, self._staging.take(self._model.parameters(), key.fragment)

        @functools.cache  # in place of the copy, which nobody else has
        def delta() -> Tensor:
            return torch.sub(base_N, values_N(), out=values_N())

        work = of.launched = of.pending
        of.pending = Pending()
        if self._onward.eager is None:
            return Taken(of.state, delta, work.tokens, work.steps)
        delta_N = delta()
        if of.carried_N is not None:
            delta_N += of.carried_N
            of.carried_N = None
        buffer_N = None if of.ahead is None else of.ahead.buffer_N
        start_N, buffer_N = self._onward.eager.start(of.state.anchor_N, delta_N, share, buffer_N)
        of.ahead, of.base_N = Ahead(share, delta_N, buffer_N), start_N
        self._load(key.fragment, start_N)
        return Taken(of.state, lambda: delta_N, work.tokens, work.steps)

    def bring(self, key: SyncKey, taken: Taken) -> Contribution:
        """What to bring to the round; of weight 0 if there is nothing (finite) to give. On any thread.

        A replica whose parameters are not finite must be ``reset``: its steps are lost, the swarm's are not.
        """
        state, delta_N = taken.state, taken.delta_N()
        brought = self._feedback.bring(key.fragment, delta_N)
        mine = Contribution(
            brought.values_N,
            self._feedback.weight(weight_of(taken.tokens, taken.steps, self._weight_by)),
            _base_of(state),
            brought.relative_N,
            num_inner_steps=taken.steps,
        )
        tensors = [values_N for values_N in (brought.values_N, brought.relative_N) if values_N is not None]
        if not all(all_finite(values_N.numpy()) for values_N in tensors):
            nothing_N = torch.zeros_like(delta_N)
            self._fragments[key.fragment].launches_diverged += 1
            return replace(mine, delta_N=nothing_N, relative_N=None, weight=0.0, excuse=Excuse.NOT_FINITE)
        self._fragments[key.fragment].launches_diverged = 0
        if self._me in state.outer.counted and not self._feedback.remembers(key.fragment):
            return replace(mine, weight=0.0, excuse=Excuse.FORGOTTEN)
        return mine

    def bring_again(self, mine: Contribution, fragment: int) -> Contribution:
        """The same work for the next round: the anchor has moved on, and the local parameters will move along."""
        return replace(mine, base=_base_of(self._fragments[fragment].state))

    def give_back(
        self, key: SyncKey, spans: tuple[tuple[int, int], ...] | None = None, *, uncertain: bool = False
    ) -> None:
        """The round did not count the contribution; its work enters the next one.

        Args:
            key: the round.
            spans: only these ranges were not counted, and their tokens were; ``None`` for everything.
            uncertain: whether others may have counted it all the same.
        """
        self._fragments[key.fragment].give_back(spans)
        self._fragments[key.fragment].doubtful |= uncertain

    def step(self, key: SyncKey, mixed: Mixed, sent_N: Tensor | None) -> Applied:
        """Take the outer step, on any thread; ``land`` brings it to the local parameters.

        Args:
            key: what was mixed.
            mixed: what came out.
            sent_N: what of ours is in it, as the others decoded it; ``None`` for nothing.
        """
        of = self._fragments[key.fragment]
        with self._changing:
            old, of.doubtful = of.state, False
            anchor_N, outer = self._rule.step(old.anchor_N, mixed, old.outer)
            state = of.state = FragmentState.of(key.round + 1, anchor_N, outer)
            of.end_round(key.round)
        if self._onward.eager is None:
            of.arrived = Arrived(old.anchor_N, anchor_N, self._staging.put(anchor_N), mixed.missed)
        if sent_N is not None:
            self._feedback.commit(key.fragment, Sent(sent_N, mixed.relative, mixed.missed, mixed.whole))
        residual_N = self._feedback.residuals()[key.fragment]
        residual_norm = norm_of(residual_N) if residual_N is not None else 0.0
        return Applied(state.digest, norm_of(mixed.delta_N), residual_norm)

    def land(self, fragment: int) -> list[Tensor]:
        """Blend the anchor of the last outer step into the local parameters.

        Ranges that were closed without us keep our local work, moved along with the anchor. Eager updates have gone
        on already.

        Returns:
            What nobody needs any more. To give its memory back takes as long as to copy it: ``clear`` the list on
            another thread.
        """
        of = self._fragments[fragment]
        arrived, of.arrived = of.arrived, None
        if arrived is None:
            return []
        spent = [of.base_N, arrived.old_N]
        self._bring_home(fragment, arrived)
        if not self._onward.mix_alpha and not arrived.missed:  # nothing is left of the steps since the launch
            of.pending = Pending()
        of.base_N = arrived.anchor_N
        return spent

    def _bring_home(self, fragment: int, arrived: Arrived) -> None:
        """Set the local parameters to what becomes of them and a new anchor."""
        of = self._fragments[fragment]
        new_N, alpha = arrived.there_N, self._onward.mix_alpha
        if 0 < alpha < 1 and not arrived.missed and arrived.old_N is of.base_N and self._blends_in_place(new_N.device):
            parameters = self._model.parameters()
            for name, anchor in self._layout.scatter(new_N, fragment).items():
                blend_(parameters[name], anchor, alpha)
            return
        if alpha or arrived.missed:
            device = new_N.device
            local_N = self._staging.copy(self._model.parameters(), fragment, device)
            if arrived.old_N is not of.base_N:
                # First to where the anchor was moved, or what is kept of them would pull it back.
                local_N = rebase(local_N, of.base_N.to(device), arrived.old_N.to(device))
            anchor_N, new_N = new_N, blend(local_N, new_N, alpha)
            for span in (slice(*bounds) for bounds in arrived.missed):
                new_N[span] = rebase(local_N[span], arrived.old_N[span].to(device), anchor_N[span])
        self._load(fragment, new_N)

    def _blends_in_place(self, device: torch.device) -> bool:
        """Whether the model gives its parameters themselves, not copies, and a blend needs no rounding of its own."""
        if self._is_spread:
            return False
        values, again = self._model.parameters(), self._model.parameters()
        return all(
            value.dtype is torch.float32 and value.device == device and value.data_ptr() == again[name].data_ptr()
            for name, value in values.items()
        )

    def skip(self, key: SyncKey) -> None:
        """The round ended without a result: the same anchor, the next round."""
        with self._changing:
            self._fragments[key.fragment].skip(key.round)

    def jump(self, round: int) -> None:
        """Go on in another round, with the same anchors and the same work."""
        with self._changing:
            for each in self._fragments:
                each.state = replace(each.state, round=round)

    def move(self, fragment: int, shift_N: Tensor) -> None:
        """Move an anchor outside of any round. On any thread: inner steps may be under way.

        The local parameters follow with the next outer step; the work since the last one is what it was.
        """
        with self._changing:
            of = self._fragments[fragment]
            of.state = FragmentState.of(of.state.round, of.state.anchor_N + shift_N, of.state.outer)

    def adopt(self, snapshot: Snapshot, restored: Restored | None = None) -> None:
        """Replace the anchors by downloaded ones; local work that nobody can have counted yet moves along with them.

        No fragment may be on its way.

        Args:
            snapshot: with the new anchors.
            restored: what this worker has of an earlier life, from which it goes on as far as that can be.
        """
        fragments = self._fragments or [Fragment(state, state.anchor_N) for state in snapshot.fragments]
        if restored is not None:
            fragments = restored.fragments
            for fragment, local_N in enumerate(restored.local_N):
                self._load(fragment, local_N)
        parameters, same, lost = self._model.parameters(), list[bool](), list[int]()
        for fragment, (of, state) in enumerate(zip(fragments, snapshot.fragments, strict=True)):
            same.append(of.state.digest == state.digest)
            if of.doubtful and not same[-1]:
                of.lose_work()
                lost.append(fragment)
            of.ahead, local_N = None, state.anchor_N
            if of.pending.tokens:
                local_N = rebase(self._staging.copy(parameters, fragment), of.base_N, state.anchor_N)
                if not all_finite(local_N.numpy()):
                    local_N, of.pending = state.anchor_N, Pending()
            self._load(fragment, local_N)
        with self._changing:
            self._fragments = fragments
            for of, state in zip(fragments, snapshot.fragments, strict=True):
                of.state, of.base_N = state, state.anchor_N
                of.ends.clear()  # of rounds that it may have gone ahead to with nobody
                of.end_round(state.round - 1)
        self._feedback.adopted()
        if restored is not None:
            self._feedback.restore(restored.kept_after(same, exact=self._feedback.sends_changes))
        elif lost:
            kept_N = self._feedback.kept()
            self._feedback.restore([None if fragment in lost else each_N for fragment, each_N in enumerate(kept_N)])
        for fragment in lost:
            fragments[fragment].doubtful = False

    def reset(self) -> None:
        """Go back to the anchors; work not counted yet is lost, also what is on its way and may come back.

        So is what the inner optimizer has kept of steps that led nowhere: it would lead there again.
        """
        for each, anchor_N in zip(self._fragments, self.load_anchors(), strict=True):
            each.base_N = anchor_N
            each.lose_work()
        self._feedback.forget()
        if isinstance(self._model, Stateful) and not self._is_spread:  # ranks have a part each, and meet for it
            state = begun_anew(self._model.state_dict())
            if state is not None:
                self._model.load_state_dict(state)

    def begin_anew(self, anchors: Sequence[Tensor]) -> None:
        """Begin anew from earlier anchors, in the rounds of now: all work since is lost, and outer momentum with it.

        No fragment may be on its way.

        Args:
            anchors: of each fragment [N].
        """
        self.reset()
        states = [
            FragmentState.of(of.state.round, anchor_N, self._rule.init(anchor_N))
            for of, anchor_N in zip(self._fragments, anchors, strict=True)
        ]
        self.adopt(Snapshot(0, tuple(states)))
        for of in self._fragments:
            of.launches_diverged = 0

    @property
    def residual_norm(self) -> float:
        """L2 norm of all that this worker still has to send."""
        return math.hypot(*(norm_of(each_N) for each_N in self._feedback.residuals() if each_N is not None))

    def validate(self) -> tuple[Snapshot, float]:
        """The anchors as they stand, and their validation loss; the local parameters are kept."""
        local, snapshot = self.local(), self.snapshot(0)
        try:
            for fragment, state in enumerate(snapshot.fragments):
                self._load(fragment, state.anchor_N)
            loss = self._model.validate()
        finally:
            for fragment, local_N in enumerate(local):
                self._load(fragment, local_N)
        return snapshot, loss

    def anchors(self) -> dict[str, Tensor]:
        """Named parameters of the anchors: what a run is about."""
        values: dict[str, Tensor] = {}
        for fragment, of in enumerate(self._fragments):
            values |= self._layout.scatter(of.state.anchor_N, fragment)
        return values

    def _load(self, fragment: int, values_N: Tensor) -> None:
        self._model.load(self._layout.scatter(values_N, fragment))

    def load_anchors(self) -> list[Tensor]:
        """Set the parameters to the anchors and return these: they may be moved meanwhile."""
        anchors = [of.state.anchor_N for of in self._fragments]
        for fragment, anchor_N in enumerate(anchors):
            self._load(fragment, anchor_N)
        return anchors


def _base_of(state: FragmentState) -> Base:
    return Base(state.digest, state.anchor_N, state.outer.num_steps, state.outer.counted)

"""A replica's account: which micro-batches it has counted, of every data slot, from gradient to step. Pure.

What is counted is open until its head commits the batch, then ready until the step is taken, then applied. A head may
send micro-batches of a batch that others have committed already, or that this replica has not been needed for, because
somebody has died with a share of it. They are counted late, in a sum of gradients of their own, beside those of the
batch that goes on meanwhile; once committed they become part of the next step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from decentral.pipeline.packets import MAX_MICROBATCHES, Commit


@dataclass(frozen=True, slots=True)
class Ready:
    """A commit whose step is still to be taken."""

    commit: Commit
    indices: tuple[int, ...]
    """What this replica has counted and not applied yet, ascending."""
    sums: tuple[int, ...]
    """Where the gradients of these are."""
    late: bool
    """It belongs to a batch of which a part was applied: no step of its own."""


@dataclass(slots=True)
class _Share:
    batch: int
    counted: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Slot:
    open: dict[int, _Share] = field(default_factory=dict)
    """By sum: the slot's number for the batch that goes on, its complement for what is late."""
    applied: _Share = field(default_factory=lambda: _Share(-1))


class Shares:
    """Counts every micro-batch at most once, however often and however late its gradient comes.

    Args:
        applied: last batch by slot that is part of the weights as a whole, others' shares included.
    """

    def __init__(self, applied: Mapping[int, int] | None = None) -> None:
        self._slots = {
            slot: _Slot(applied=_Share(batch, set(range(MAX_MICROBATCHES)))) for slot, batch in (applied or {}).items()
        }
        self._ready: list[Ready] = []
        self._dropped: set[int] = set()

    def committed(self, slot: int) -> int:
        """The last batch of a slot that is, or is about to be, part of the weights; -1 for none."""
        known = [self._slots[slot].applied.batch] if slot in self._slots else [-1]
        return max(known + [ready.commit.batch for ready in self._of(slot)])

    def applied(self) -> dict[int, int]:
        """The last batch of every slot that is part of the weights."""
        return {slot: state.applied.batch for slot, state in list(self._slots.items()) if state.applied.batch >= 0}

    def pending(self, slot: int) -> int:
        """Micro-batches counted of the batch that goes on."""
        share = self._slots[slot].open.get(slot) if slot in self._slots else None
        return len(share.counted) if share is not None else 0

    def slots_ready(self) -> set[int]:
        """Slots that have committed a batch whose step is to be taken."""
        return {ready.commit.slot for ready in self._ready if not ready.late}

    def holds_back(self, slot: int, batch: int) -> bool:
        """Whether a micro-batch of ``batch`` has to wait: for the step of an earlier batch, or for ``take_dropped``."""
        share = self._slots[slot].open.get(slot) if slot in self._slots else None
        waits = share is not None and share.batch < batch
        waits = waits or any(ready.commit.batch < batch and not ready.late for ready in self._of(slot))
        return waits or bool({slot, ~slot} & self._dropped)

    def count(self, slot: int, batch: int, index: int) -> int | None:
        """Enter that a gradient has come by; the sum that it is to be added to, ``None`` if it does not count."""
        state = self._slots.setdefault(slot, _Slot())
        if self.holds_back(slot, batch) or batch < state.applied.batch or index in self._settled(slot, batch):
            return None
        for place, share in state.open.items():
            if share.batch == batch:
                new = index not in share.counted
                share.counted.add(index)
                return place if new else None
        place = slot if slot not in state.open and batch > self.committed(slot) else ~slot
        for ready in [ready for ready in self._of(slot) if ready.late and ready.commit.batch == batch]:
            self._ready.remove(ready)
            state.open[place] = _Share(batch, set(ready.indices))
        share = state.open.setdefault(place, _Share(batch))
        if share.batch != batch:
            return None
        share.counted.add(index)
        return place

    def give_up(self, slot: int, batch: int) -> None:
        """A head has gone on to ``batch`` without committing what is open: it counts on others for that."""
        share = self._slots[slot].open.get(slot)
        if share is not None and share.batch < batch:
            self._drop(slot, slot)

    def commit(self, commit: Commit) -> tuple[int, ...]:
        """Enter a head's commit; indices of the share in it that were not counted here, and then nothing is ready.

        What was counted here and is not in the share counts elsewhere: all of it is dropped that is not applied.
        """
        slot, batch = commit.slot, commit.batch
        state = self._slots.setdefault(slot, _Slot())
        if batch < state.applied.batch:
            return ()
        for place in [place for place, share in state.open.items() if share.batch < batch]:
            self._drop(slot, place)
        have = self._settled(slot, batch)
        for share in state.open.values():
            have |= share.counted if share.batch == batch else set()
        wanted = have if commit.indices is None else set(commit.indices)
        for place in [place for place, share in state.open.items() if share.batch == batch and share.counted - wanted]:
            have -= state.open[place].counted
            self._drop(slot, place)
        for ready in [ready for ready in self._of(slot) if ready.commit.batch == batch and set(ready.indices) - wanted]:
            have -= set(ready.indices)
            self._ready.remove(ready)
            self._dropped.update(ready.sums)
        if not wanted - have:
            self._make_ready(commit)
        return tuple(sorted(wanted - have))

    def take(self) -> list[Ready]:
        """All that is ready; it is applied from now on."""
        taken, self._ready = self._ready, []
        for ready in sorted(taken, key=lambda ready: ready.commit.batch):
            state = self._slots[ready.commit.slot]
            if state.applied.batch != ready.commit.batch:
                state.applied = _Share(ready.commit.batch)
            state.applied.counted.update(ready.indices)
        return taken

    def take_dropped(self) -> set[int]:
        """Sums of gradients to be thrown away before anything else is counted."""
        dropped, self._dropped = self._dropped, set()
        return dropped

    def _make_ready(self, commit: Commit) -> None:
        slot, batch = commit.slot, commit.batch
        known = batch == self.committed(slot)
        state = self._slots[slot]
        sums = tuple(place for place, share in state.open.items() if share.batch == batch)
        indices = sorted(index for place in sums for index in state.open.pop(place).counted)
        if indices or not known:
            late = any(ready.commit.batch == batch for ready in self._of(slot)) or batch == state.applied.batch
            self._ready.append(Ready(commit, tuple(indices), sums, late))

    def _settled(self, slot: int, batch: int) -> set[int]:
        """What of a batch is ready or applied."""
        applied = self._slots[slot].applied
        ready = {index for ready in self._of(slot) if ready.commit.batch == batch for index in ready.indices}
        return ready | (applied.counted if applied.batch == batch else set())

    def _of(self, slot: int) -> Iterator[Ready]:
        return (ready for ready in self._ready if ready.commit.slot == slot)

    def _drop(self, slot: int, place: int) -> None:
        if self._slots[slot].open.pop(place, None) is not None:
            self._dropped.add(place)

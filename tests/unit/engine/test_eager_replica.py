"""Eager updates when rounds fail: what was not counted is withdrawn, and enters the next contribution, once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from decentral.codecs.feedback import Feedback
from decentral.engine.replica import Continuation, Replica
from decentral.exchange.api import Contribution
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed
from decentral.ports.trainer import StepReport
from decentral.state.snapshot import Snapshot
from decentral.tensors.layout import Layout
from decentral.types import PeerId, SyncKey
from tests.support.training import train
from tests.unit.engine.test_replica import anchors, founded, launch, mixed, state

Values = NDArray[np.float64]
LR, MOMENTUM = 0.7, 0.6
NUM_VALUES = 4


class Wandering:
    """Every step goes a random way, from wherever the parameters are."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.values = {"layers.0": torch.zeros(NUM_VALUES)}

    def parameters(self) -> Mapping[str, Tensor]:
        return self.values

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        self.values["layers.0"].copy_(parameters["layers.0"])

    def train_steps(self, first_step: int, count: int) -> StepReport:
        values = self.values["layers.0"]
        values += 0.1 * values + torch.from_numpy(self._random.standard_normal(NUM_VALUES)).float()
        return StepReport(tokens=10 * count, loss=1.0, grad_norm=1.0)

    def validate(self) -> float:
        return 0.0

    @property
    def local(self) -> Values:
        return self.values["layers.0"].double().numpy().copy()


# -- against the closed form ------------------------------------------------------------------------------------------

#: Of one worker in one round: the values that the mean counts.
Fate = tuple[bool, ...]


@dataclass
class By:
    """One worker by the closed form, in double precision.

    With b what is brought and k what of it was counted, which is 0 elsewhere::

        b(t)     = d(t) + b(t - 1) - k(t - 1)
        M(t)     = s b(t) + sum over j < t of momentum^(t - j) s k(j)
        start(t) = c(t) - lr (s b(t) + momentum M(t))
    """

    share: float
    brought: list[Values]
    counted: list[Values]

    def launch(self, delta: Values, anchor: Values) -> Values:
        self.brought.append(delta + (self.brought[-1] - self.counted[-1] if self.brought else 0.0))
        t = len(self.counted)
        ahead = self.share * (
            self.brought[-1] + sum(MOMENTUM ** (t - j) * counted for j, counted in enumerate(self.counted))
        )
        start: Values = anchor - LR * (self.share * self.brought[-1] + MOMENTUM * ahead)
        return start


@st.composite
def fates(draw: st.DrawFn) -> list[list[Fate] | None]:
    """For each round what of each worker is counted; ``None`` for a round without a result."""
    workers = draw(st.integers(1, 3))
    one = st.one_of(
        st.just((True,) * NUM_VALUES),
        st.just((False,) * NUM_VALUES),
        st.tuples(*[st.booleans()] * NUM_VALUES),
    )
    every = st.one_of(st.none(), st.lists(one, min_size=workers, max_size=workers))
    rounds = draw(st.lists(every, min_size=1, max_size=6))
    return [*rounds, [(True,) * NUM_VALUES] * workers]


@given(fates(), st.integers(0, 1000))
def test_a_lost_round_counts_nothing_and_its_work_comes_with_the_next(
    rounds: list[list[Fate] | None], seed: int
) -> None:
    workers = next(len(fate) for fate in rounds if fate is not None)
    share, peers = 1 / workers, [PeerId(f"peer-{number}") for number in range(workers)]
    trainers = [Wandering(seed + number) for number in range(workers)]
    replicas = [eager_replica(trainer, peer) for trainer, peer in zip(trainers, peers, strict=True)]
    references = [By(share, [], []) for _ in peers]
    anchor, momentum = np.zeros(NUM_VALUES), np.zeros(NUM_VALUES)
    starts, worked = [anchor] * workers, [np.zeros(NUM_VALUES) for _ in peers]
    for round_, fate in enumerate(rounds):
        key, mine = SyncKey(round_, 0), list[Contribution]()
        for i, replica in enumerate(replicas):
            train(replica, 0, 1)
            delta = starts[i] - trainers[i].local
            worked[i] += delta
            starts[i] = references[i].launch(delta, anchor)
            mine.append(replica.bring(key, replica.take(key, share)))
            np.testing.assert_allclose(mine[i].delta_N, references[i].brought[-1], atol=1e-4)
            np.testing.assert_allclose(trainers[i].local, starts[i], atol=1e-4)
        if fate is None:
            for replica, reference in zip(replicas, references, strict=True):
                reference.counted.append(np.zeros(NUM_VALUES))
                replica.give_back(key)
                replica.skip(key)
            continue
        counted = [reference.brought[-1] * np.array(inside) for reference, inside in zip(references, fate, strict=True)]
        mean = sum(counted, np.zeros(NUM_VALUES)) / np.maximum(1, np.sum(fate, axis=0))
        momentum = MOMENTUM * momentum + mean
        anchor = anchor - LR * (mean + MOMENTUM * momentum)
        mean_N = torch.from_numpy(mean).float()
        members = tuple([peer for peer, inside in zip(peers, fate, strict=True) if any(inside)])
        for i, (replica, inside) in enumerate(zip(replicas, fate, strict=True)):
            references[i].counted.append(counted[i])
            missed = tuple([(n, n + 1) for n in range(NUM_VALUES) if not inside[n]])
            before = trainers[i].local
            replica.step(key, Mixed(mean_N, members, missed=missed), None)
            replica.land(0)
            replica.give_back(key, missed if any(inside) else None)
            assert np.array_equal(trainers[i].local, before), "it has gone on already"
            np.testing.assert_allclose(anchors(replica), anchor, atol=1e-4)
    for total, reference in zip(worked, references, strict=True):
        np.testing.assert_allclose(sum(reference.counted), total, atol=1e-9)


def eager_replica(trainer: Wandering, me: PeerId) -> Replica:
    onward = Continuation(eager=Eager(LR, MOMENTUM))
    replica = Replica(trainer, Layout.of(trainer.values), DiLoCo(LR, MOMENTUM), Feedback(1), onward, me)
    replica.found((0,))
    return replica


# -- by hand: lr 0.5, momentum 0.5; every step takes 1 from each of 8, 9, 4 ------------------------------------------

EAGER = Eager(0.5, 0.5)


def test_the_weight_is_of_all_the_work_that_is_brought() -> None:
    replica, _ = founded(eager=EAGER)
    for round_ in range(3):
        key = SyncKey(round_, 0)
        train(replica, 0, 2)
        assert launch(replica, key).weight == 20.0 * (round_ + 1)
        replica.give_back(key)
        replica.skip(key)
    assert replica.pending_steps == 6


def test_ranges_that_were_missed_are_carried_without_their_tokens() -> None:
    replica, _ = founded(eager=EAGER)
    train(replica, 0, 2)
    launch(replica, SyncKey(0, 0))
    replica.step(SyncKey(0, 0), mixed(2.0, 0.0, 0.0, missed=((1, 3),)), None)
    replica.give_back(SyncKey(0, 0), ((1, 3),))
    train(replica, 2, 1)
    mine = launch(replica, SyncKey(1, 0))
    assert mine.delta_N.tolist() == [1.0, 3.0, 3.0]
    assert mine.weight == 10.0, "these were counted with the rest"


@pytest.mark.parametrize("num_fragments", [1, 2])
def test_work_that_was_not_counted_survives_a_repair(num_fragments: int) -> None:
    replica, trainer = founded(num_fragments, eager=EAGER)
    train(replica, 0, 2)
    launch(replica, SyncKey(0, 0))
    train(replica, 2, 1)
    replica.give_back(SyncKey(0, 0))
    replica.skip(SyncKey(0, 0))
    whole = (100.0, 200.0, 300.0)
    cut = [state(*whole)] if num_fragments == 1 else [state(*whole[:2]), state(whole[2])]
    replica.adopt(Snapshot(40, tuple(cut)))
    # Of what was launched, local is only what was done since; the second of two fragments never was.
    assert trainer.flat() == [99.0, 199.0, 299.0 if num_fragments == 1 else 297.0]
    mine = launch(replica, SyncKey(2, 0))
    assert set(mine.delta_N.tolist()) == {3.0}
    assert mine.weight == 30.0
    # The buffer is new: anchor - 0.5 * (1 + 0.5) * 3.
    assert trainer.flat()[0] == 100.0 - 2.25


def test_after_values_that_are_not_finite_nothing_is_carried() -> None:
    replica, trainer = founded(eager=EAGER)
    train(replica, 0, 2)
    launch(replica, SyncKey(0, 0))
    replica.give_back(SyncKey(0, 0))
    replica.skip(SyncKey(0, 0))
    trainer.values["layers.0"].fill_(float("nan"))
    assert launch(replica, SyncKey(1, 0)).weight == 0.0
    replica.give_back(SyncKey(1, 0))
    replica.skip(SyncKey(1, 0))
    assert trainer.flat() == anchors(replica)
    train(replica, 2, 1)
    mine = launch(replica, SyncKey(2, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([1.0] * 3, 10.0)


def test_a_reset_for_another_fragment_takes_back_what_was_gone_ahead() -> None:
    """The sync may still be counted; what comes back of it otherwise is not finite work of a lost phase."""
    replica, trainer = founded(2, eager=EAGER)
    train(replica, 0, 2)
    launch(replica, SyncKey(0, 0))
    trainer.values["layers.1"].fill_(float("nan"))
    launch(replica, SyncKey(0, 1))
    replica.give_back(SyncKey(0, 0))
    replica.skip(SyncKey(0, 0))
    train(replica, 2, 1)
    mine = launch(replica, SyncKey(1, 0))
    assert (mine.delta_N.tolist(), mine.weight) == ([1.0, 1.0], 10.0)

"""What a few workers make of a run: to the digit, and with everything that goes wrong at one of them."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from decentral.engine.options import Outcome
from decentral.errors import DivergedError
from decentral.monitor.events import Joined, Repaired, RoundAborted, RoundMixed, SatOut, Stopped, StretchDone
from decentral.ports.trainer import StepReport, Trainer
from decentral.sim.world import Machine
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey
from tests.unit.engine.swarm import (
    FOUNDER,
    INNER_STEPS,
    PEERS,
    PROBLEM,
    RULE,
    SECOND,
    STEP_S,
    THIRD,
    Plan,
    Seen,
    ordinary,
    simulate,
)

TOKENS = PROBLEM.tokens_per_step
FULL = INNER_STEPS * TOKENS


def check_agreement(seen: Seen, *peers: PeerId) -> None:
    """Those named hold the same anchor at the end, and after each round that they mixed."""
    assert len({seen.outcomes[peer].digest for peer in peers}) == 1
    for round_ in set.union(*(set(seen.mixed(peer)) for peer in peers)):
        assert len({m.digest for peer in peers if (m := seen.mixed(peer).get(round_))}) == 1, f"round {round_}"


def check_weights(seen: Seen) -> None:
    """Every token enters one round, and a worker's weight in a round is what it trained on since its last one."""
    for peer, journal in seen.journals.items():
        pending = 0
        for event in journal.events:
            if isinstance(event, StretchDone):
                pending += event.tokens
            elif isinstance(event, SatOut):
                pending = 0
            elif isinstance(event, RoundMixed) and peer in event.members:
                if len(event.members) > 1:  # alone it sends nothing
                    assert seen.weights[SyncKey(event.round, event.fragment), peer] == pending, (peer, event)
                pending = 0


def flat(outcome: Outcome) -> Tensor:
    return torch.cat([value.flatten() for value in outcome.anchors.values()])


def diloco_by_hand(seen: Seen, peers: tuple[PeerId, ...], rounds: int) -> Tensor:
    """The run again in float64, from nothing but the number of steps that each worker took in each round."""
    trainers = {peer: PROBLEM.trainer(PEERS.index(peer)) for peer in peers}
    anchor_N = torch.zeros(PROBLEM.num_values, dtype=torch.float64)
    momentum_N = torch.zeros_like(anchor_N)
    for round_ in range(rounds):
        weighted_N, total = torch.zeros_like(anchor_N), 0
        for peer, trainer in trainers.items():
            start = anchor_N.float().tensor_split(PROBLEM.num_tensors)
            trainer.load(dict(zip(trainer.parameters(), start, strict=True)))
            tokens = seen.tokens(peer)[round_]
            trainer.train_steps(0, tokens // TOKENS)
            weighted_N += tokens * (anchor_N - torch.cat(list(trainer.parameters().values())).double())
            total += tokens
        delta_N = weighted_N / total
        momentum_N = RULE.momentum * momentum_N + delta_N
        anchor_N = anchor_N - RULE.lr * (delta_N + RULE.momentum * momentum_N)
    return anchor_N.float()


def test_two_workers_are_diloco_by_hand() -> None:
    seen = simulate(Plan(rounds=5, starts={FOUNDER: 0.0, SECOND: 0.35}))
    assert not seen.errors
    check_agreement(seen, FOUNDER, SECOND)
    check_weights(seen)
    assert seen.tokens(SECOND)[0] < seen.tokens(FOUNDER)[0] == FULL, "unequal weights in the first round"
    assert all(m.members == (FOUNDER, SECOND) for m in seen.mixed(FOUNDER).values())
    expected_N = diloco_by_hand(seen, (FOUNDER, SECOND), rounds=5)
    torch.testing.assert_close(flat(seen.outcomes[FOUNDER]), expected_N, rtol=1e-5, atol=1e-5)
    assert seen.outcomes[SECOND].done
    assert seen.outcomes[SECOND].tokens == sum(seen.tokens(SECOND).values())


def test_one_worker_alone_is_diloco_by_hand() -> None:
    seen = simulate(Plan(rounds=3, starts={FOUNDER: 0.0}))
    expected_N = diloco_by_hand(seen, (FOUNDER,), rounds=3)
    torch.testing.assert_close(flat(seen.outcomes[FOUNDER]), expected_N, rtol=1e-5, atol=1e-5)
    assert [m.waiting_s for m in seen.of(RoundMixed, FOUNDER)] == [0.0] * 3


def test_a_joiner_is_in_the_next_round_with_its_true_weight() -> None:
    # Rounds of 3 s; the newcomer comes in the middle of the third.
    pace = dict.fromkeys(PEERS, 3 * STEP_S)
    seen = simulate(Plan(rounds=6, starts={FOUNDER: 0.0, SECOND: 0.3, THIRD: 7.8}, step_s=pace))
    (joined,) = seen.of(Joined, THIRD)
    assert joined.round == 2
    assert min(seen.mixed(THIRD)) == 2
    for peer in PEERS:
        assert seen.mixed(peer)[2].members == PEERS
        assert THIRD not in seen.mixed(FOUNDER)[1].members
    assert 0 < seen.weights[SyncKey(2, 0), THIRD] == seen.tokens(THIRD)[2] < FULL
    check_agreement(seen, *PEERS)
    check_weights(seen)


def test_a_slow_worker_is_not_waited_for_and_its_work_enters_a_later_round() -> None:
    timing = Timing(min_patience_s=1.0)
    seen = simulate(Plan(rounds=30, step_s={THIRD: 5.5 * STEP_S}, timing=timing))
    assert not seen.errors
    behind = [event for event in seen.of(RoundAborted, THIRD) if event.reason == "behind"]
    assert behind
    assert [event.reason for event in seen.of(Repaired, THIRD)] == ["behind"] * len(behind)
    later = [m for m in seen.of(RoundMixed, THIRD) if m.round > behind[0].round and THIRD in m.members]
    assert later
    assert max(seen.weights[SyncKey(m.round, 0), THIRD] for m in later) >= FULL, "a whole stretch was carried over"
    assert all(m.waiting_s < 2.0 for m in seen.of(RoundMixed, FOUNDER)[2:]), "nobody waits for a straggler"
    check_agreement(seen, *PEERS)
    check_weights(seen)


@pytest.mark.parametrize("skews", [{FOUNDER: 600.0}, {SECOND: -600.0, THIRD: 600.0}])
def test_wrong_clocks_make_no_difference(skews: Mapping[PeerId, float]) -> None:
    machines = {peer: Machine(skew_s=skew_s) for peer, skew_s in skews.items()}
    right, wrong = simulate(Plan()), simulate(Plan(machines=machines))
    assert {peer: [m.digest for m in wrong.of(RoundMixed, peer)] for peer in PEERS} == {
        peer: [m.digest for m in right.of(RoundMixed, peer)] for peer in PEERS
    }
    assert {o.digest for o in wrong.outcomes.values()} == {o.digest for o in right.outcomes.values()}


def test_a_worker_whose_values_are_not_finite_sits_out_and_stays_in_sync() -> None:
    nan = {THIRD: lambda peer: ordinary(peer, nan_at_step=15)}
    seen = simulate(Plan(rounds=5, trainers=nan))
    assert [event.round for event in seen.of(SatOut, THIRD)] == [1]
    assert (SyncKey(1, 0), THIRD) not in seen.weights
    for peer in PEERS:
        assert {m.round: m.members for m in seen.of(RoundMixed, peer)} == {
            round_: (FOUNDER, SECOND) if round_ == 1 else PEERS for round_ in range(5)
        }
    assert seen.weights[SyncKey(2, 0), THIRD] == FULL, "the lost steps have no weight"
    assert not seen.of(Repaired, THIRD)
    check_agreement(seen, *PEERS)
    check_weights(seen)


class Diverging:
    """Never gets anywhere."""

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner
        self.parameters, self.load, self.validate = inner.parameters, inner.load, inner.validate

    def train_steps(self, first_step: int, count: int) -> StepReport:
        report = self._inner.train_steps(first_step, count)
        for value in self._inner.parameters().values():
            value.fill_(math.nan)
        return report


def test_a_worker_that_never_has_finite_values_gives_up_and_harms_nobody() -> None:
    seen = simulate(Plan(rounds=6, trainers={THIRD: lambda peer: Diverging(ordinary(peer))}))
    assert [event.round for event in seen.of(SatOut, THIRD)] == [0, 1, 2]
    assert isinstance(seen.errors[THIRD], DivergedError)
    assert seen.of(Stopped, THIRD)[-1].reason == "failed"
    assert seen.errors.keys() == {THIRD}
    assert {peer: outcome.done for peer, outcome in seen.outcomes.items()} == {FOUNDER: True, SECOND: True}
    assert all(m.members == (FOUNDER, SECOND) for m in seen.of(RoundMixed, FOUNDER))
    check_agreement(seen, FOUNDER, SECOND)


def check_left(seen: Seen, last_round: int) -> None:
    """The third worker left in order after ``last_round``, and nobody waited for it."""
    assert not seen.errors
    assert not seen.outcomes[THIRD].done
    stopped = seen.journals[THIRD].events[-1]
    assert (type(stopped), seen.of(Stopped, THIRD)[-1].reason) == (Stopped, "asked to stop")
    assert max(seen.mixed(THIRD)) == last_round
    assert seen.outcomes[THIRD].digest == seen.mixed(FOUNDER)[last_round].digest
    for peer in (FOUNDER, SECOND):
        assert {m.round: m.members for m in seen.of(RoundMixed, peer)} == {
            round_: PEERS if round_ <= last_round else (FOUNDER, SECOND) for round_ in range(6)
        }
        assert all(m.waiting_s < 1.0 and m.transfer_s < 1.0 for m in seen.of(RoundMixed, peer))
    check_agreement(seen, FOUNDER, SECOND)
    check_weights(seen)


def test_a_worker_that_is_stopped_in_a_round_finishes_it() -> None:
    reference = simulate(Plan(rounds=6))
    shards = [at_s for at_s, _, _, method in reference.messages if method == "shard"]
    assert len(shards) == 6 * 2, "one shard, which one of three members reduces"
    check_left(simulate(Plan(rounds=6, stops={THIRD: shards[2 * 2] + 0.001})), last_round=2)


def test_a_worker_that_is_stopped_while_it_trains_leaves_at_once() -> None:
    reference = simulate(Plan(rounds=6))
    shards = [at_s for at_s, _, _, method in reference.messages if method == "shard"]
    seen = simulate(Plan(rounds=6, stops={THIRD: shards[2 * 2] + 0.5}))
    check_left(seen, last_round=2)
    assert (SyncKey(3, 0), THIRD) not in seen.weights


@pytest.mark.parametrize("is_large", [True, False])
def test_memory_that_syncs_of_a_large_model_freed_is_given_back_once_a_round(
    monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr("decentral.engine.syncs.LARGE_VALUES", 1 if is_large else 1 << 24)
    monkeypatch.setattr("decentral.engine.syncs.give_back_freed", lambda: given_back.append(1))
    step_s = 3 * Timing().beat_s / INNER_STEPS  # some beats a round
    seen = simulate(Plan(rounds=3, step_s=dict.fromkeys(PEERS, step_s)))
    assert not seen.errors  # who is done and serves the others has no more work beside its own
    assert [len(seen.mixed(peer)) for peer in PEERS] == [3, 3, 3]
    assert len(given_back) == (2 * 3 if is_large else 0)  # the last round is the end

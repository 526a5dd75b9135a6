"""A worker that gossips: it keeps up with the others, says nothing of a common anchor, and shows its own in time."""

import itertools
from collections import Counter
from typing import Any

import pytest

from decentral.codecs.codec import make_codec
from decentral.engine.membership import Membership
from decentral.exchange.gossip.exchange import Gossip
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.monitor.events import RoundMixed, StretchDone, Validated
from decentral.outer.noloco import NoLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.types import PeerId
from tests.unit.engine.swarm import FOUNDER, INNER_STEPS, PEERS, SECOND, STEP_S, THIRD, Plan, simulate

FP32 = make_codec("fp32")
ROUNDS = GossipOptions(FP32, FP32)
POISSON = GossipOptions(FP32, FP32, swaps=RandomSwaps(1.0, 0.5))
BOTH = pytest.mark.parametrize("pairing", [ROUNDS, POISSON], ids=["rounds", "poisson"])


def gossip(pairing: GossipOptions, **settings: Any) -> Plan:
    options = {"mixing": pairing, "rule": NoLoCo(), **settings.pop("options", {})}
    return Plan(options=options, **settings)


@BOTH
@pytest.mark.parametrize("plan", [SyncPlan(INNER_STEPS), SyncPlan(INNER_STEPS, 2, 2)], ids=["whole", "fragments"])
def test_a_slow_worker_goes_on_where_the_others_are(pairing: GossipOptions, plan: SyncPlan) -> None:
    slow = gossip(pairing, rounds=24, step_s={THIRD: 4 * STEP_S}, options={"plan": plan})
    seen = simulate(slow)
    assert not seen.errors
    rounds = sorted(seen.mixed(THIRD))
    assert len(rounds) < 12
    assert rounds[0] < 5
    gaps = [late - early for early, late in itertools.pairwise(rounds)]
    # Four rounds of the others pass in one of its own; that it is one behind is no reason to move on; and what it knows
    # of them is a beat and a bit old, in which they do two.
    assert max(gaps) <= 7, "it does not fall behind by more than its own round"
    assert Counter(gaps)[4] + Counter(gaps)[3] + Counter(gaps)[5] > len(gaps) / 2
    for event in seen.of(StretchDone, THIRD):
        # A stretch of a round ends within its steps: the learning rate is that of the others.
        assert INNER_STEPS * event.round <= event.step <= INNER_STEPS * (event.round + 1)


@BOTH
def test_a_slow_worker_ends_when_the_others_are_done(pairing: GossipOptions) -> None:
    seen = simulate(gossip(pairing, rounds=15, step_s={THIRD: 6 * STEP_S}))
    assert not seen.errors
    assert all(outcome.done and outcome.round >= 15 for outcome in seen.outcomes.values())
    assert set(seen.outcomes) == set(PEERS)
    ends = {peer: seen.journals[peer].events[-1] for peer in PEERS}
    assert len(ends) == 3
    assert max(time for time, *_ in seen.messages) < 15 * INNER_STEPS * STEP_S * 1.5 + 6 * INNER_STEPS * STEP_S


def test_one_slow_and_one_quick_worker_end_together() -> None:
    seen = simulate(gossip(ROUNDS, rounds=20, starts={FOUNDER: 0.0, SECOND: 0.3}, step_s={SECOND: 5 * STEP_S}))
    assert {peer: outcome.done for peer, outcome in seen.outcomes.items()} == {FOUNDER: True, SECOND: True}


@BOTH
def test_there_is_no_common_anchor_to_tell_of(pairing: GossipOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    update = Membership.update

    def watched(self: Membership, **changes: Any) -> None:
        update(self, **changes)
        digests.append(self.own.digest)

    monkeypatch.setattr(Membership, "update", watched)
    seen = simulate(gossip(pairing, rounds=4))
    assert not seen.errors
    assert set(digests) == {""}
    digests.clear()
    simulate(Plan(rounds=4))
    assert "" not in digests[-10:], "else this test would prove nothing"


@BOTH
def test_one_of_all_validates(pairing: GossipOptions) -> None:
    seen = simulate(gossip(pairing, rounds=18, options={"eval_every_rounds": 3, "min_workers": 3}))
    validated = Counter(event.round for peer in PEERS for event in seen.of(Validated, peer))
    assert set(validated) <= set(range(3, 19, 3))
    # Which one it is depends on who is believed to be there; at first they do not know each other.
    assert {validated[round_] for round_ in range(9, 19, 3)} == {1}
    assert len({peer for peer in PEERS if seen.of(Validated, peer)}) > 1, "they take turns"


def test_new_anchors_are_shown_at_first_after_joining_and_after_every_outer_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A founder's when it begins to train: by then it knows those whom it has waited for."""
    shown: dict[PeerId, list[tuple[int, str]]] = {peer: [] for peer in PEERS}
    adopted = Gossip.adopted

    def watched(self: Gossip, fragment: int, base: str, anchor_N: Any) -> None:
        shown[self._company.me].append((fragment, base))
        adopted(self, fragment, base, anchor_N)

    monkeypatch.setattr(Gossip, "adopted", watched)
    seen = simulate(gossip(ROUNDS, rounds=6, options={"plan": SyncPlan(INNER_STEPS, 2)}))
    for peer in PEERS:
        steps = [(event.fragment, event.digest) for event in seen.of(RoundMixed, peer)]
        at_first = shown[peer][:2]
        assert [fragment for fragment, _ in at_first] == [0, 1]
        assert shown[peer] == at_first + steps
    sent = [message for message in seen.messages if message[3] == "gossip.ahead"]
    assert sent


def test_a_worker_stopped_for_longer_than_its_time_to_live_goes_on() -> None:
    """It wakes up in a world in which everybody looks dead, itself included."""
    for at_s in (2.9, 3.31):
        seen = simulate(gossip(ROUNDS, rounds=18, faults=(Fault(Kind.PAUSE, at_s, (2,), 9.0),)))
        assert not seen.errors
        assert not seen.unfired
        assert seen.outcomes[THIRD].done
        assert any(len(event.members) > 1 for event in seen.of(RoundMixed, THIRD)[-5:])


@BOTH
def test_who_is_asked_to_stop_leaves_soon_and_the_others_go_on(pairing: GossipOptions) -> None:
    seen = simulate(gossip(pairing, rounds=12, stops={SECOND: 4.0}))
    assert not seen.errors
    assert not seen.outcomes[SECOND].done
    assert seen.outcomes[FOUNDER].done
    assert seen.outcomes[THIRD].done
    assert max(time for time, sender, *_ in seen.messages if sender == SECOND) < 6.0

"""Rounds under lossy codecs: nothing that was counted is lost, whoever comes, goes, is late or is killed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decentral.codecs.codec import Codec, make_codec
from decentral.codecs.feedback import Brought, ErrorFeedback, Sent
from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.frame import unpack
from decentral.monitor.events import RoundMixed, SatOut
from decentral.outer.diloco import DiLoCo
from decentral.outer.ef21 import Ef21
from decentral.outer.sparseloco import SparseLoCo
from decentral.sim.faults import Fault, Kind
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey
from tests.unit.engine.swarm import FOUNDER, PEERS, PROBLEM, SECOND, STEP_S, THIRD, Plan, Seen, simulate

COARSE = make_codec("sign-b8")
NUMEL = PROBLEM.num_values


class Books(ErrorFeedback):
    """Error feedback whose books are kept apart."""

    def __init__(self, num_fragments: int) -> None:
        super().__init__(num_fragments)
        self.counted_N = torch.zeros(NUMEL, dtype=torch.float64)
        self.sent_N = torch.zeros(NUMEL, dtype=torch.float64)
        self.num_counted = 0
        self._delta_N = torch.zeros(NUMEL)

    def bring(self, fragment: int, delta_N: Tensor) -> Brought:
        self._delta_N = delta_N.clone()
        return super().bring(fragment, delta_N)

    def commit(self, fragment: int, sent: Sent) -> None:
        assert not sent.missed, "there is one shard"
        self.counted_N += self._delta_N
        self.sent_N += sent.values_N
        self.num_counted += 1
        super().commit(fragment, sent)


def lossy(books: list[Any], codec: Codec = COARSE, **more: Any) -> dict[str, Any]:
    def make(num_fragments: int) -> Books:
        books.append(Books(num_fragments))
        return books[-1]

    return {"codec": codec, "mean_codec": make_codec("fp32"), "feedback": make, **more}


STORIES: dict[str, Callable[[], Plan]] = {
    "undisturbed": lambda: Plan(rounds=12),
    "a late joiner": lambda: Plan(rounds=12, starts={FOUNDER: 0.0, SECOND: 0.3, THIRD: 5.2}),
    "a straggler": lambda: Plan(rounds=20, step_s={THIRD: 5.5 * STEP_S}, timing=Timing(min_patience_s=1.0)),
    "a worker is killed": lambda: Plan(rounds=12, faults=[Fault(Kind.KILL, 4.03, (2,))]),
    "a worker is killed and comes back": lambda: Plan(
        rounds=14, faults=[Fault(Kind.KILL, 4.03, (2,)), Fault(Kind.START, 5.0, (2,))]
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_sent_plus_residual_is_what_was_counted(story: str) -> None:
    books: list[Books] = []
    plan = STORIES[story]()
    seen = simulate(Plan(**{**vars(plan), "options": lossy(books)}))
    assert not seen.errors
    assert not seen.unfired
    assert max(book.num_counted for book in books) >= plan.rounds - 1
    for book in books:
        (residual_N,) = book.residuals()
        if residual_N is not None:
            torch.testing.assert_close(book.sent_N + residual_N, book.counted_N, rtol=0, atol=1e-5)
            assert float(residual_N.abs().max()) > 1e-3, "the codec did leave something out"
    assert len({outcome.digest for outcome in seen.outcomes.values()}) == 1


def frames_of(seen: Seen, peer: PeerId, codec: Codec) -> dict[int, Tensor]:
    return {key.round: unpack(frame, codec, NUMEL) for (key, sender), frame in seen.frames.items() if sender == peer}


def test_the_books_are_what_the_reducers_got() -> None:
    books: list[Books] = []
    seen = simulate(Plan(rounds=8, options=lossy(books)))
    for peer in (SECOND, THIRD):
        frames = frames_of(seen, peer, COARSE)
        assert sorted(frames) == list(range(8))
        total_N = torch.stack(list(frames.values())).double().sum(0)
        assert any(torch.allclose(total_N, book.sent_N, rtol=0, atol=1e-6) for book in books)


def distance(seen: Seen, peer: PeerId = FOUNDER) -> float:
    """RMS of the final anchor from the common goal."""
    anchor_N = torch.cat([value.flatten() for value in seen.outcomes[peer].anchors.values()])
    return float((anchor_N - torch.from_numpy(PROBLEM.goal)).square().mean().sqrt())


AVERAGING = {"rule": DiLoCo(lr=1.0, momentum=0.0), "codec": COARSE}


def test_feedback_gets_closer_than_a_codec_alone() -> None:
    """Each worker's largest value alone is sent: without feedback they pull against each other for ever."""
    options = {"rule": SparseLoCo(lr=0.1), "codec": make_codec("topk3-8bit")}
    with_it = distance(simulate(Plan(rounds=80, options={**options, "feedback": ErrorFeedback})))
    without = distance(simulate(Plan(rounds=80, options=options)))
    assert with_it < 0.25 * without


def test_sparseloco_by_hand() -> None:
    """Decayed residuals, the largest value of each worker sent, their mean taken off, from scratch."""
    codec, rounds, beta, lr = make_codec("topk3-8bit"), 6, 0.5, 0.8
    options = {"rule": SparseLoCo(lr), "codec": codec, "feedback": lambda num: ErrorFeedback(num, beta)}
    seen = simulate(Plan(rounds=rounds, options=options, starts=dict.fromkeys(PEERS, 0.0)))
    assert all(event.members == PEERS for peer in PEERS for event in seen.of(RoundMixed, peer))
    trainers = {peer: PROBLEM.trainer(PEERS.index(peer)) for peer in PEERS}
    anchor_N = torch.zeros(NUMEL)
    residuals = {peer: torch.zeros(NUMEL) for peer in PEERS}
    for round_ in range(rounds):
        mean_N, weights = torch.zeros(NUMEL), {peer: seen.weights[SyncKey(round_, 0), peer] for peer in PEERS}
        for peer, trainer in trainers.items():
            names = trainer.parameters()
            trainer.load(dict(zip(names, anchor_N.tensor_split(PROBLEM.num_tensors), strict=True)))
            trainer.train_steps(0, int(weights[peer]) // PROBLEM.tokens_per_step)
            delta_N = anchor_N - torch.cat(list(trainer.parameters().values()))
            gathered_N = beta * residuals[peer] + delta_N
            largest = int(gathered_N.abs().argmax())
            sent_N = unpack(seen.frames[SyncKey(round_, 0), peer], codec, NUMEL)
            assert sent_N.nonzero().flatten().tolist() == [largest]
            assert float(sent_N[largest]) == pytest.approx(float(gathered_N[largest]), rel=0.01)
            residuals[peer] = gathered_N - sent_N
            mean_N += sent_N * weights[peer] / sum(weights.values())
        anchor_N = anchor_N - lr * mean_N
    final_N = torch.cat([value.flatten() for value in seen.outcomes[FOUNDER].anchors.values()])
    torch.testing.assert_close(final_N, anchor_N, rtol=1e-4, atol=1e-4)


def test_a_worker_goes_on_with_the_residual_of_its_earlier_life() -> None:
    owed = torch.full((NUMEL,), 0.25)
    parts = dict(zip(PROBLEM.trainer(1).parameters(), owed.tensor_split(PROBLEM.num_tensors), strict=True))
    plain: dict[str, Any] = {"codec": make_codec("bf16"), "feedback": ErrorFeedback}
    without = simulate(Plan(rounds=1, options=plain))
    life = without.states[SECOND]
    life = replace(life, own=dict(life.own) | {f"residual/{name}": value for name, value in parts.items()})
    with_it = simulate(Plan(rounds=1, options=plain, restored={SECOND: life}))
    key = (SyncKey(0, 0), SECOND)
    more_N = unpack(with_it.frames[key], plain["codec"], NUMEL) - unpack(without.frames[key], plain["codec"], NUMEL)
    torch.testing.assert_close(more_N, owed, rtol=0, atol=0.02)


EF21: dict[str, Any] = {"rule": Ef21(DiLoCo(lr=1.0, momentum=0.0)), "codec": COARSE, "feedback": Ef21Feedback}


def test_ef21_gets_closer_than_a_codec_alone() -> None:
    with_it = distance(simulate(Plan(rounds=25, options=EF21)))
    assert with_it < 0.5 * distance(simulate(Plan(rounds=25, options=AVERAGING)))


class Watched(Ef21Feedback):
    """EF21 that says whether what it sent was a change."""

    def __init__(self, num_fragments: int) -> None:
        super().__init__(num_fragments)
        self.relative: list[bool] = []

    def commit(self, fragment: int, sent: Sent) -> None:
        self.relative.append(sent.relative)
        super().commit(fragment, sent)


def test_ef21_starts_afresh_when_members_change() -> None:
    watched: list[Watched] = []

    def make(num_fragments: int) -> Watched:
        watched.append(Watched(num_fragments))
        return watched[-1]

    options = {**EF21, "feedback": make}
    starts = {FOUNDER: 0.0, SECOND: 0.3, THIRD: 5.2}
    seen = simulate(Plan(rounds=14, starts=starts, stops={THIRD: 9.5}, options=options))
    assert not seen.errors
    members = [seen.mixed(FOUNDER)[round_].members for round_ in range(14)]
    assert [len(names) for names in members] == [2] * 4 + [3] * 3 + [2] * 7
    same_as_before = [round_ > 0 and members[round_] == members[round_ - 1] for round_ in range(14)]
    assert watched[0].relative == watched[1].relative == same_as_before
    assert watched[2].relative == same_as_before[4:7]
    assert {seen.weights[key] for key in seen.weights} == {1.0}
    assert seen.outcomes[FOUNDER].digest == seen.outcomes[SECOND].digest


def test_ef21_a_worker_that_lost_its_reference_listens_once() -> None:
    """Killed and back before the others go on without it: they count on what it no longer has."""
    faults = [Fault(Kind.KILL, 4.03, (2,)), Fault(Kind.START, 4.04, (2,))]
    seen = simulate(Plan(rounds=14, faults=faults, options=EF21, timing=Timing(min_patience_s=5.0)))
    assert not seen.unfired
    assert not seen.errors
    excused = [event for event in seen.of(SatOut, THIRD) if "listens once" in event.reason]
    assert len(excused) == 1
    assert (SyncKey(excused[0].round, 0), THIRD) not in seen.frames
    assert (SyncKey(excused[0].round + 1, 0), THIRD) in seen.frames
    assert len({outcome.digest for outcome in seen.outcomes.values()}) == 1
    assert distance(seen) < 0.2


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(Kind.KILL, 4.03, (1,)), Fault(Kind.START, 4.04, (1,)), Fault(Kind.KILL, 4.6, (0,))],
        [
            Fault(Kind.KILL, 4.03, (1,)),
            Fault(Kind.START, 4.04, (1,)),
            Fault(Kind.KILL, 4.6, (0,)),
            Fault(Kind.START, 4.62, (0,)),
        ],
    ],
    ids=["the other one dies", "the other one is restarted too"],
)
def test_ef21_goes_on_when_all_have_lost_their_references(faults: list[Any]) -> None:
    starts = {FOUNDER: 0.0, SECOND: 0.3}
    seen = simulate(Plan(rounds=16, starts=starts, faults=faults, options=EF21))
    assert not seen.unfired
    assert not seen.errors
    listened = [event for event in seen.of(SatOut, SECOND) if "listens once" in event.reason]
    assert 1 <= len(listened) <= 2
    last = seen.of(RoundMixed, SECOND)[-1]
    assert last.round == 15
    assert SECOND in last.members
    assert distance(seen, SECOND) < 0.6


def test_ef21_with_coarse_means_has_the_exact_mean_again_after_members_changed() -> None:
    """What reducers left out before is void with the references that it belongs to."""
    coarse = {**EF21, "codec": make_codec("int4-b8"), "mean_codec": COARSE}
    seen = simulate(Plan(rounds=60, stops={THIRD: 4.5}, options=coarse))
    assert not seen.errors
    members = [m.members for m in seen.of(RoundMixed, FOUNDER)]
    assert members[0] == PEERS
    assert members[-1] == (FOUNDER, SECOND)
    # Two optima only: the mean of theirs is where the rest of the swarm has to end.
    goal_N = torch.stack([torch.from_numpy(PROBLEM.trainer(i)._optimum_N) for i in (0, 1)]).mean(0)
    anchor_N = torch.cat([value.flatten() for value in seen.outcomes[FOUNDER].anchors.values()])
    assert float((anchor_N - goal_N).square().mean().sqrt()) < 0.01

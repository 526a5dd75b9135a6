"""Nothing is lost: what was sent and what is kept add up to what there was to send."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.codecs.codec import Codec, make_codec
from decentral.codecs.feedback import Ef21, ErrorFeedback, Feedback, Sent
from tests.unit.codecs.vectors import ALL_CODECS, normal

LOSSY = [name for name in ALL_CODECS if name != "fp32"]
NUMEL = 4500

Span = tuple[int, int]


def through(codec: Codec, values_N: Tensor, cuts: Sequence[int], seed: int) -> Tensor:
    """What the others decode if the vector travels in shards."""
    shards = values_N.tensor_split(list(cuts))
    return torch.cat([codec.decode(codec.encode(shard, seed), shard.numel()) for shard in shards])


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[str, list[int], list[Span]]]:
    """How rounds end: counted, partly counted or aborted, each under its own cut into shards."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        cuts = sorted(draw(st.lists(st.integers(1, NUMEL - 1), max_size=3, unique=True)))
        bounds = [0, *cuts, NUMEL]
        spans = list(itertools.pairwise(bounds))
        missed = draw(st.lists(st.sampled_from(spans), max_size=len(spans) - 1, unique=True))
        found.append((draw(st.sampled_from(["counted", "counted", "aborted"])), cuts, missed))
    return found


@given(name=st.sampled_from(LOSSY), story=rounds(), seed=st.integers(0, 2**31))
def test_what_was_sent_and_the_residual_add_up_to_what_was_counted(name, story, seed):
    codec, feedback = make_codec(name), ErrorFeedback(1)
    sent_N, counted_N = torch.zeros(NUMEL, dtype=torch.float64), torch.zeros(NUMEL, dtype=torch.float64)
    for number, (outcome, cuts, missed) in enumerate(story):
        delta_N = normal(NUMEL, seed=seed + number, scale=10.0 ** (number % 3 - 3))
        brought_N = feedback.bring(0, delta_N).values_N
        decoded_N = through(codec, brought_N, cuts, seed)
        if outcome == "aborted":
            continue
        feedback.commit(0, Sent(decoded_N.clone(), missed=tuple(missed)))
        inside_N = torch.ones(NUMEL, dtype=torch.float64)
        for start, stop in missed:
            inside_N[start:stop] = 0
        sent_N += inside_N * decoded_N
        counted_N += inside_N * delta_N
    (residual_N,) = feedback.residuals()
    kept_N = torch.zeros(NUMEL) if residual_N is None else residual_N
    scale = float(counted_N.abs().max()) + float(sent_N.abs().max())
    torch.testing.assert_close(sent_N + kept_N, counted_N, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("name", LOSSY)
def test_residuals_stay_bounded(name):
    """A contraction: with every codec the residual of equal contributions stops growing."""
    codec, feedback = make_codec(name), ErrorFeedback(1)
    norms = []
    for number in range(60):
        delta_N = normal(NUMEL, seed=number)
        brought_N = feedback.bring(0, delta_N).values_N
        feedback.commit(0, Sent(through(codec, brought_N, [], number)))
        residual_N = feedback.residuals()[0]
        assert residual_N is not None
        norms.append(float(residual_N.norm()))
    assert max(norms[40:]) < 1.6 * max(norms[:40])


def test_without_feedback_the_error_is_gone_and_nothing_is_kept():
    feedback = Feedback(2)
    delta_N = normal(8)
    assert feedback.bring(1, delta_N).values_N is delta_N
    feedback.commit(1, Sent(torch.zeros(8)))
    assert feedback.bring(1, delta_N).values_N is delta_N
    assert feedback.residuals() == (None, None)


def test_a_newcomer_owes_nothing_and_fragments_are_apart():
    feedback = ErrorFeedback(2)
    assert feedback.residuals() == (None, None)
    feedback.bring(1, torch.tensor([1.0, 2.0]))
    feedback.commit(1, Sent(torch.tensor([1.0, 0.0])))
    assert feedback.residuals()[0] is None
    assert feedback.bring(0, torch.tensor([5.0])).values_N.tolist() == [5.0]
    assert feedback.bring(1, torch.tensor([0.5, 0.5])).values_N.tolist() == [0.5, 2.5]


def test_decay_is_that_of_sparseloco():
    """e <- beta e + d, sent, e <- e - sent, by hand."""
    feedback = ErrorFeedback(1, decay=0.5)
    assert feedback.bring(0, torch.tensor([4.0, 1.0])).values_N.tolist() == [4.0, 1.0]
    feedback.commit(0, Sent(torch.tensor([4.0, 0.0])))
    assert feedback.bring(0, torch.tensor([1.0, 1.0])).values_N.tolist() == [1.0, 1.5]
    feedback.commit(0, Sent(torch.tensor([0.0, 1.5])))
    assert feedback.bring(0, torch.tensor([0.0, 0.0])).values_N.tolist() == [0.5, 0.0]


def test_an_aborted_round_fades_nothing():
    feedback = ErrorFeedback(1, decay=0.5)
    feedback.bring(0, torch.tensor([4.0]))
    feedback.commit(0, Sent(torch.tensor([0.0])))
    for _ in range(3):
        assert feedback.bring(0, torch.tensor([1.0])).values_N.tolist() == [3.0]


def test_a_missed_range_keeps_its_old_residual():
    feedback = ErrorFeedback(1)
    feedback.bring(0, torch.tensor([1.0, 1.0]))
    feedback.commit(0, Sent(torch.tensor([0.75, 0.75])))
    feedback.bring(0, torch.tensor([8.0, 8.0]))
    feedback.commit(0, Sent(torch.tensor([8.0, 8.0]), missed=((1, 2),)))
    assert feedback.residuals()[0].tolist() == [0.25, 0.25]


def test_residuals_survive_a_restart():
    feedback, after = ErrorFeedback(1), ErrorFeedback(1)
    feedback.bring(0, torch.tensor([1.0, 2.0]))
    feedback.commit(0, Sent(torch.tensor([1.0, 0.0])))
    after.restore(feedback.residuals())
    assert after.bring(0, torch.tensor([0.0, 0.0])).values_N.tolist() == [0.0, 2.0]
    after.forget()
    assert after.bring(0, torch.tensor([0.0, 0.0])).values_N.tolist() == [0.0, 0.0]


def test_a_download_leaves_the_residual():
    feedback = ErrorFeedback(1)
    feedback.bring(0, torch.tensor([1.0]))
    feedback.commit(0, Sent(torch.tensor([0.0])))
    feedback.adopted()
    assert feedback.residuals()[0].tolist() == [1.0]


def test_what_was_brought_is_not_changed():
    """Nor if it was sent as it was: alone, it is the mean as well."""
    feedback, delta_N = ErrorFeedback(1), torch.tensor([1.0, 2.0])
    for sent in ([1.0, 1.0], [0.5, 3.0], None):
        brought_N = feedback.bring(0, delta_N).values_N
        before = brought_N.tolist()
        feedback.commit(0, Sent(brought_N if sent is None else torch.tensor(sent)))
        assert (delta_N.tolist(), brought_N.tolist()) == ([1.0, 2.0], before)


def test_commit_without_bring_is_a_fault():
    with pytest.raises(ValueError, match="nothing was brought for fragment 0"):
        ErrorFeedback(1).commit(0, Sent(torch.zeros(1)))


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_refuses_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        ErrorFeedback(1, decay)


class TestEf21:
    def test_sends_changes_and_adds_them_up(self):
        feedback = Ef21(1)
        first = feedback.bring(0, torch.tensor([4.0, 1.0]))
        assert first.relative_N is None
        assert not feedback.remembers(0)
        feedback.commit(0, Sent(torch.tensor([4.0, 0.0])))
        assert feedback.remembers(0)
        second = feedback.bring(0, torch.tensor([5.0, 2.0]))
        assert (second.values_N.tolist(), second.relative_N.tolist()) == ([5.0, 2.0], [1.0, 2.0])
        feedback.commit(0, Sent(torch.tensor([0.0, 2.0]), relative=True))
        assert feedback.bring(0, torch.tensor([4.0, 2.0])).relative_N.tolist() == [0.0, 0.0]

    def test_a_fresh_start_forgets_what_was_known(self):
        feedback = Ef21(1)
        feedback.bring(0, torch.tensor([4.0]))
        feedback.commit(0, Sent(torch.tensor([4.0])))
        feedback.bring(0, torch.tensor([6.0]))
        feedback.commit(0, Sent(torch.tensor([5.0])))
        assert feedback.bring(0, torch.tensor([6.0])).relative_N.tolist() == [1.0]

    def test_a_round_that_somebody_missed_leaves_nothing_to_count_on(self):
        feedback = Ef21(1)
        feedback.bring(0, torch.tensor([4.0]))
        feedback.commit(0, Sent(torch.tensor([4.0]), whole=False))
        assert not feedback.remembers(0)

    def test_after_a_download_nothing_is_remembered(self):
        feedback = Ef21(1)
        feedback.bring(0, torch.tensor([4.0]))
        feedback.commit(0, Sent(torch.tensor([4.0])))
        feedback.adopted()
        assert not feedback.remembers(0)
        assert feedback.bring(0, torch.tensor([4.0])).relative_N is None

    def test_everybody_weighs_the_same(self):
        assert [Ef21(1).weight(tokens) for tokens in (0, 1, 500)] == [0.0, 1.0, 1.0]
        assert [ErrorFeedback(1).weight(tokens) for tokens in (0, 500)] == [0.0, 500.0]

"""EF21 among a few members that come and go, against the definition: the mean of everybody's references."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.codecs import feedback
from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import Sent
from decentral.outer.diloco import DiLoCo
from decentral.outer.ef21 import Ef21
from decentral.outer.rule import Mixed, OuterState
from decentral.types import PeerId

NUMEL = 4200
CODEC = make_codec("int4-b128")
RULE = Ef21(DiLoCo(lr=0.5, momentum=0.5))


class Member:
    """A worker's side."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = PeerId(name)
        self.memory = feedback.Ef21(1)
        self.goal_N = torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))
        self.reference_N = torch.zeros(NUMEL)
        """Kept apart, by the definition."""

    def bring(self, anchor_N: Tensor, relative: bool) -> Tensor:
        delta_N = 0.3 * (anchor_N - self.goal_N)
        brought = self.memory.bring(0, delta_N)
        if not relative:
            self.reference_N = torch.zeros(NUMEL)
            return brought.values_N
        assert brought.relative_N is not None
        torch.testing.assert_close(brought.relative_N, delta_N - self.reference_N, rtol=0, atol=1e-5)
        return brought.relative_N


def play(members: list[Member], anchor_N: Tensor, state: OuterState, *, late: str = "") -> tuple[Tensor, OuterState]:
    """A round of exactly these members; the part of one may come too late."""
    names = tuple(member.name for member in members)
    relative = state.counted == names
    sent = {member.name: CODEC.decode(CODEC.encode(member.bring(anchor_N, relative)), NUMEL) for member in members}
    inside = [member for member in members if member.name != late]
    mean_N = torch.stack([sent[member.name] for member in inside]).mean(0)
    mixed = Mixed(mean_N, tuple(m.name for m in inside), relative=relative, whole=not late)
    for member in inside:
        member.memory.commit(0, Sent(sent[member.name], relative, whole=not late))
        member.reference_N = member.reference_N + sent[member.name]
    return RULE.step(anchor_N, mixed, state)


@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=2, max_size=10), st.integers(0, 1000))
def test_the_common_reference_is_the_mean_of_the_members(story: list[set[str]], seed: int) -> None:
    everybody = {name: Member(name, seed + i) for i, name in enumerate("abcd")}
    anchor_N = torch.zeros(NUMEL)
    state = RULE.init(anchor_N)
    for names in story:
        members = [everybody[name] for name in sorted(names)]
        anchor_N, state = play(members, anchor_N, state)
        mean_N = torch.stack([member.reference_N for member in members]).mean(0)
        torch.testing.assert_close(state.buffers_N[0], mean_N, rtol=0, atol=1e-5)
        assert state.counted == tuple(member.name for member in members)


def test_a_late_part_makes_the_next_round_start_afresh() -> None:
    members = [Member(name, i) for i, name in enumerate("abc")]
    anchor_N = torch.zeros(NUMEL)
    anchor_N, state = play(members, anchor_N, RULE.init(anchor_N))
    assert state.counted == ("a", "b", "c")
    anchor_N, state = play(members, anchor_N, state, late="b")
    assert state.counted == ()
    _, state = play(members, anchor_N, state)
    mean_N = torch.stack([member.reference_N for member in members]).mean(0)
    torch.testing.assert_close(state.buffers_N[0], mean_N, rtol=0, atol=1e-5)


def test_the_error_vanishes_where_that_of_the_codec_alone_does_not() -> None:
    """Pseudo-gradients that stay the same: EF21 gets them exactly, the codec alone is off by the same every round."""
    member = Member("a", 0)
    delta_N = member.goal_N
    shift_N, alone = torch.zeros(NUMEL), float((CODEC.decode(CODEC.encode(delta_N), NUMEL) - delta_N).norm())
    for number in range(8):
        brought = member.memory.bring(0, delta_N)
        relative = number > 0
        values_N = brought.relative_N if relative else brought.values_N
        assert values_N is not None
        sent_N = CODEC.decode(CODEC.encode(values_N), NUMEL)
        member.memory.commit(0, Sent(sent_N, relative))
        shift_N = shift_N + sent_N if relative else sent_N
    assert float((shift_N - delta_N).norm()) < 1e-4 * alone


def test_buffers_are_the_reference_and_the_rules_own() -> None:
    anchor_N = torch.ones(3)
    state = RULE.init(anchor_N)
    assert RULE.num_buffers == len(state.buffers_N) == 2
    next_N, after = RULE.step(anchor_N, Mixed(torch.ones(3), (PeerId("a"),)), state)
    expected_N, inner = DiLoCo(0.5, 0.5).step(anchor_N, Mixed(torch.ones(3), ()), DiLoCo(0.5, 0.5).init(anchor_N))
    assert torch.equal(next_N, expected_N)
    assert torch.equal(after.buffers_N[1], inner.buffers_N[0])
    assert (after.num_steps, after.counted) == (1, ("a",))
    assert all(not buffer_N.any() for buffer_N in state.buffers_N), "the state that was given is as it was"

"""The arithmetic of a group: nothing is lost, nobody is moved far, and both sides use the same numbers.

Legend: N = values in the fragment.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.errors import FrameError
from decentral.exchange.bounds import Kind
from decentral.exchange.gossip.bounds import OFFENCES
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.gossip.swap import Answers, Share, Swap, Taken, spread_of
from decentral.exchange.wire import Wire
from decentral.outer.clip import REMEMBERED
from decentral.types import PeerId, SyncKey

N = 96
CODECS = ("fp32", "bf16", "int8-b8", "int4-b8")
HOST, *GUESTS = PEERS = tuple(PeerId(name) for name in ("host", "ann", "bob", "cleo", "dan"))
KEY = SyncKey(4, 0)


def randn(seed: int, num: int = N) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed))


def swap(pull: str = "fp32", mean: str = "fp32", anchor: str = "fp32", **wire: Any) -> Swap:
    codec = make_codec(mean)
    return Swap(Wire((N,), codec, codec, **wire), GossipOptions(make_codec(anchor), make_codec(pull)))


def shares(seed: int, num: int, *, apart: float = 1e-3, weights: tuple[float, ...] = ()) -> list[Share]:
    """Members of a group whose anchors and pseudo-gradients are usual distances apart."""
    about_N, work_N = randn(seed), randn(seed + 1)
    return [
        Share(
            peer,
            weights[i] if weights else 1.0,
            work_N + 0.5 * randn(seed + 10 + i),
            about_N + apart * randn(seed + 20 + i),
        )
        for i, peer in enumerate(PEERS[:num])
    ]


@dataclass
class Group:
    """A swap, seen by all its members."""

    host: Taken
    answers: Answers
    guests: list[Taken]

    @property
    def all(self) -> list[Taken]:
        return [self.host, *self.guests]


def meet(members: list[Share], swaps: list[Swap], key: SyncKey = KEY, theirs: bytes | None = None) -> Group:
    """A swap; of a pair whose guest takes the mean itself if it has what the host brought, ``theirs``."""
    host, *guests = members
    taken, answers = swaps[0].settle(key, host, guests, has_ours=theirs is not None)
    told = answers.members, answers.contributors, answers.mean
    return Group(
        taken,
        answers,
        [
            its.take(key, it, *told, answers.pulls[it.peer], answers.shares[it.peer], theirs)
            for it, its in zip(guests, swaps[1:], strict=True)
        ],
    )


def lied(taken: Taken) -> tuple[PeerId, ...]:
    """Members that were found to lie."""
    return tuple(each.peer for each in taken.restrained if each.kind in OFFENCES)


def pull_of(taken: Taken, member: Share) -> Tensor:
    assert taken.mixed.anchor_N is not None
    return taken.mixed.anchor_N.double() - member.anchor_N.double()


def norm(x_N: Tensor) -> float:
    return float(torch.linalg.vector_norm(x_N, dtype=torch.float64))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(2, 5),
    pull=st.sampled_from(CODECS),
    mean=st.sampled_from(CODECS),
    apart=st.sampled_from([0.0, 1e-3, 0.3, 5.0]),
    silent=st.sets(st.integers(0, 4), max_size=5),
    is_of_two=st.booleans(),
)
def test_of_every_group(
    seed: int, num: int, pull: str, mean: str, apart: float, silent: set[int], is_of_two: bool
) -> None:
    """However coarse the codecs: the mean anchor of the group stays, and all use one mean pseudo-gradient."""
    weights = tuple(0.0 if i in silent else 1.0 + i for i in range(num))
    members = [
        Share(it.peer, it.weight, it.delta_N if it.weight else None, it.anchor_N)
        for it in shares(seed, num, apart=apart, weights=weights)
    ]
    swaps = [swap(pull, mean) for _ in members]
    for its in swaps:
        its.bounds.measure(0, 100.0 * randn(seed), 1.0, 0)
        its.bounds.measure(0, None, 1.0, 1)
    theirs = None
    if is_of_two and num == 2:
        theirs, codec = b"", make_codec(mean)
        if members[0].delta_N is not None:
            theirs = pack(codec, members[0].delta_N, 7)
            members[0] = replace(members[0], delta_N=unpack(theirs, codec, N))
    group = meet(members, swaps, theirs=theirs)
    anchors = sum(it.anchor_N.double() for it in members)
    moved = sum(pull_of(taken, it) for taken, it in zip(group.all, members, strict=True))
    size = max(norm(pull_of(taken, it)) for taken, it in zip(group.all, members, strict=True))
    assert norm(moved) <= 1e-6 * (num * size + norm(anchors)), "sum of all pulls"

    inside = tuple(it.peer for it in members if it.weight)
    for taken in group.all:
        assert taken.mixed.members == inside
        assert torch.equal(taken.mixed.delta_N, group.host.mixed.delta_N)
        assert lied(taken) == ()
    if not inside or theirs is not None:
        assert group.answers.mean == b""
    if not inside:
        assert not group.host.mixed.delta_N.any()


@pytest.mark.parametrize("num", [2, 3, 5])
def test_without_loss_everybody_learns_both_means(num: int) -> None:
    members = shares(1, num, weights=(3.0, 1.0, 2.0, 5.0, 1.0)[:num])
    group = meet(members, [swap() for _ in members])
    delta_N = sum(it.weight * it.delta_N.double() for it in members) / sum(it.weight for it in members)
    anchor_N = sum(it.anchor_N.double() for it in members) / num
    for taken in group.all:
        assert taken.mixed.anchor_N is not None
        assert norm(taken.mixed.delta_N.double() - delta_N) < 1e-5
        assert norm(taken.mixed.anchor_N.double() - anchor_N) < 1e-5


@pytest.mark.parametrize("over_senders", [False, True])
def test_a_pair_may_take_its_mean_on_both_sides(over_senders: bool) -> None:
    """As the host would have made it."""
    codec, key = make_codec("fp32"), KEY
    host, guest = shares(1, 2, weights=(3.0, 1.0))
    assert host.delta_N is not None
    host.delta_N[::3] = 0.0
    swaps = [swap(over_senders=over_senders) for _ in range(4)]
    apart = meet([host, guest], swaps[:2], key, theirs=pack(codec, host.delta_N))
    told = meet([host, guest], swaps[2:], key)
    for one, other in zip(apart.all, told.all, strict=True):
        assert norm(one.mixed.delta_N - other.mixed.delta_N) < 1e-6 * norm(other.mixed.delta_N)
        assert one.mixed.members == other.mixed.members
    assert torch.equal(apart.host.mixed.delta_N, apart.guests[0].mixed.delta_N)


@pytest.mark.parametrize("num", [3, 5])
def test_of_more_than_two_nobody_takes_the_mean_itself(num: int) -> None:
    members = shares(1, num)
    _, answers = swap().settle(KEY, members[0], members[1:])
    mine = members[1]
    told = answers.members, answers.contributors, b"", answers.pulls[mine.peer], 0.5
    with pytest.raises(FrameError, match=f"said to be of {num}"):
        swap().take(KEY, mine, *told, pack(make_codec("fp32"), randn(3)))


@pytest.mark.parametrize("part", [1.0, 0.25])
@pytest.mark.parametrize(("weight", "counted"), [(1e-3, 1e-3), (3.9, 3.9), (4.0, 4.0), (4.1, 4.0), (1e30, 4.0)])
def test_a_guest_counts_four_times_as_much_as_a_whole_round_of_the_host_at_most(
    part: float, weight: float, counted: float
) -> None:
    """A newcomer after a step or two takes its partner's whole round as it is; a liar's tokens are no lever."""
    members = shares(1, 2)
    mine = Share(HOST, part * 8.0, members[0].delta_N, members[0].anchor_N, part)
    guest = Share(members[1].peer, weight * 8.0, members[1].delta_N, members[1].anchor_N)
    group = meet([mine, guest], [swap(), swap()])
    assert mine.delta_N is not None
    assert guest.delta_N is not None
    mean_N = (part * mine.delta_N.double() + counted * guest.delta_N.double()) / (part + counted)
    for taken in group.all:
        assert norm(taken.mixed.delta_N.double() - mean_N) < 1e-5 * norm(mean_N)


@pytest.mark.parametrize("silent", [HOST, GUESTS[0]])
def test_who_only_listens_is_not_in_the_mean_and_is_pulled_all_the_same(silent: PeerId) -> None:
    members = [Share(it.peer, 0.0, None, it.anchor_N) if it.peer == silent else it for it in shares(2, 2, apart=1e-2)]
    swaps = [swap(), swap()]
    for its in swaps:
        its.bounds.measure(0, randn(0), 1.0, 0)
    group = meet(members, swaps)
    (other,) = (it for it in members if it.peer != silent)
    middle_N = (members[0].anchor_N + members[1].anchor_N) / 2
    for taken in group.all:
        assert taken.mixed.members == (other.peer,)
        assert torch.equal(taken.mixed.delta_N, other.delta_N)
        assert norm(taken.mixed.anchor_N - middle_N) < 1e-6


@pytest.mark.parametrize(("round_", "kinds"), [(0, [Kind.AGAINST]), (5, [])])
def test_a_founder_trusts_that_partners_agree_and_a_newcomer_only_in_what_it_sees(
    round_: int, kinds: list[Kind]
) -> None:
    one, other = shares(4, 2)
    assert one.delta_N is not None
    guest = Share(other.peer, 1.0, -one.delta_N, other.anchor_N)
    taken, _ = swap().settle(SyncKey(round_, 0), one, [guest])
    assert [each.kind for each in taken.restrained] == kinds


def test_a_swap_of_the_same_values_gives_the_same_frames() -> None:
    members = shares(3, 3)
    once, again = (swap("int4-b8-sr", "int4-b8-sr").settle(KEY, members[0], members[1:])[1] for _ in range(2))
    assert once == again


# -- spread -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [1e-4, 1e-2, 0.5])
def test_spread_of_a_pair_is_exact(apart: float) -> None:
    members = shares(5, 2, apart=apart)
    group = meet(members, [swap(), swap()])
    gap_N = members[0].anchor_N - members[1].anchor_N
    for taken, it in zip(group.all, members, strict=True):
        assert taken.spread == pytest.approx(norm(gap_N) / norm(it.anchor_N), rel=1e-3)


@pytest.mark.parametrize("num", [3, 5])
def test_spread_in_a_larger_group_is_right_on_average(num: int) -> None:
    spreads, exact = [], []
    for seed in range(0, 2400, 40):
        members = shares(seed, num, apart=1e-2)
        spreads += [taken.spread for taken in meet(members, [swap() for _ in members]).all]
        exact += [
            norm(one.anchor_N - other.anchor_N) / norm(one.anchor_N)
            for one, other in itertools.permutations(members, 2)
        ]
    assert rms(spreads) == pytest.approx(rms(exact), rel=0.04)


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def test_spread_of_one_member_or_of_zeros_is_not_known() -> None:
    assert math.isnan(spread_of(randn(0), randn(1), 1))
    assert math.isnan(spread_of(randn(0), torch.zeros(N), 2))
    assert spread_of(torch.zeros(N), randn(1), 2) == 0.0


# -- who is far off ---------------------------------------------------------------------------------------------------


def acquainted(apart: float = 1e-3, num: int = 2) -> list[Swap]:
    """Members that have met often at the usual distance, which is far below the length of a pseudo-gradient."""
    swaps = [swap() for _ in range(num)]
    for seed in range(0, 40 * 2 * REMEMBERED, 40):
        meet(shares(seed, num, apart=apart), swaps)
    return swaps


def usual_limits() -> tuple[float, float]:
    """Bounds on the radii for pseudo-gradients and anchors among those who are acquainted; N(0, 1) of N values."""
    length = math.sqrt(N)
    return 5.0 * 1.5 * length, 5.0 * 1.5 * length


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("far", ["delta", "anchor", "both"])
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_a_far_off_guest_is_clipped_and_named(num: int, far: str, scale: float) -> None:
    swaps = acquainted(num=num)
    members = shares(9, num)
    honest = meet(members, acquainted(num=num))
    liar = members[-1]
    assert liar.delta_N is not None
    members[-1] = Share(
        liar.peer,
        liar.weight,
        liar.delta_N * scale if far != "anchor" else liar.delta_N,
        liar.anchor_N * scale if far != "delta" else liar.anchor_N,
    )
    group = meet(members, swaps)
    assert lied(group.host) == (liar.peer,)
    [restrained] = group.host.restrained
    assert restrained.ratio > 10
    delta_limit, anchor_limit = usual_limits()
    assert norm(group.host.mixed.delta_N - honest.host.mixed.delta_N) <= 2 * delta_limit / num
    assert norm(pull_of(group.host, members[0])) <= 2 * anchor_limit / num
    for taken, it in zip(group.guests[:-1], members[1:-1], strict=True):
        assert lied(taken) == (), "the host has clipped it"
        assert norm(pull_of(taken, it)) <= 2 * anchor_limit / num


@pytest.mark.parametrize("far", ["mean", "pull"])
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_a_far_off_host_is_clipped_and_named(far: str, scale: float) -> None:
    _, guest = acquainted()
    host, mine = shares(9, 2)
    assert mine.delta_N is not None
    fp32 = make_codec("fp32")
    mean = pack(fp32, randn(3) * scale if far == "mean" else mine.delta_N)
    pull = pack(fp32, randn(3) * scale if far == "pull" else torch.zeros(N))
    taken = guest.take(KEY, mine, (host.peer, mine.peer), (0, 1), mean, pull, 0.5)
    assert lied(taken) == (host.peer,)
    delta_limit, anchor_limit = usual_limits()
    assert norm(taken.mixed.delta_N - mine.delta_N) <= delta_limit / 2
    assert norm(pull_of(taken, mine)) <= anchor_limit / 2


@pytest.mark.parametrize("liar", ["host", "guest"])
@pytest.mark.parametrize(("weight", "times"), [(1.0, -1.0), (4.0, -0.3)])
def test_who_points_against_us_counts_for_nothing_and_is_named(liar: str, weight: float, times: float) -> None:
    """Whatever its values weigh; and its anchor does not count either."""
    swaps = acquainted()
    host, guest = shares(9, 2, apart=1e-2, weights=(weight, 1.0) if liar == "host" else (1.0, weight))
    assert host.delta_N is not None
    assert guest.delta_N is not None
    if liar == "host":
        group = meet([replace(host, delta_N=times * host.delta_N), guest], swaps)
        deceived, honest = group.guests[0], guest
    else:
        group = meet([host, replace(guest, delta_N=times * guest.delta_N)], swaps)
        deceived, honest = group.host, host
    assert lied(deceived) == (HOST if liar == "host" else GUESTS[0],)
    assert deceived.restrained[0].ratio < 0
    assert torch.equal(deceived.mixed.delta_N, honest.delta_N)
    assert not pull_of(deceived, honest).any()


@pytest.mark.parametrize("who", ["host", "guest"])
def test_who_brings_zeros_is_named(who: str) -> None:
    swaps = acquainted()
    host, guest = shares(9, 2)
    nothing = replace(host if who == "host" else guest, delta_N=torch.zeros(N))
    group = meet([nothing, guest] if who == "host" else [host, nothing], swaps)
    assert lied(group.guests[0] if who == "host" else group.host) == (nothing.peer,)


@pytest.mark.parametrize("steps", [0.0, 1 / 500])
def test_who_has_little_to_bring_is_no_liar(steps: float) -> None:
    """One step in five hundred, and as much weight; or none at all, where we have none ourselves."""
    swaps = acquainted()
    host, guest = shares(9, 2)
    assert host.delta_N is not None
    assert guest.delta_N is not None
    little = replace(guest, weight=steps or 1.0, delta_N=steps * guest.delta_N)
    mine = replace(host, delta_N=(host.delta_N if steps else torch.zeros(N)))
    assert [lied(taken) for taken in meet([mine, little], swaps).all] == [(), ()]


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_where_partners_do_not_agree_nobody_is_called_a_liar(weight: float) -> None:
    """Close to an optimum honest pseudo-gradients are noise, and every other one points against ours."""
    host, guest = swap(), swap()
    named = 0
    for seed in range(0, 40 * 40, 40):
        members = [replace(it, delta_N=randn(seed + i)) for i, it in enumerate(shares(seed, 2, weights=(weight, 1.0)))]
        named += sum(len(lied(taken)) for taken in meet(members, [host, guest]).all)
    assert named == 0


def test_a_guest_that_comes_again_and_again_from_afar_never_gets_further() -> None:
    host = acquainted()[0]
    _, anchor_limit = usual_limits()
    for seed in range(REMEMBERED // 2 - 1):
        mine, liar = shares(40 * seed, 2)
        far = Share(liar.peer, 1.0, liar.delta_N, 1e6 * randn(7))
        taken, _ = host.settle(KEY, mine, [far])
        assert lied(taken) == (liar.peer,)
        assert norm(pull_of(taken, mine)) <= anchor_limit / 2


def test_three_times_the_usual_distance_is_nothing() -> None:
    swaps = acquainted(apart=10.0)
    members = shares(9, 2, apart=25.0)
    gap_N = members[1].anchor_N - members[0].anchor_N
    group = meet(members, swaps)
    assert lied(group.host) == lied(group.guests[0]) == ()
    assert norm(pull_of(group.host, members[0])) == pytest.approx(norm(gap_N) / 2, rel=1e-3)


def test_who_has_nothing_to_compare_with_calls_nobody_a_liar() -> None:
    """A worker that has listened since it came knows no usual distance."""
    host, guest = shares(1, 2)
    listener = swap()
    assert not listener.bounds.has_measure(0)
    for _ in range(REMEMBERED):
        taken, answers = listener.settle(KEY, Share(HOST, 0.0, None, host.anchor_N), [guest])
        assert lied(taken) == ()
    mine = Share(guest.peer, 0.0, None, guest.anchor_N)
    taken = swap().take(KEY, mine, answers.members, answers.contributors, answers.mean, answers.pulls[guest.peer], 0.0)
    assert lied(taken) == ()


def test_a_newcomer_after_a_step_or_two_measures_by_a_whole_round() -> None:
    """Else its first partner would be cut down to what a step comes to."""
    newcomer = swap()
    whole, other = shares(1, 2, apart=1.0)
    assert whole.delta_N is not None
    mine = Share(HOST, 1.0, whole.delta_N / 50, whole.anchor_N, part=1 / 50)
    taken, _ = newcomer.settle(KEY, mine, [other])
    assert newcomer.bounds.has_measure(0)
    assert lied(taken) == ()
    assert norm(pull_of(taken, mine)) == pytest.approx(norm(other.anchor_N - mine.anchor_N) / 2, rel=1e-3)


# -- codecs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_rest", [True, False])
def test_what_the_codec_leaves_out_of_a_mean_is_carried_over(keep_rest: bool) -> None:
    host = swap(mean="sign-b8", keep_rest=keep_rest)
    used_N, exact_N = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    owed = []
    for round_ in range(60):
        members = shares(40 * round_, 2)
        taken, _ = host.settle(SyncKey(round_, 0), members[0], members[1:])
        used_N += taken.mixed.delta_N
        exact_N += sum(it.delta_N.double() for it in members) / 2
        owed.append(norm(used_N - exact_N))
    assert (max(owed) < 3 * math.sqrt(N)) == keep_rest


@pytest.mark.parametrize("frame", ["mean", "pull"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(frame: str, value: float) -> None:
    mine = shares(1, 2)[1]
    broken = torch.full((N,), value).numpy().tobytes()
    good = pack(make_codec("fp32"), torch.zeros(N))
    bad = reframed(broken)
    frames = (bad, good) if frame == "mean" else (good, bad)
    with pytest.raises(FrameError):
        swap().take(KEY, mine, (HOST, mine.peer), (0, 1), *frames, 0.5)


def reframed(payload: bytes) -> bytes:
    """A frame with the right header around any payload."""

    class Raw:
        name, lossless = "fp32", True

        def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
            return payload

        def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
            raise NotImplementedError

        def nbytes(self, numel: int) -> int:
            return len(payload)

    return pack(Raw(), torch.zeros(len(payload) // 4))


@pytest.mark.parametrize("frame", ["mean", "pull"])
@pytest.mark.parametrize(("codec", "num"), [("bf16", N), ("fp32", N - 1), ("fp32", 2 * N)])
def test_frames_of_another_kind_are_refused(frame: str, codec: str, num: int) -> None:
    mine = shares(1, 2)[1]
    good, bad = pack(make_codec("fp32"), torch.zeros(N)), pack(make_codec(codec), torch.zeros(num))
    frames = (bad, good) if frame == "mean" else (good, bad)
    with pytest.raises(FrameError):
        swap().take(KEY, mine, (HOST, mine.peer), (0, 1), *frames, 0.5)


@pytest.mark.parametrize("pull", CODECS)
def test_repeated_swaps_bring_replicas_together_as_far_as_floats_go(pull: str) -> None:
    """What a coarse pull leaves is still there at the next swap, so it is only a matter of time."""
    one, other = shares(1, 2, apart=0.5)
    swaps = [swap(pull), swap(pull)]
    for its in swaps:
        its.bounds.measure(0, one.delta_N, 1.0, 0)
    before = norm(one.anchor_N - other.anchor_N)
    for round_ in range(12):
        group = meet([one, other], swaps, SyncKey(round_, 0))
        one, other = (
            Share(it.peer, it.weight, it.delta_N, taken.mixed.anchor_N)
            for it, taken in zip((one, other), group.all, strict=True)
            if taken.mixed.anchor_N is not None
        )
    assert norm(one.anchor_N - other.anchor_N) < 1e-4 * before


def test_means_by_coordinate() -> None:
    """Of sparse contributions a value that only one member sent counts in full, for host and guest alike."""
    members = shares(1, 2)
    sparse = []
    for i, it in enumerate(members):
        delta_N = torch.zeros(N)
        delta_N[i::2] = 1.0 + i
        sparse.append(Share(it.peer, 1.0, delta_N, it.anchor_N))
    group = meet(sparse, [swap(over_senders=True), swap(over_senders=True)])
    for taken in group.all:
        assert taken.mixed.delta_N[:4].tolist() == [1.0, 2.0, 1.0, 2.0]


def test_the_mean_a_host_uses_is_the_one_that_its_frame_holds() -> None:
    members = shares(6, 3)
    taken, answers = swap(mean="int4-b8").settle(KEY, members[0], members[1:])
    assert torch.equal(unpack(answers.mean, make_codec("int4-b8"), N), taken.mixed.delta_N)
    exact_N = sum(it.delta_N.double() for it in members) / 3
    assert 0 < norm(taken.mixed.delta_N - exact_N) < 0.2 * norm(exact_N)

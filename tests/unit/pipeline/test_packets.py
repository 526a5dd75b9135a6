"""Messages of a pipeline: what is packed is read again, everything else is refused by a ``FrameError``."""

import functools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import FrameError
from decentral.pipeline.packets import (
    MAX_HEADER_BYTES,
    MAX_MICROBATCHES,
    MAX_SMALL_BYTES,
    MAX_STAGES,
    Commit,
    Committed,
    Failed,
    Hop,
    Load,
    Packet,
    Settle,
    Settled,
    figure,
    shortened,
    unpack_packet,
)
from decentral.swarm import message
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId
from tests.support import wire
from tests.support.wire import NESTED, Good, takes_no_other_fields, takes_no_other_length

FRAME_BYTES = 60
unpack_commit = functools.partial(from_wire, Commit)
unpack_committed = functools.partial(from_wire, Committed)
unpack_failed = functools.partial(from_wire, Failed)
unpack_settle = functools.partial(from_wire, Settle)
unpack_settled = functools.partial(from_wire, Settled)
MOST = (1 << 53) - 1
counts = st.integers(0, MOST)
indices = st.integers(0, MAX_MICROBATCHES - 1)
shares = st.sets(indices, max_size=9).map(lambda some: tuple(sorted(some)))
peers = st.text("aé漢xyz", max_size=8).map(PeerId)
figures = st.floats(allow_nan=False, allow_infinity=False)
commits = st.builds(Commit, counts, counts, counts, st.none() | shares, figures, counts)
failures = st.builds(Failed, counts, counts, indices, counts, st.none() | peers, st.text("aé漢 ", max_size=200))


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    num_stages = draw(st.integers(1, 6))
    head = Hop(0, draw(peers))
    between = [Hop(stage, draw(peers)) for stage in draw(st.permutations(range(1, num_stages + 1)))]
    loaded = draw(st.lists(st.sampled_from(between), unique=True))
    return Packet(
        draw(counts),
        draw(counts),
        draw(indices),
        draw(counts),
        (head, *between, head),
        draw(st.integers(0, num_stages + 1)),
        draw(st.booleans()),
        tuple(Load(hop.stage, hop.peer, draw(counts), draw(st.floats(0, 1e9))) for hop in loaded),
        draw(st.binary(max_size=FRAME_BYTES)),
        draw(st.binary(max_size=9)),
    )


@settings(max_examples=60)
@given(packet=packets())
def test_round_trip_of_a_packet(packet: Packet) -> None:
    num_stages, marks_bytes = len(packet.path) - 2, len(packet.marks)
    sizes = {"num_stages": num_stages, "frame_bytes": FRAME_BYTES}
    assert unpack_packet(to_wire(packet), **sizes, marks_bytes=marks_bytes) == packet
    assert packet.head == packet.path[-1].peer
    with pytest.raises(FrameError, match="marks of"):
        unpack_packet(to_wire(packet), **sizes, marks_bytes=marks_bytes + 1)
    for other in (num_stages - 1, num_stages + 1):
        with pytest.raises(FrameError, match="every stage once"):
            unpack_packet(to_wire(packet), num_stages=other, frame_bytes=FRAME_BYTES)


@settings(max_examples=40)
@given(
    commit=commits,
    committed=st.builds(Committed, counts, shares),
    failed=failures,
    settle=st.builds(Settle, counts),
    settled=st.builds(Settled, counts, counts, counts, st.floats(0, 1e300), figures),
)
def test_round_trips(commit: Commit, committed: Committed, failed: Failed, settle: Settle, settled: Settled) -> None:
    assert unpack_commit(to_wire(commit)) == commit
    assert unpack_committed(to_wire(committed)) == committed
    assert unpack_failed(to_wire(failed)) == failed
    assert unpack_settle(to_wire(settle)) == settle
    assert unpack_settled(to_wire(settled)) == settled


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_no_number(loss: float) -> None:
    assert math.isnan(unpack_commit(to_wire(Commit(0, 0, 0, None, figure(loss), 0))).loss)
    settled = unpack_settled(to_wire(Settled(0, 0, 0, figure(loss), figure(loss))))
    assert math.isnan(settled.grad_norm)
    assert math.isnan(settled.loss)


def test_a_long_reason_is_cut() -> None:
    assert unpack_failed(to_wire(Failed(0, 0, 0, 0, None, shortened("x" * 500)))).reason == "x" * 200


A, B, C, HEAD = (PeerId(name) for name in ("a", "b", "c", "head"))
PATH = (Hop(0, HEAD), Hop(2, B), Hop(1, A), Hop(3, A), Hop(0, HEAD))
PACKET = Packet(1, 2, 3, 4, PATH, 2, True, (Load(1, A, 5, 0.5), Load(3, A, 0, 0.25)), b"frame")
read_packet = functools.partial(unpack_packet, num_stages=3, frame_bytes=FRAME_BYTES)
GOOD: Good = {
    "packet": (read_packet, to_wire(PACKET)),
    "commit": (unpack_commit, to_wire(Commit(1, 2, 3, (0, 2), 0.5, 640))),
    "answer to a commit": (unpack_committed, to_wire(Committed(4, (1,)))),
    "failure": (unpack_failed, to_wire(Failed(1, 2, 3, 4, B, "gone"))),
    "question for a slot": (unpack_settle, to_wire(Settle(1))),
    "answer for a slot": (unpack_settled, to_wire(Settled(0, 0, 0, math.nan, 2.5))),
}
NOT_COUNTS = (*wire.NOT_COUNTS, None, NESTED)
NOT_INDICES = (*NOT_COUNTS, MAX_MICROBATCHES)
NOT_SHARES = (5, "01", {"a": 1}, [1, 0], [0, 0], [-1], [True], ["0"], [[0]], [MAX_MICROBATCHES], NESTED)
NOT_FIGURES = (None, True, "1", math.inf, -math.inf, [], NESTED)
NOT_TEXTS = (*wire.NOT_TEXTS, NESTED)
WIRE = [[hop.stage, hop.peer] for hop in PATH]
NOT_PATHS = (
    None,
    [],
    "aaaaa",
    NESTED,
    [NESTED] * 5,
    WIRE[:-1],
    WIRE[1:],
    WIRE[1:-1],
    [*WIRE, WIRE[-1]],
    [WIRE[0], [2, "b"], [2, "b"], [3, "a"], WIRE[-1]],
    [WIRE[0], [2, "b"], [0, "head"], [3, "a"], WIRE[-1]],
    [WIRE[0], [2, "b"], [1, "a"], [4, "a"], WIRE[-1]],
    [WIRE[0], *WIRE[1:-1], [0, "another head"]],
    [WIRE[1], WIRE[0], WIRE[0], *WIRE[2:4]],
    *([*WIRE[:3], wrong, WIRE[4]] for wrong in (3, [], [3], [3, "a", 0], ["3", "a"], [3, 1], [3.0, "a"], {"3": "a"})),
    *([*WIRE[:3], wrong, WIRE[4]] for wrong in ([3, "a" * 201], [True, "a"], [-3, "a"], [3, None], [3, NESTED])),
)
NOT_LOADS = (
    None,
    5,
    "a",
    NESTED,
    [[1, "a", 5, 0.5]] * 2,
    [[0, "head", 5, 0.5]],
    [[1, "b", 5, 0.5]],
    [[4, "a", 5, 0.5]],
    *([[1, "a", queued, 0.5]] for queued in NOT_COUNTS),
    *([[1, "a", 5, seconds]] for seconds in (None, True, "1", -1.0, math.nan, math.inf, [], NESTED)),
    *([wrong] for wrong in ([], [1, "a", 5], [1, "a", 5, 0.5, 0], {"a": 1}, b"abcd")),
)
#: Values that a field does not take, by message and position.
BAD: dict[str, dict[int, tuple[Any, ...]]] = {
    "packet": {
        0: NOT_COUNTS,
        1: NOT_COUNTS,
        2: NOT_INDICES,
        3: NOT_COUNTS,
        4: NOT_PATHS,
        5: (*NOT_COUNTS, len(PATH)),
        6: (None, 0, 1, "true", b"", [], NESTED),
        7: NOT_LOADS,
        8: (*wire.NOT_BLOBS, bytes(FRAME_BYTES + 1), NESTED),
        9: (*wire.NOT_BLOBS, b"x", NESTED),
    },
    "commit": {
        0: NOT_COUNTS,
        1: NOT_COUNTS,
        2: NOT_COUNTS,
        3: NOT_SHARES,
        4: NOT_FIGURES,
        5: NOT_COUNTS,
    },
    "answer to a commit": {0: NOT_COUNTS, 1: (None, *NOT_SHARES)},
    "failure": {
        0: NOT_COUNTS,
        1: NOT_COUNTS,
        2: NOT_INDICES,
        3: NOT_COUNTS,
        4: NOT_TEXTS,
        5: (None, *NOT_TEXTS),
    },
    "question for a slot": {0: NOT_COUNTS},
    "answer for a slot": {
        0: NOT_COUNTS,
        1: NOT_COUNTS,
        2: NOT_COUNTS,
        3: (*NOT_FIGURES, -0.5),
        4: NOT_FIGURES,
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_malformed_fields_are_refused(name: str) -> None:
    takes_no_other_fields(*GOOD[name], BAD[name], name)


@pytest.mark.parametrize("name", GOOD)
def test_cut_and_extended_messages(name: str) -> None:
    takes_no_other_length(*GOOD[name], name)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_too_long_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = MAX_HEADER_BYTES + FRAME_BYTES if name == "packet" else MAX_SMALL_BYTES
    monkeypatch.delattr(message, "_decoder")
    with pytest.raises(FrameError, match=f"{name} of {limit + 1} bytes, allowed are {limit}"):
        GOOD[name][0](bytes(limit + 1))


def test_the_longest_messages_fit() -> None:
    """With ids as libp2p has them for RSA keys; no number takes more than nine bytes."""
    ids = [PeerId(f"Qm{number:044d}") for number in range(MAX_STAGES + 1)]
    hops = [Hop(stage, peer) for stage, peer in enumerate(ids)]
    loads = tuple(Load(hop.stage, hop.peer, MOST, 1e9) for hop in hops[1:])
    packet = Packet(MOST, MOST, MAX_MICROBATCHES - 1, MOST, (*hops, hops[0]), len(hops), True, loads, bytes(1000))
    assert unpack_packet(to_wire(packet), num_stages=MAX_STAGES, frame_bytes=1000) == packet
    everything = tuple(range(MAX_MICROBATCHES))
    commit, committed = Commit(MOST, MOST, MOST, everything, math.pi, MOST), Committed(MOST, everything)
    failed = Failed(MOST, MOST, MAX_MICROBATCHES - 1, MOST, PeerId("漢" * 200), "漢" * 200)
    assert unpack_commit(to_wire(commit)) == commit
    assert unpack_committed(to_wire(committed)) == committed
    assert unpack_failed(to_wire(failed)) == failed

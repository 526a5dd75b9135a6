import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from decentral.errors import FrameError
from decentral.sim.identity import SimIdentity
from decentral.swarm.presence import ACTIVE, MAX_LINKS, MAX_RECORD_BYTES, Link, Metrics, Presence, State, decode, encode
from decentral.types import PeerId

ME = SimIdentity(PeerId("sim-0001"))
counts = st.integers(0, (1 << 62) - 1)
texts = st.text("aé漢 ", max_size=20)
links = st.builds(
    Link, id=st.text("aé漢", max_size=12), round_trip_s=st.floats(), sent_bytes=counts, received_bytes=counts
)
KINDS = {"int": counts, "float": st.floats(), "str": texts, "tuple": st.lists(links, max_size=MAX_LINKS).map(tuple)}

#: The layout of a record's two lists, written down a second time: a change of it is a change of the protocol.
FIELDS = [
    "run",
    "seq",
    "round",
    "since",
    "digest",
    "round_s",
    "holds",
    "takes",
    "stored",
    "unfit",
    "slot",
    "cut",
    "room",
]
METRICS = [field.name for field in fields(Metrics)]

metrics = st.builds(Metrics, **{name: KINDS[type(getattr(Metrics(), name)).__name__] for name in METRICS})
records = st.builds(
    Presence,
    peer=st.just(ME.peer_id),
    run=texts,
    seq=counts,
    state=st.sampled_from(State),
    round=counts,
    since=counts,
    digest=texts,
    round_s=st.floats(),
    metrics=metrics,
    holds=texts,
    takes=texts,
    stored=texts,
    unfit=texts,
    slot=counts,
    cut=texts,
    room=counts,
)
#: Anything msgpack can carry.
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text() | st.binary(), inner, max_size=3),
    max_leaves=12,
)
#: One more than there may be.
LINKS = [["a1B2c3", 0.1, 1, 1]] * (MAX_LINKS + 1)
PRESENCE = Presence(ME.peer_id, "run", 7, State.TRAINING, 3, 1, "d1gest", 2.5, Metrics(step=30, loss=1.25))


def forge(
    peer: Any = ME.peer_id, state: Any = "training", wrong: dict[str, Any] | None = None, signer: SimIdentity = ME
) -> bytes:
    """A record with a good signature and whatever else is asked for."""
    wrong = wrong or {}
    values = [wrong.get(name, getattr(PRESENCE, name)) for name in FIELDS]
    measured = [wrong.get(name, getattr(PRESENCE.metrics, name)) for name in METRICS]
    return sealed([peer, state, values, measured], signer)


def sealed(content: Any, signer: SimIdentity = ME) -> bytes:
    body = msgpack.packb(content)
    return bytes(msgpack.packb([body, signer.sign(body)]))


def read(data: bytes) -> Presence:
    return decode(data, ME.verify)


@settings(max_examples=20)
@given(presence=records)
def test_round_trip(presence: Presence) -> None:
    # NaN is not equal to itself, but looks the same.
    assert repr(read(encode(presence, ME))) == repr(presence)


def test_the_forger_knows_the_layout() -> None:
    assert forge() == encode(PRESENCE, ME)
    assert repr(read(forge())) == repr(PRESENCE)


def test_an_integer_is_a_float_too() -> None:
    assert read(forge(wrong={"round_s": 2})).round_s == 2.0
    assert isinstance(read(forge(wrong={"round_s": 2})).round_s, float)


def test_a_loss_that_was_not_measured() -> None:
    assert math.isnan(read(encode(replace(PRESENCE, metrics=Metrics()), ME)).metrics.loss)


def test_only_members_that_train_or_synchronise_are_active() -> None:
    assert {State.TRAINING, State.SYNCING} == ACTIVE


@pytest.mark.parametrize("name", [*FIELDS, *METRICS])
def test_every_field_is_checked(name: str) -> None:
    good = getattr(PRESENCE, name) if name in FIELDS else getattr(PRESENCE.metrics, name)
    bad = {
        int: [-1, 1 << 62, True, 1.0, "1", None, b"1"],
        float: [True, "1", None, b"1", [1.0]],
        str: ["x" * 201, b"x", 1, None],
        tuple: [1, None, ["a1B2c3"], [["a1B2c3", 0.1, 1]], [["a1B2c3", 0.1, 1, -1]], [["x" * 13, 0.1, 1, 1]], LINKS],
    }
    for value in bad[type(good)]:
        with pytest.raises(FrameError, match="malformed presence record"):
            read(forge(wrong={name: value}))


@pytest.mark.parametrize("peer", [None, 5, b"sim-0001", ["sim-0001"], "x" * 201])
def test_the_peer_is_checked_before_its_signature(peer: Any) -> None:
    with pytest.raises(FrameError, match="malformed presence record"):
        read(forge(peer=peer))


@pytest.mark.parametrize("state", ["asleep", "", 0, None, ["training"], "TRAINING"])
def test_unknown_state(state: Any) -> None:
    with pytest.raises(FrameError, match="presence record"):
        read(forge(state=state))


def test_a_stranger_cannot_sign_for_a_peer() -> None:
    with pytest.raises(FrameError, match="not signed by sim-0001"):
        read(forge(signer=SimIdentity(PeerId("sim-0002"))))


@given(data=st.data())
def test_no_bit_of_a_record_can_be_changed(data: st.DataObject) -> None:
    record = bytearray(encode(PRESENCE, ME))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError):
        read(bytes(record))


@given(data=st.data())
def test_a_cut_record_is_refused(data: st.DataObject) -> None:
    record = encode(PRESENCE, ME)
    with pytest.raises(FrameError):
        read(record[: data.draw(st.integers(0, len(record) - 1))])


def test_what_is_too_long_is_not_read() -> None:
    record = encode(PRESENCE, ME)
    with pytest.raises(FrameError, match="4097 bytes, allowed are 4096"):
        read(record + bytes(MAX_RECORD_BYTES + 1 - len(record)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("change", [lambda values: values[:-1], lambda values: [*values, 0], lambda values: 5])
def test_a_list_of_another_length(number: int, change: Any) -> None:
    lists: list[Any] = [[getattr(PRESENCE, name) for name in FIELDS], [getattr(Metrics(), name) for name in METRICS]]
    lists[number] = change(lists[number])
    with pytest.raises(FrameError, match="malformed"):
        read(sealed([ME.peer_id, "training", *lists]))


@given(data=st.binary(max_size=200))
def test_noise_is_only_ever_a_frame_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        read(data)


@given(content=junk)
def test_well_formed_nonsense_is_only_ever_a_frame_error(content: Any) -> None:
    with pytest.raises(FrameError):
        read(bytes(msgpack.packb(content)))


@given(content=junk, peer=st.just(ME.peer_id) | junk)
def test_signed_nonsense_is_only_ever_a_frame_error(content: Any, peer: Any) -> None:
    for signed in (content, [peer, "training", content, content]):
        with pytest.raises(FrameError):
            read(sealed(signed))

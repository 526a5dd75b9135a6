"""What is a lie of a reducer by what was signed, and that nothing an honest one answers is one."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.exchange.allreduce.account import (
    Account,
    Case,
    Used,
    digest_of,
    encoded,
    mean_seed,
    merged,
    near,
    part_claim,
)
from decentral.exchange.allreduce.messages import Mean
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.robust import median, nearest
from decentral.exchange.shard import Entry, ShardContributions
from decentral.exchange.wire import Part, Wire
from decentral.sim.identity import SimIdentity
from decentral.swarm.message import to_wire
from decentral.types import PeerId, SyncKey

MEMBERS = tuple(PeerId(f"peer-{number}") for number in range(5))
KEY, NUMEL = SyncKey(3, 0), 4_096
PARTICIPANTS = Participants(KEY, MEMBERS[0], 0, "base", MEMBERS)
PACKED = to_wire(PARTICIPANTS)
PART = Part(0, 0, NUMEL, MEMBERS[1])
WEIGHTS = (10.0, 20.0, 10.0, 500.0, 10.0)
CODECS = ("fp32", "int8-b128", "int4-b128", "e3m0-b128", "sign-b128", "topk1.5-2bit")


def brought(seed: int = 0) -> list[Tensor]:
    """Parts of which one is many times too long."""
    dice = torch.Generator().manual_seed(seed)
    common_S = torch.randn(NUMEL, generator=dice)
    values = [common_S + torch.randn(NUMEL, generator=dice) for _ in MEMBERS]
    values[3] *= 7
    return values


def case(wire: Wire, values: list[Tensor], rest_S: Tensor | None = None) -> tuple[Case, list[bytes]]:
    """What an honest reducer makes of parts, and these."""
    frames = [pack(wire.codec, values_S, i) for i, values_S in enumerate(values)]
    used, contributions = [], ShardContributions(MEMBERS)
    for i, (member, weight, frame) in enumerate(zip(MEMBERS, WEIGHTS, frames, strict=True)):
        digest = digest_of(frame)
        seal = SimIdentity(member).sign(part_claim(PACKED, 0, weight, digest))
        used.append(Used(i, weight, 1.0, digest, seal))
        contributions.enter(member, Entry(weight, unpack(frame, wire.codec, NUMEL), digest))
    mean_S, findings = merged(wire, KEY, PART, contributions, 10.0, dict.fromkeys(MEMBERS, 1.0))
    assert mean_S is not None
    frame, *_ = encoded(wire.mean_codec, mean_S, rest_S, mean_seed(KEY, PART), held_to=True)
    account = Account(tuple(used), 10.0)
    mean = replace_account(Mean.of(range(len(MEMBERS)), frame, findings), account)
    return Case(PACKED, PARTICIPANTS, PART, mean, account), frames


def replace_account(mean: Mean, account: Account) -> Mean:
    return Mean(mean.bits, mean.frame, mean.bounded, digest_of(to_wire(account)), b"")


def wire_of(codec: str, **settings: object) -> Wire:
    return Wire((NUMEL,), make_codec(codec), make_codec(codec), bound=2.5, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0.0, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("codec", CODECS)
def test_what_an_honest_reducer_answers_is_no_lie_whatever_it_owes(codec: str, length: float) -> None:
    rest_S = length * torch.randn(NUMEL, generator=torch.Generator().manual_seed(9))
    held, frames = case(wire_of(codec), brought(), rest_S)
    assert held.lie(wire_of(codec), frames, SimIdentity.verify) == ""


@pytest.mark.parametrize(
    "settings",
    [{"over_senders": True}, {"robust": median}, {"robust": functools.partial(nearest, num_liars=1)}],
    ids=["senders", "median", "nearest"],
)
def test_all_merges_can_be_done_over(settings: dict[str, object]) -> None:
    wire = wire_of("int8-b128", **settings)
    held, frames = case(wire, brought())
    assert held.lie(wire, frames, SimIdentity.verify) == ""
    assert held.lie(wire_of("int8-b128"), frames, SimIdentity.verify) != ""


def test_what_another_processor_rounds_otherwise_is_no_lie() -> None:
    wire = wire_of("fp32")
    held, frames = case(wire, brought())
    mean_S = unpack(held.mean.frame, wire.mean_codec, NUMEL)
    dice = torch.Generator().manual_seed(1)
    other = pack(wire.mean_codec, mean_S * (1 + 1e-6 * torch.randn(NUMEL, generator=dice)))
    assert replace(held, mean=Mean(held.mean.bits, other)).lie(wire, frames, SimIdentity.verify) == ""


@pytest.mark.parametrize("codec", CODECS[:4])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 3.0])
def test_an_answer_that_is_not_the_mean_is_a_lie(codec: str, factor: float) -> None:
    wire = wire_of(codec)
    held, frames = case(wire, brought())
    other = pack(wire.mean_codec, factor * unpack(held.mean.frame, wire.mean_codec, NUMEL))
    said = replace(held, mean=Mean(held.mean.bits, other)).lie(wire, frames, SimIdentity.verify)
    assert said == "its answer is not the mean of the parts that it signed for"


def test_who_is_left_out_without_cause_was_lied_about() -> None:
    wire = wire_of("int8-b128")
    values = brought()
    honest, frames = case(wire, values)
    _, without = case(wire, [*values[:4], torch.zeros(NUMEL)])
    left_out, _ = case(wire, [*values[:4], torch.zeros(NUMEL)])
    assert frames != without
    assert replace(honest, mean=left_out.mean).lie(wire, frames, SimIdentity.verify) != ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seal": b"\0" * 32}, "it counted a part that its member has not signed"),
        ({"weight": 11.0}, "it counted a part that its member has not signed"),
        ({"digest": bytes(16)}, "it counted a part that its member has not signed"),
        ({"rounds": 9.0}, "it counted a part with a weight that no member may have"),
        ({"rounds": float("nan")}, "it counted a part with a weight that no member may have"),
        ({"index": 0}, "its account is of others than its answer names"),
    ],
)
def test_an_account_that_no_honest_reducer_gives_is_a_lie(change: dict[str, object], said: str) -> None:
    wire = wire_of("int8-b128")
    held, frames = case(wire, brought())
    first, second, *others = held.account.used
    fields = {name: getattr(second, name) for name in second.__struct_fields__}
    account = Account((first, Used(**{**fields, **change}), *others), 10.0)  # type: ignore[arg-type]
    assert replace(held, account=account).lie(wire, frames, SimIdentity.verify) == said


def test_what_does_not_fit_of_a_rest_is_still_owed() -> None:
    """A rest of a time when means were longer is paid in instalments, and none of it is lost."""
    codec, dice = make_codec("int4-b128"), torch.Generator().manual_seed(2)
    mean_S, owed_S = torch.randn(NUMEL, generator=dice), 20 * torch.randn(NUMEL, generator=dice)
    sent_S, rest_S = torch.zeros(NUMEL), owed_S.clone()
    for round_ in range(100):
        frame, _, left_S = encoded(codec, mean_S.clone(), rest_S, round_, held_to=True)
        assert left_S is not None
        answer_S, rest_S = unpack(frame, codec, NUMEL), left_S
        assert near(answer_S, mean_S, codec, round_)
        sent_S += answer_S
    assert float((sent_S + rest_S - 100 * mean_S - owed_S).norm()) < 1e-2 * float(owed_S.norm())
    assert float(rest_S.norm()) < 0.7 * float(owed_S.norm())

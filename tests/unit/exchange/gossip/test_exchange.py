"""Two to four workers of a gossip on the memory network: how they find each other, and that nobody waits for long."""

import asyncio
import math

import pytest
import torch

from decentral.codecs.frame import pack
from decentral.errors import CallRefused, CallTimeout
from decentral.exchange.api import Aborted, Reason
from decentral.exchange.gossip.host import AHEAD, ASK, BRING, FETCH
from decentral.exchange.gossip.messages import Anchor, Bring, Given, Kind, Plan, Question, Reply, Visit, ms
from decentral.exchange.offences import Avoidance
from decentral.sim.network import Conditions, Line
from decentral.sim.world import Machine, peer_id
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId
from tests.unit.exchange.gossip.mates import (
    FP32,
    LATENCY_S,
    MAX_WAIT_S,
    MIN_MOVE_S,
    MIN_WAIT_S,
    ROUND_S,
    Mates,
    N,
    alone,
    mixed,
    partners,
    play,
    swapped,
    unconfirmed,
)

ROUND_TRIP_S = 2 * LATENCY_S
STRANGER = peer_id(99)
#: What a pair says whose anchor went ahead, the host's question whether its guest is coming among it.
PAIR = ["gossip.ahead", "gossip.ask", "gossip.bring", "gossip.fetch"]
#: Decoding and reducing take their time.
SLOW = {peer_id(number): Machine(aside_s=1.0) for number in range(4)}


# -- a pair -----------------------------------------------------------------------------------------------------------


def test_a_pair_that_is_ready_swaps_in_one_round_trip() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.gossips[guest].adopted(0, "0.5", torch.full((N,), 0.5))
        await asyncio.sleep(1.0)
        assert mates.sent("ahead")
        theirs, ours = mates.mix(host, 1.0, anchor=0.25, at=1.0), mates.mix(guest, 3.0, anchor=0.5, at=1.0)
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        assert mates.now() == pytest.approx(1.0 + ROUND_TRIP_S)
        assert sorted(what for *_, what in mates.sent()) == PAIR
        (size,) = {int(line.split()[-1]) for line in lines(mates, "gossip.bring")}
        assert size < 64 + 2 * 16 + 128, "the anchor was there already"
        assert len({at for at, *_, what in mates.sent() if what in (BRING, FETCH)}) == 1
        assert partners(await theirs) == (guest,)
        assert partners(await ours) == (host,)
        assert mixed(await theirs).members == mixed(await ours).members == (host, guest)

    play(scenario)


def lines(mates: Mates, what: str) -> list[str]:
    return [line for line in mates.world.network.trace.tail(2000).splitlines() if what in line]


@pytest.mark.parametrize("later", ["host", "guest"])
@pytest.mark.parametrize("by_s", [0.01, 0.3, 0.6, 4.0, MAX_WAIT_S - 1.0])
def test_who_is_earlier_waits(later: str, by_s: float) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        await mates.go_ahead(guest, 0.5)
        began = mates.now()
        at = {host: began, guest: began + by_s} if later == "guest" else {host: began + by_s, guest: began}
        theirs = mates.mix(host, 1.0, anchor=0.25, at=at[host])
        ours = mates.mix(guest, 3.0, anchor=0.5, at=at[guest])
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        assert mates.now() <= began + by_s + 1.1 * ROUND_TRIP_S, "the later one does not wait"
        assert mates.count("gossip") < 8 + 4 * by_s
        waited = (await (ours if later == "host" else theirs)).waiting_s
        assert waited == pytest.approx(by_s, abs=1.1 * ROUND_TRIP_S)
        assert (await (theirs if later == "host" else ours)).waiting_s <= 1.1 * ROUND_TRIP_S
        for verdict in (await theirs, await ours):
            assert unconfirmed(verdict) == ()
            assert verdict.absent == ()

    play(scenario)


@pytest.mark.parametrize("later", ["host", "guest"])
def test_who_would_be_too_late_is_not_waited_for(later: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        early, late = (guest, host) if later == "host" else (host, guest)
        mates.ready_at[late, 0] = MAX_WAIT_S + 2.0
        verdict = await mates.mix(early, 3.0)
        assert alone(verdict, early)
        assert mixed(verdict).delta_N.tolist() == [3.0] * N
        assert mates.now() < 5 * ROUND_TRIP_S, "it says so at once"
        ((peer, _),) = verdict.absent
        assert peer == late
        assert alone(await mates.mix(late, 1.0, at=12.0), late)

    play(scenario)


@pytest.mark.parametrize("gone", ["host", "guest"])
def test_who_is_gone_costs_a_round_trip(gone: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        dead, me = (host, guest) if gone == "host" else (guest, host)
        mates.world.crash(dead)
        verdict = await mates.mix(me, 3.0)
        assert alone(verdict, me)
        assert verdict.absent == ((dead, "cannot be reached"),)
        assert mates.now() < 3 * ROUND_TRIP_S
        assert not mates.rosters[me].is_live(dead, mates.now())
        assert alone(await mates.mix(me, 3.0, at=1.0, round_=1), me)
        assert mates.now() == 1.0, "nobody is left to ask"

    play(scenario)


@pytest.mark.parametrize("paused", ["host", "guest"])
def test_who_is_paused_costs_no_more_than_the_deadline(paused: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        frozen, me = (host, guest) if paused == "host" else (guest, host)
        mates.world.network.pause(frozen)
        verdict = await mates.mix(me, 3.0)
        assert alone(verdict, me)
        assert [peer for peer, _ in verdict.absent] == [frozen]
        assert unconfirmed(verdict) == ((host,) if paused == "host" else ())
        assert verdict.met is not None
        assert mates.now() <= verdict.met.deadline_s
        mates.world.network.resume(frozen)
        await asyncio.sleep(5.0)
        theirs, ours = (mates.mix(peer, 2.0, round_=1, at=mates.now() + 1.0) for peer in (frozen, me))
        assert swapped(await theirs, await ours, delta=2.0)

    play(scenario)


def test_pauses_cost_less_once_it_is_known_how_long_things_take() -> None:
    async def scenario(mates: Mates) -> None:
        await mates.practise(10)
        host, guest = mates.host_of(10)
        for dead, me, round_ in ((host, guest, 10), (guest, host, 10)):
            mates.world.network.pause(dead)
            verdict = await mates.mix(me, 1.0, round_=round_)
            assert alone(verdict, me)
            assert verdict.met is not None
            assert verdict.met.deadline_s == pytest.approx(MIN_WAIT_S + MIN_MOVE_S)
            mates.world.network.resume(dead)
            await asyncio.sleep(20.0)

    play(scenario)


@pytest.mark.parametrize("later", ["host", "guest"])
@pytest.mark.parametrize(("by_s", "together"), [(0.9 * MIN_WAIT_S, True), (1.1 * MIN_WAIT_S, False)])
def test_a_tenth_of_a_round_is_waited_even_for_those_who_were_always_prompt(
    later: str, by_s: float, together: bool
) -> None:
    async def scenario(mates: Mates) -> None:
        await mates.practise(10)
        host, guest = mates.host_of(10)
        late = host if later == "host" else guest
        at = 10 * ROUND_S
        tasks = [mates.mix(peer, 1.0, at=at + by_s * (peer == late), round_=10) for peer in mates.peers]
        assert [bool(partners(await task)) for task in tasks] == [together] * 2

    play(scenario)


def test_who_has_set_out_in_time_is_waited_for_until_its_values_are_there() -> None:
    """To encode them and to decode them takes longer than a wait may last; for that there is time of its own."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        theirs, ours = mates.mix(host, 1.0), mates.mix(guest, 3.0, at=MAX_WAIT_S - 1.0)
        assert swapped(await theirs, await ours, delta=2.0)
        assert (await theirs).waiting_s > MAX_WAIT_S + 1.0

    play(scenario, machines=SLOW)


@pytest.mark.parametrize("rounds", range(1, 9))
def test_in_another_round_they_still_find_each_other(rounds: int) -> None:
    """Rounds are logical: who is ready mixes with who is ready, whatever each of them has planned."""

    async def scenario(mates: Mates) -> None:
        one, other = mates.peers
        mates.gossips[other].progress.resume([rounds])
        theirs, ours = mates.mix(one, 1.0), mates.mix(other, 3.0, round_=rounds)
        assert swapped(await theirs, await ours, delta=2.0)

    play(scenario)


@pytest.mark.parametrize("lost", ["gossip.bring", "gossip.fetch", "reply", "gossip.ask"])
def test_a_lost_message_costs_time_and_nothing_else(lost: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        network = mates.world.network
        theirs, ours = mates.mix(host, 1.0, at=2.0), mates.mix(guest, 3.0, at=2.0)
        original, dropped = network.is_lost, []

        def is_lost() -> bool:
            what = network.trace_next
            dropped.append(what)
            return what == lost and dropped.count(lost) == 1

        send = network.send

        def watched(source, target, what, *rest) -> None:  # type: ignore[no-untyped-def]
            network.trace_next = what
            send(source, target, what, *rest)

        network.send, network.is_lost = watched, is_lost  # type: ignore[method-assign]
        try:
            assert swapped(await theirs, await ours, delta=2.0)
        finally:
            network.send, network.is_lost = send, original  # type: ignore[method-assign]
        assert lost in dropped
        assert unconfirmed(await theirs) == unconfirmed(await ours) == ()

    play(scenario)


def test_patience_over_means_gone() -> None:
    """A guest that has left is not counted by its host, and is told so if it asks."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.ready_at[host, 0] = 1.0
        reply = await mates.bring(guest, host, patience_ms=1200)
        assert reply.kind is Kind.HOLD
        verdict = await mates.mix(host, 1.0, at=5.0)
        assert alone(verdict, host)
        reply = await mates.bring(guest, host, serial=2, patience_ms=0)
        assert reply.kind is Kind.NO

    play(scenario)


def test_the_anchor_that_is_not_there_is_asked_for_once() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.gossips[guest].adopted(0, "0.5", torch.full((N,), 0.5))
        await asyncio.sleep(1.0)
        mates.gossips[host]._host._ahead.clear()  # as after a restart
        theirs, ours = mates.mix(host, 1.0, anchor=0.25, at=1.0), mates.mix(guest, 3.0, anchor=0.5, at=1.0)
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        assert mates.count("bring") == 2

    play(scenario)


def test_the_anchor_of_a_guest_that_is_a_round_ahead_is_kept() -> None:
    """Of two that finish a round one is earlier, and its anchor sets out at once."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of(1)
        mates.gossips[guest].progress.resume([1])
        mates.gossips[guest].adopted(0, "0.5", torch.full((N,), 0.5))
        await asyncio.sleep(1.0)
        mates.gossips[host].progress.resume([1])
        theirs = mates.mix(host, 1.0, anchor=0.25, at=1.0, round_=1)
        ours = mates.mix(guest, 3.0, anchor=0.5, at=1.0, round_=1)
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        assert sorted(what for *_, what in mates.sent()) == PAIR
        assert mates.now() == pytest.approx(1.0 + ROUND_TRIP_S)

    play(scenario)


def test_an_anchor_of_another_base_does_not_count() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.gossips[guest].adopted(0, "old", torch.full((N,), 77.0))
        await asyncio.sleep(1.0)
        theirs, ours = mates.mix(host, 1.0, anchor=0.25, at=1.0), mates.mix(guest, 3.0, anchor=0.5, at=1.0)
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        assert mates.count("bring") == 1

    play(scenario)


# -- a mean that both take --------------------------------------------------------------------------------------------


async def given(mates: Mates, guest: PeerId, host: PeerId, serial: int = 1) -> Given:
    """What a host gives of its own."""
    return from_wire(Given, await mates.call(guest, host, FETCH, to_wire(Visit(0, serial))), 1000)


def test_of_a_pair_each_takes_the_mean_of_what_both_sent() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        theirs, ours = mates.mix(host, 1.0, anchor=0.25), mates.mix(guest, 3.0, anchor=0.5)
        assert swapped(await theirs, await ours, delta=2.0, anchor=0.375)
        [reply] = mates.gossips[host]._host._closed[0].answers.values()
        assert mates.read(reply).is_of_two
        again = await given(mates, guest, host)
        assert again == Given(Kind.DONE, pack(FP32, torch.ones(N))), "a lost answer is made again"
        assert (await given(mates, guest, host, serial=2)).kind is not Kind.DONE, "it is of another sync"

    play(scenario)


def test_who_is_not_the_only_guest_is_given_nothing() -> None:
    async def scenario(mates: Mates) -> None:
        host, *guests = mates.group()
        await asyncio.gather(*(mates.go_ahead(guest) for guest in guests))
        mates.mix(host, 1.0, at=mates.now() + 1.0)
        assert [(await given(mates, guest, host)).kind for guest in guests] == [Kind.NO] * 2
        assert (await given(mates, host, guests[0])).kind is Kind.NO, "it is no host"
        mates.world.add(STRANGER)
        assert (await given(mates, STRANGER, guests[1])).kind is Kind.NO

    play(scenario, 3)


@pytest.mark.parametrize("lie", ["codec", "short", "noise", "empty", "not done", "never"])
def test_a_host_that_keeps_back_its_values_or_gives_nonsense_is_as_good_as_none(lie: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        pull = pack(FP32, torch.zeros(N))
        of_two = to_wire(Reply(Kind.DONE, None, 0, (host, guest), (0, 1), b"", pull, 0.5))
        lies = {
            "codec": to_wire(Given(Kind.DONE, GOOD.replace(b"fp32", b"bf16"))),
            "short": to_wire(Given(Kind.DONE, pack(FP32, torch.ones(N - 1)))),
            "noise": b"noise",
            "empty": to_wire(Given(Kind.DONE)),
            "not done": to_wire(Given(Kind.NO)),
            "never": to_wire(Given(Kind.HOLD)),
        }

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return of_two

        async def give(sender: PeerId, request: bytes) -> bytes:
            return lies[lie]

        await mates.serve(host, BRING, answer)
        await mates.serve(host, FETCH, give)
        verdicts = [await mates.mix(guest, 3.0, round_=round_, at=20.0 * round_) for round_ in range(6)]
        assert all(alone(verdict, guest) for verdict in verdicts)
        assert dict(verdicts[0].absent)[host]
        assert any(host in [each.peer for each in verdict.met.avoided] for verdict in verdicts if verdict.met)

    play(scenario)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_host_that_says_a_share_that_cannot_be_is_as_good_as_none(share: float) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return to_wire(Reply(Kind.DONE, None, 0, (host, guest), (0, 1), b"", pack(FP32, torch.zeros(N)), share))

        async def give(sender: PeerId, request: bytes) -> bytes:
            return to_wire(Given(Kind.DONE, GOOD))

        await mates.serve(host, BRING, answer)
        await mates.serve(host, FETCH, give)
        verdict = await mates.mix(guest, 3.0)
        assert alone(verdict, guest)
        assert "the mean is said to be" in dict(verdict.absent)[host]

    play(scenario)


def test_a_guest_leaves_out_as_many_steps_as_its_host_was_earlier() -> None:
    """The host goes on when its guest's values are there, the guest when the answer is."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        await mates.go_ahead(guest)
        for peer in mates.peers:
            mates.world.peers[peer].transport.line = Line(300.0, 300.0)
        at = mates.now()
        await asyncio.gather(*(mates.mix(peer, 1.0, at=at) for peer in mates.peers))
        took_s = mates.now() - at
        await asyncio.sleep(1.0)  # as where steps overlap with the swap
        due_in_s = mates.gossips[guest].onward().due_in_s
        assert ROUND_S - took_s - 1.0 < due_in_s < ROUND_S - 0.1 * took_s - 1.0
        assert math.isnan(mates.gossips[guest].onward().due_in_s), "once"
        assert math.isnan(mates.gossips[host].onward().due_in_s)

    play(scenario)


def test_a_guest_that_nobody_had_planned_takes_all_its_steps() -> None:
    async def scenario(mates: Mates) -> None:
        one, other = mates.host_of()
        for peer in mates.peers:
            mates.world.peers[peer].transport.line = Line(300.0, 300.0)
        mates.gossips[other].progress.resume([1])
        assert mates.group(1)[0] == other, "each takes itself for the host"
        verdicts = await asyncio.gather(mates.mix(one, 1.0), mates.mix(other, 1.0, at=0.5, round_=1))
        assert partners(verdicts[0]) == (other,)
        assert all(math.isnan(gossip.onward().due_in_s) for gossip in mates.gossips.values())

    play(scenario)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_tokens_are_weights() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        theirs, ours = mates.mix(host, 1.0, weight=3.0), mates.mix(guest, 3.0, weight=1.0)
        assert swapped(await theirs, await ours, delta=1.5)

    play(scenario)


@pytest.mark.parametrize("silent", ["host", "guest"])
def test_a_listener_brings_nothing_and_takes_part(silent: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        listener, other = (host, guest) if silent == "host" else (guest, host)
        theirs = mates.mix(listener, weight=0.0, anchor=0.25)
        ours = mates.mix(other, 3.0, anchor=0.5)
        assert mixed(await theirs).members == mixed(await ours).members == (other,)
        assert swapped(await theirs, await ours, delta=3.0)

    play(scenario)


def test_a_listener_alone_has_no_result() -> None:
    async def scenario(mates: Mates) -> None:
        me, other = mates.peers
        mates.world.crash(other)
        verdict = await mates.mix(me, weight=0.0)
        assert isinstance(verdict.outcome, Aborted)
        assert verdict.outcome.reason is Reason.ALONE
        assert verdict.sent_N is None

    play(scenario)


def test_two_listeners_pull_each_other() -> None:
    async def scenario(mates: Mates) -> None:
        for peer in mates.peers:  # they have a measure of what is usual
            mates.mix(peer, 1.0)
        await asyncio.sleep(5.0)
        host, guest = mates.group(1)
        theirs = mates.mix(host, weight=0.0, anchor=0.25, round_=1)
        ours = mates.mix(guest, weight=0.0, anchor=0.5, round_=1)
        assert swapped(await theirs, await ours, delta=0.0, anchor=0.375)
        assert mixed(await ours).members == ()

    play(scenario)


# -- values that are long on their way --------------------------------------------------------------------------------


def test_values_set_out_only_to_who_will_take_them() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.ready_at[host, 0] = MAX_WAIT_S + 2.0
        verdict = await mates.mix(guest, 3.0)
        assert alone(verdict, guest)
        assert [peer for peer, _ in verdict.absent] == [host]
        assert mates.count("bring") == 0

    play(scenario)


def test_who_told_a_visitor_to_come_waits_for_it() -> None:
    """Its planned guest is there at once, and the visitor's values are on their way for longer."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of(1)
        (visitor,) = mates.newcomers
        assert mates.group(1, among=(*mates.peers, visitor))[0] == host
        mates.world.peers[visitor].transport.line = Line(300.0, 300.0)  # most of a second for values
        for gossip in mates.gossips.values():
            gossip.progress.resume([1])
        coming = mates.mix(visitor, 6.0, at=0.6, round_=1)
        theirs, ours = (mates.mix(peer, 3.0, at=1.0, round_=1) for peer in (host, guest))
        assert swapped(await theirs, await ours, await coming, delta=4.0)

    play(scenario, newcomers=1)


def test_who_has_a_seat_and_does_not_come_is_avoided_the_second_time() -> None:
    async def scenario(mates: Mates) -> None:
        host, _ = mates.host_of()
        (liar,) = mates.newcomers
        mates.know(host, liar)

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return to_wire(Plan(host, 0))

        await mates.serve(liar, ASK, answer)
        for round_ in range(3):
            at = ROUND_S * (round_ + 1)
            mates.ready_at[host, 0] = at
            question = to_wire(Question(0, 10**9))
            told = from_wire(Plan, await mates.call(liar, host, ASK, question))
            assert (told.eta_ms is None) == (round_ == 2)
            verdict = await mates.mix(host, 3.0, round_=round_, at=at)
            assert verdict.met is not None
            assert mates.now() <= at + verdict.met.deadline_s
        assert [each.peer for each in verdict.met.avoided] == [liar]

    play(scenario, newcomers=1)


# -- more than two ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("round_", "planned"), [(0, "guest"), (1, "host"), (7, "third")])
def test_who_is_in_no_plan_of_others_is_a_visitor(round_: int, planned: str) -> None:
    """Whomever it takes for the host itself."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of(round_)
        (third,) = mates.newcomers
        hers = mates.group(round_, among=(*mates.peers, third))[0]
        assert hers == {"host": host, "guest": guest, "third": third}[planned]
        for gossip in mates.gossips.values():
            gossip.progress.resume([round_])
        mates.ready_at[host, 0] = 1.0
        visiting = mates.mix(third, 6.0, round_=round_)
        guesting = mates.mix(guest, 3.0, round_=round_)
        theirs = mates.mix(host, 3.0, at=1.0, round_=round_)
        verdicts = [await theirs, await guesting, await visiting]
        assert swapped(*verdicts, delta=4.0)
        assert {mixed(verdict).members for verdict in verdicts} == {(host, *sorted((guest, third)))}

    play(scenario, newcomers=1)


def test_of_three_nobody_is_left_over_and_nobody_has_to_look_for_a_place() -> None:
    async def scenario(mates: Mates) -> None:
        for round_ in range(4):
            host, *guests = mates.group(round_)
            before = len(mates.sent())
            tasks = [mates.mix(peer, 2.0 + i, at=ROUND_S * round_, round_=round_) for i, peer in enumerate(mates.peers)]
            verdicts = [await task for task in tasks]
            assert swapped(*verdicts, delta=3.0)
            assert mates.now() == pytest.approx(ROUND_S * round_ + 2 * ROUND_TRIP_S)
            calls = sorted(call[1:] for call in mates.sent()[before:])
            expected = [(host, guest, ASK) for guest in guests]
            expected += [(guest, host, what) for guest in guests for what in (ASK, BRING, FETCH)]
            assert calls == sorted(expected)

    play(scenario, 3)


def test_who_finds_its_host_busy_or_gone_finds_another() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.group()
        others = [peer for peer in mates.peers if peer not in (host, guest)]
        mates.world.crash(host)
        tasks = [mates.mix(peer, 1.0, at=1.0 if peer == guest else 1.1) for peer in (guest, *others)]
        verdicts = [await task for task in tasks]
        assert partners(verdicts[0])
        assert sum(bool(partners(verdict)) for verdict in verdicts) >= 2
        assert mates.now() < 2.0

    play(scenario, 4)


@pytest.mark.parametrize("num", [3, 4])
def test_in_groups_of_all_everybody_is_in(num: int) -> None:
    async def scenario(mates: Mates) -> None:
        tasks = [mates.mix(peer, 1.0 + i, at=0.3 * i) for i, peer in enumerate(mates.peers)]
        assert swapped(*[await task for task in tasks], delta=(num + 1) / 2)

    play(scenario, num, pairing={"group_size": num})


def test_two_that_visit_each_other_meet() -> None:
    """Each believes that the other is the host: one of them is."""

    async def scenario(mates: Mates) -> None:
        one, other = mates.peers
        for me, theirs in ((one, other), (other, one)):
            mates.gossips[me]._company.group = lambda fragment, hosts=(theirs, me): hosts  # type: ignore[method-assign,misc]
        ours, theirs_ = mates.mix(one, 1.0), mates.mix(other, 3.0)
        assert swapped(await ours, await theirs_, delta=2.0)
        assert mates.now() < 4 * ROUND_TRIP_S

    play(scenario)


def test_two_that_wait_for_each_other_meet() -> None:
    """Each believes to be the host itself."""

    async def scenario(mates: Mates) -> None:
        one, other = mates.peers
        for me, theirs in ((one, other), (other, one)):
            mates.gossips[me]._company.group = lambda fragment, hosts=(me, theirs): hosts  # type: ignore[method-assign,misc]
        ours, theirs_ = mates.mix(one, 1.0), mates.mix(other, 3.0)
        assert swapped(await ours, await theirs_, delta=2.0)

    play(scenario)


def test_fragments_do_not_know_each_other() -> None:
    async def scenario(mates: Mates) -> None:
        tasks = [
            mates.mix(peer, 1.0 + i + 10 * fragment, fragment=fragment, at=0.1 * fragment * i)
            for i, peer in enumerate(mates.peers)
            for fragment in (0, 1)
        ]
        verdicts = [await task for task in tasks]
        assert swapped(verdicts[0], verdicts[2], delta=1.5)
        assert swapped(verdicts[1], verdicts[3], delta=11.5)

    play(scenario, num_fragments=2)


def test_a_host_takes_no_more_than_guests_can_read() -> None:
    """The plan may change while guests sit: who was expected is a visitor then, and others are expected."""

    async def scenario(mates: Mates) -> None:
        host, *others = mates.peers
        company = mates.gossips[host]._company
        kinds = []
        mates.ready_at[host, 0], mates.ready_at[others[2], 0] = 3.0, 100.0
        for guest in others:
            company.group = lambda fragment, pair=(host, guest): pair  # type: ignore[method-assign,misc]
            kinds.append((await mates.bring(guest, host)).kind)
        assert kinds == [Kind.HOLD, Kind.HOLD, Kind.NO]
        verdict = await mates.mix(host, 1.0, at=3.0)
        assert len(mixed(verdict).members) == 3

    play(scenario, 4)


# -- at the end -------------------------------------------------------------------------------------------------------


def test_who_comes_when_the_host_is_leaving_is_not_kept() -> None:
    """From the moment it reckons, its next sync is a round away."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        (late,) = mates.newcomers
        tasks = [mates.mix(peer, 1.0) for peer in (host, guest)]
        await asyncio.sleep(4.5)
        assert mates.gossips[host]._host._closed[0].seats, "its answers are being made"
        mates.ready_at[host, 0] = mates.now() + ROUND_S
        began = mates.now()
        reply = await mates.bring(late, host, patience_ms=ms(MAX_WAIT_S))
        assert reply.kind is Kind.NO
        assert mates.now() - began < 2 * ROUND_TRIP_S
        assert swapped(*[await task for task in tasks], delta=1.0)

    play(scenario, newcomers=1, machines=SLOW)


def test_who_comes_when_a_guest_is_leaving_is_not_kept() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        (late,) = mates.newcomers
        tasks = [mates.mix(peer, 1.0) for peer in (host, guest)]
        await tasks[0]
        await asyncio.sleep(ROUND_TRIP_S)
        assert not tasks[1].done(), "it is still at its arithmetic"
        mates.ready_at[guest, 0] = mates.now() + ROUND_S
        began = mates.now()
        reply = await mates.bring(late, guest, patience_ms=ms(MAX_WAIT_S))
        assert reply.kind is Kind.NO
        assert mates.now() - began < 2 * ROUND_TRIP_S
        assert swapped(*[await task for task in tasks], delta=1.0)

    play(scenario, newcomers=1, machines=SLOW)


def test_what_a_guest_did_not_fetch_is_told_once() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.ready_at[host, 0] = 1.0
        await mates.bring(guest, host, patience_ms=5000)  # and it never asks again
        assert partners(await mates.mix(host, 1.0, at=1.0)) == (guest,)
        mates.world.crash(guest)
        told = [unconfirmed(await mates.mix(host, 1.0, at=20.0 * round_, round_=round_)) for round_ in (1, 2, 3)]
        assert told == [(guest,), (), ()]

    play(scenario)


@pytest.mark.parametrize("side", ["host", "guest"])
def test_a_cancelled_mix_leaves_nothing_behind(side: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        (third,) = mates.newcomers
        before = len(asyncio.all_tasks())
        me, other = (host, guest) if side == "host" else (guest, host)
        task = mates.mix(me, 1.0)
        if side == "guest":
            mates.ready_at[host, 0] = 4.0
            waiting = None
        else:
            mates.ready_at[guest, 0] = 4.0
            waiting = mates.go(third, mates.bring(third, host, patience_ms=9000))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not mates.leftovers(me)
        if waiting is not None:
            assert (await waiting).kind is Kind.NO, "others need not wait for one that has gone"
            assert mates.now() < 0.5
        await asyncio.sleep(1.0)
        assert len(asyncio.all_tasks()) == before
        mates.ready_at[other, 0] = 6.0
        tasks = [mates.mix(peer, 2.0, at=6.0, round_=1) for peer in (me, other)]
        assert swapped(*[await task for task in tasks], delta=2.0)

    play(scenario, newcomers=1)


def test_a_limit_on_moving_values_follows_a_line_that_has_become_slow() -> None:
    """What was cut off counts, or a worker whose line is slower than it was would be alone for ever."""

    async def scenario(mates: Mates) -> None:
        together = []
        for round_ in range(60):
            if round_ == 32:
                for peer in mates.peers:
                    mates.world.peers[peer].transport.line = Line(100.0, 100.0)  # 2 s for what took no time
            await asyncio.gather(*(mates.go_ahead(peer) for peer in mates.peers))
            tasks = [mates.mix(peer, 1.0, round_=round_, at=40.0 * (round_ + 1)) for peer in mates.peers]
            together.append(all([bool(partners(await task)) for task in tasks]))
        assert all(together[:32])
        assert not together[32]
        assert all(together[-10:])

    play(scenario, until_s=4000.0)


# -- those who break the rules ----------------------------------------------------------------------------------------


def test_noise_for_values_is_refused_and_noted() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        mates.ready_at[host, 0] = 3.0
        for serial in (1, 2):
            with pytest.raises(CallRefused, match="FrameError"):
                await mates.bring(guest, host, serial, delta=b"noise")
        assert (await mates.bring(guest, host, 3)).kind is Kind.NO
        verdict = await mates.mix(host, 1.0, at=3.0)
        assert alone(verdict, host)
        assert verdict.met is not None
        ((avoided),) = verdict.met.avoided
        assert isinstance(avoided, Avoidance)
        assert (avoided.peer, avoided.seconds) == (guest, pytest.approx(10 * ROUND_S - 3.0, abs=0.2))

    play(scenario)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"fragment": 1}, "there is no fragment 1"),
        ({"delta": pack(FP32, torch.ones(N + 1))}, "agreed on 4"),
        ({"anchor": pack(FP32, torch.ones(N - 1))}, "agreed on 4"),
        ({"weight": 0.0}, "with values"),
        ({"delta": b""}, "without values"),
    ],
)
def test_a_bad_contribution_is_refused_and_harms_nobody(fields: dict[str, object], match: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        with pytest.raises(CallRefused, match=match):
            await mates.bring(guest, host, **fields)
        tasks = [mates.mix(peer, 2.0, at=1.0) for peer in mates.peers]
        assert swapped(*[await task for task in tasks], delta=2.0)

    play(scenario)


@pytest.mark.parametrize("method", [ASK, AHEAD, BRING, FETCH, "gossip.poll"])
@pytest.mark.parametrize("request_", [b"", b"\xff\x00noise", b"\x91\x05"])
def test_noise_is_refused(method: str, request_: bytes) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        with pytest.raises(CallRefused, match="FrameError"):
            await mates.call(guest, host, method, request_)
        tasks = [mates.mix(peer, 2.0, at=1.0) for peer in mates.peers]
        assert swapped(*[await task for task in tasks], delta=2.0)

    play(scenario)


def test_an_anchor_ahead_is_kept_for_those_expected_only() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.group()
        anchor = to_wire(Anchor(0, "base", pack(FP32, torch.zeros(N))))
        mates.world.add(STRANGER)
        for peer in (STRANGER, *(set(mates.peers) - {host, guest})):
            with pytest.raises(CallRefused, match="not expected"):
                await mates.call(peer, host, AHEAD, anchor)
        with pytest.raises(CallRefused, match="not expected"):
            await mates.call(host, guest, AHEAD, anchor)
        for _ in range(3):
            await mates.call(guest, host, AHEAD, anchor)
        assert len(mates.gossips[host]._host._ahead) == 1
        with pytest.raises(CallRefused, match="bytes are taken"):
            await mates.call(guest, host, AHEAD, bytes(10_000))

    play(scenario, 4)


@pytest.mark.parametrize("step", [0, 1])
def test_a_flood_of_contributions_keeps_nobody_out_and_takes_bounded_memory(step: int) -> None:
    """The same one again and again, or always another."""

    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        (liar,) = mates.newcomers
        mates.ready_at[host, 0] = 3.0

        async def flood(number: int) -> None:
            for serial in range(20):
                try:
                    await mates.bring(liar, host, step * (100 * number + serial), patience_ms=10**11)
                except CallRefused:
                    await asyncio.sleep(0.01)

        floods = [mates.go(liar, flood(number)) for number in range(40)]
        await asyncio.sleep(0.5)
        tasks = [mates.mix(peer, 2.0, at=3.0) for peer in (host, guest)]
        verdicts = [await task for task in tasks]
        assert all(partners(verdict) for verdict in verdicts)
        assert guest in partners(verdicts[0])
        serving = mates.gossips[host]._host
        assert len(serving._closed[0].answers) <= 2
        assert len(serving._tables[0].seats) <= 2
        for each in floods:
            each.cancel()

    play(scenario, newcomers=1)


def test_a_guest_that_stays_for_ever_is_not_waited_for() -> None:
    async def scenario(mates: Mates) -> None:
        host, _ = mates.host_of()
        (liar,) = mates.newcomers
        mates.ready_at[host, 0] = 1.0
        await mates.bring(liar, host, patience_ms=10**11)
        verdict = await mates.mix(host, 1.0, at=ROUND_S)
        assert liar not in partners(verdict), "it has not asked for long"

    play(scenario, newcomers=1)


GOOD = pack(FP32, torch.ones(N))


@pytest.mark.parametrize("lie", ["members", "no members", "twice", "contributors", "codec", "short", "noise", "empty"])
def test_a_host_that_answers_nonsense_is_as_good_as_none(lie: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        done = (Kind.DONE, None, 0)
        short = pack(FP32, torch.ones(N - 1))
        answers = {
            "members": to_wire(Reply(*done, (host, STRANGER), (0, 1), GOOD, GOOD)),
            "no members": to_wire(Reply(*done, (), (), GOOD, GOOD)),
            "twice": to_wire(Reply(*done, (host, guest, guest), (0, 1), GOOD, GOOD)),
            "contributors": to_wire(Reply(*done, (host, guest), (0,), GOOD, GOOD)),
            "codec": to_wire(Reply(*done, (host, guest), (0, 1), GOOD.replace(b"fp32", b"bf16"), GOOD)),
            "short": to_wire(Reply(*done, (host, guest), (0, 1), GOOD, short)),
            "noise": b"noise",
            "empty": to_wire(Reply(*done, (host, guest), (0, 1), b"", b"")),
        }

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return answers[lie]

        await mates.serve(host, BRING, answer)
        verdicts = [await mates.mix(guest, 3.0, round_=round_, at=20.0 * round_) for round_ in range(6)]
        assert all(alone(verdict, guest) for verdict in verdicts)
        assert dict(verdicts[0].absent)[host]
        assert verdicts[-1].met is not None
        assert [each.peer for each in verdicts[-1].met.avoided] == [host]

    play(scenario)


@pytest.mark.parametrize("claims", ["hold", "late"])
def test_a_host_that_never_ends_costs_no_more_than_the_deadline(claims: str) -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return to_wire(Reply(Kind.HOLD) if claims == "hold" else Reply(Kind.NO, 10**11))

        await mates.serve(host, BRING, answer)
        await mates.serve(host, "gossip.poll", answer)
        for round_ in range(5):
            began = max(mates.now(), 40.0 * round_)
            verdict = await mates.mix(guest, 3.0, at=began, round_=round_)
            assert alone(verdict, guest)
            assert verdict.met is not None
            assert mates.now() - began <= verdict.met.deadline_s + 1e-6 <= ROUND_S + 6.0

    play(scenario, until_s=2000.0)


def test_a_host_that_holds_nothing_is_not_asked_without_a_pause() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        polls = 0

        async def answer(sender: PeerId, request: bytes) -> bytes:
            nonlocal polls
            polls += 1
            return to_wire(Reply(Kind.HOLD))

        await mates.serve(host, BRING, answer)
        await mates.serve(host, "gossip.poll", answer)
        verdict = await mates.mix(guest, 3.0)
        assert alone(verdict, guest)
        assert unconfirmed(verdict) == (host,)
        assert mates.now() > MAX_WAIT_S
        assert 10 < polls <= 10 * mates.now()

    play(scenario)


def test_a_host_whose_connections_break_at_once_is_not_called_without_end() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        transport, calls = mates.world.peers[guest].transport, 0

        async def break_at_once(*args: object, **limits: object) -> bytes:
            nonlocal calls
            calls += 1
            assert calls < 1000
            raise CallTimeout("the stream was reset")

        transport.call = break_at_once  # type: ignore[method-assign,assignment]
        verdict = await mates.mix(guest, 3.0)
        assert alone(verdict, guest)
        assert unconfirmed(verdict) == (host,)

    play(scenario)


def test_a_guest_that_never_comes_though_it_says_so_costs_no_more_than_the_deadline() -> None:
    async def scenario(mates: Mates) -> None:
        await mates.practise(10)
        host, guest = mates.host_of(10)

        async def answer(sender: PeerId, request: bytes) -> bytes:
            return to_wire(Plan(host, 0))

        await mates.serve(guest, ASK, answer)
        before = mates.count("ask")
        verdict = await mates.mix(host, 3.0, round_=10)
        assert alone(verdict, host)
        assert verdict.waiting_s <= MIN_WAIT_S + MIN_MOVE_S + 0.01
        assert mates.count("ask") - before < 5 * (MIN_WAIT_S + MIN_MOVE_S)

    play(scenario)


def test_a_stranger_may_ask_and_learns_nothing_else() -> None:
    async def scenario(mates: Mates) -> None:
        mates.world.add(STRANGER)
        host, guest = mates.host_of()
        with pytest.raises(CallRefused, match="there is no fragment"):
            await mates.call(guest, host, ASK, b"\x92\x01\xc0")
        tasks = [mates.mix(peer, 2.0, at=1.0) for peer in mates.peers]
        assert swapped(*[await task for task in tasks], delta=2.0)

    play(scenario)


@pytest.mark.parametrize("seed_loss", [0.1, 0.3])
def test_with_loss_everybody_ends_every_round_in_time(seed_loss: float) -> None:
    async def scenario(mates: Mates) -> None:
        together = 0
        for round_ in range(15):
            await asyncio.gather(*(mates.go_ahead(peer) for peer in mates.peers))
            tasks = [
                mates.mix(peer, 1.0, round_=round_, at=mates.now() + 0.2 * i) for i, peer in enumerate(mates.peers)
            ]
            verdicts = [await task for task in tasks]
            together += sum(bool(partners(verdict)) for verdict in verdicts)
        assert together > 15

    play(scenario, 3, conditions=Conditions(loss=seed_loss), until_s=2000.0)


def test_what_a_guest_brings_is_read_as_it_was_sent() -> None:
    async def scenario(mates: Mates) -> None:
        host, guest = mates.host_of()
        seen = []

        async def answer(sender: PeerId, request: bytes) -> bytes:
            seen.append(from_wire(Bring, request, 10_000))
            raise ValueError("not today")

        await mates.serve(host, BRING, answer)
        verdict = await mates.mix(guest, 3.0, weight=7.0, anchor=0.5)
        assert alone(verdict, guest)
        assert dict(verdict.absent)[host].endswith("not today")
        (bring,) = seen
        assert (bring.fragment, bring.base, bring.weight) == (0, "0.5", 7.0)
        assert bring.patience_s == pytest.approx(MAX_WAIT_S, abs=0.1)

    play(scenario)

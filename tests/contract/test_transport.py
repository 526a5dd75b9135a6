"""The contract of ports.transport.Transport, on memory and on hivemind.

Several properties share a world where they do not disturb each other: a real node takes half a second to start.
"""

import asyncio
from collections.abc import Awaitable

import pytest

from decentral.errors import CallRefused, CallTimeout, PeerUnreachable
from decentral.ports.transport import Traffic
from decentral.types import PeerId
from tests.support.harness import Harness, Peer, World

BIG = 8 << 20
#: Far longer than anything here takes; a test that runs into it fails by its harness's deadline or its assertion.
LONG_S = 40.0


async def echo(sender: PeerId, request: bytes) -> bytes:
    return request


async def never(sender: PeerId, request: bytes) -> bytes:
    await asyncio.get_running_loop().create_future()
    return b""


async def hangs(peer: Peer) -> asyncio.Event:
    """Has a method ``hang`` that never answers; set when it is called."""
    begun = asyncio.Event()

    async def hang(sender: PeerId, request: bytes) -> bytes:
        begun.set()
        return await never(sender, request)

    await peer.transport.serve("hang", hang, max_request_bytes=100)
    return begun


async def pair(world: World) -> tuple[Peer, Peer]:
    return await world.peer("a"), await world.peer("b")


async def call(caller: Peer, callee: Peer, method: str, request: bytes = b"", *, limit: int = BIG) -> bytes:
    return await caller.transport.call(
        callee.transport.peer_id, method, request, timeout_s=LONG_S, max_reply_bytes=limit
    )


def test_a_request_reaches_the_handler_with_its_sender_and_the_reply_comes_back(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        c = await world.peer("c")
        seen = []

        async def note(sender: PeerId, request: bytes) -> bytes:
            seen.append((sender, request))
            return request[::-1]

        for peer in (a, b, c):
            await peer.transport.serve("note", note, max_request_bytes=10)
        assert await call(a, b, "note", b"abc") == b"cba"
        assert await call(b, a, "note", b"") == b""
        assert await call(b, c, "note", b"x") == b"x"  # They have only "a" in common.
        ids = [peer.transport.peer_id for peer in (a, b, c)]
        assert seen == [(ids[0], b"abc"), (ids[1], b""), (ids[1], b"x")]
        assert len(set(ids)) == 3
        assert [peer.identity.peer_id for peer in (a, b, c)] == ids

    harness.run(scenario)


def test_a_big_message_arrives_whole_and_its_bytes_are_counted_on_both_sides(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        message = bytes(range(256)) * (BIG // 256)
        await b.transport.serve("echo", echo, max_request_bytes=BIG)
        before = a.transport.traffic(), b.transport.traffic()
        assert await call(a, b, "echo", message) == message
        for old, now in zip(before, (a.transport.traffic(), b.transport.traffic()), strict=True):
            for count in (now.sent_bytes - old.sent_bytes, now.received_bytes - old.received_bytes):
                assert BIG <= count <= BIG + 1000
        assert a.transport.by_peer() in ({}, {b.transport.peer_id: Traffic(BIG, BIG)})  # in a simulation nobody counts

    harness.run(scenario)


def test_refusals_name_their_reason_and_leave_the_peer_at_work(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        with pytest.raises(CallRefused):  # It serves nothing at all yet.
            await call(a, b, "echo")
        await b.transport.serve("echo", echo, max_request_bytes=BIG)
        await b.transport.serve("small", never, max_request_bytes=100)

        async def fail(sender: PeerId, request: bytes) -> bytes:
            raise ValueError("no such round")

        await b.transport.serve("fail", fail, max_request_bytes=100)
        with pytest.raises(CallRefused, match="nonsense"):
            await call(a, b, "nonsense")
        with pytest.raises(CallRefused, match="no such round"):
            await call(a, b, "fail")
        with pytest.raises(CallRefused, match=r"100\b.*101\b"):
            await call(a, b, "small", bytes(101))
        with pytest.raises(CallRefused):
            await call(a, b, "small", bytes(BIG))  # Refused while most of it is still on its way.
        with pytest.raises(CallRefused, match=r"101\b.*100\b"):
            await call(a, b, "echo", bytes(101), limit=100)
        with pytest.raises(CallRefused):
            await call(a, b, "echo", bytes(BIG), limit=100)
        assert await call(a, b, "echo", b"still here") == b"still here"
        await a.transport.serve("echo", echo, max_request_bytes=BIG)
        assert not a.transport.is_barred(b.transport.peer_id)
        a.transport.bar(b.transport.peer_id)
        assert a.transport.is_barred(b.transport.peer_id)
        assert a.transport.banned() == (b.transport.peer_id,)
        with pytest.raises(CallRefused):
            await call(a, b, "echo")
        with pytest.raises(CallRefused):
            await call(b, a, "echo")

    harness.run(scenario)


def test_a_call_without_a_reply_in_time_is_a_timeout_and_the_handler_may_finish(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        begun, go_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow(sender: PeerId, request: bytes) -> bytes:
            begun.set()
            await go_on.wait()
            finished.set()
            return b""

        await b.transport.serve("slow", slow, max_request_bytes=100)
        while not begun.is_set():  # on a busy machine the first call may not get as far
            with pytest.raises(CallTimeout):
                await a.transport.call(b.transport.peer_id, "slow", b"", timeout_s=0.5, max_reply_bytes=10)
        go_on.set()
        await finished.wait()

    harness.run(scenario)


def test_a_dead_peer_is_unreachable_at_once(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        await b.transport.serve("echo", echo, max_request_bytes=100)
        assert await call(a, b, "echo", b"x") == b"x"
        await world.kill(b)
        started = a.clock.monotonic()
        # Until its end of the connection is seen to be gone, nobody can tell whether the request arrived.
        with pytest.raises((PeerUnreachable, CallTimeout)):
            await call(a, b, "echo", b"x")
        assert a.clock.monotonic() - started < LONG_S / 2
        with pytest.raises(PeerUnreachable):
            await call(a, b, "echo", b"x")

    harness.run(scenario)


def test_a_peer_that_dies_in_the_middle_of_a_call_may_have_acted_on_it(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        begun = await hangs(b)
        calling = asyncio.create_task(call(a, b, "hang"))
        await begun.wait()
        await world.kill(b)
        with pytest.raises(CallTimeout):
            await calling

    harness.run(scenario)


def test_calls_above_the_bound_are_refused_and_a_place_that_is_free_again_is_given(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        go_on = asyncio.Event()
        begun: asyncio.Queue[None] = asyncio.Queue()

        async def wait(sender: PeerId, request: bytes) -> bytes:
            begun.put_nowait(None)
            await go_on.wait()
            return b"done"

        await b.transport.serve("wait", wait, max_request_bytes=100, max_concurrent=2)
        await b.transport.serve("echo", echo, max_request_bytes=100, max_concurrent=1)
        places = [asyncio.create_task(call(a, b, "wait")) for _ in range(2)]
        for _ in places:
            await begun.get()
        with pytest.raises(CallRefused, match="busy"):
            await call(a, b, "wait")
        with pytest.raises(CallRefused, match="busy"):
            await call(b, b, "wait")
        assert await call(a, b, "echo", b"each method has its own bound") == b"each method has its own bound"
        go_on.set()
        assert [await place for place in places] == [b"done"] * 2
        assert await call(a, b, "wait") == b"done"

    harness.run(scenario)


def test_a_call_to_oneself_obeys_the_same_rules_and_is_no_traffic(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a = await world.peer("a")
        me = a.transport.peer_id
        senders = []

        async def note(sender: PeerId, request: bytes) -> bytes:
            senders.append(sender)
            return request

        async def fail(sender: PeerId, request: bytes) -> bytes:
            raise ValueError("no such round")

        await a.transport.serve("note", note, max_request_bytes=100)
        await a.transport.serve("fail", fail, max_request_bytes=100)
        await a.transport.serve("never", never, max_request_bytes=100)
        assert await call(a, a, "note", b"x") == b"x"
        assert senders == [me]
        refused: list[tuple[str, Awaitable[bytes]]] = [
            ("no such round", call(a, a, "fail")),
            ("nonsense", call(a, a, "nonsense")),
            ("101", call(a, a, "note", bytes(101))),
            ("100", call(a, a, "note", bytes(100), limit=10)),
        ]
        for reason, calling in refused:
            with pytest.raises(CallRefused, match=reason):
                await calling
        with pytest.raises(CallTimeout):
            await a.transport.call(me, "never", b"", timeout_s=0.1, max_reply_bytes=10)
        assert a.transport.traffic() == Traffic()

    harness.run(scenario)


def test_a_cancelled_call_is_over_and_does_no_harm(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        begun = await hangs(b)
        await b.transport.serve("echo", echo, max_request_bytes=100)
        calling = asyncio.create_task(call(a, b, "hang"))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await call(a, b, "echo", b"x") == b"x"

    harness.run(scenario)


def test_close_fails_what_is_in_flight_and_can_be_repeated(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = await pair(world)
        begun = await hangs(b)
        await a.transport.serve("echo", echo, max_request_bytes=100)
        calling = asyncio.create_task(call(a, b, "hang"))
        await begun.wait()
        await a.transport.close()
        await a.transport.close()
        with pytest.raises(CallTimeout):
            await calling
        with pytest.raises(PeerUnreachable):
            await call(a, b, "hang")
        with pytest.raises((PeerUnreachable, CallTimeout)):  # Its daemon may still take the stream.
            await call(b, a, "echo")

    harness.run(scenario)

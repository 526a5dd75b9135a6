"""Broken bytes on the two kinds of streams that a worker takes, and broken proofs: each ends, and nothing is kept."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import cast

import pytest

from decentral.adapters.daemon import Daemon, StreamHandler
from decentral.adapters.gate import Gate, Meeting, Role
from decentral.adapters.transport import _MAX_STREAMS_OF_ONE, PROTOCOL, HivemindTransport
from decentral.adapters.wire import RequestHead
from decentral.errors import FrameError
from decentral.run.access import new_access
from decentral.sim.loop import run
from decentral.types import PeerId
from tests.support.mutant_messages import broken

ME, MEMBER = PeerId("me"), PeerId("member")
SIZE = 64
_SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]
_COUNTS = [500, pytest.param(50_000, marks=_SLOW, id="many")]


class _Streams:
    """In the place of a daemon: keeps the handlers."""

    def __init__(self) -> None:
        self.handlers: Mapping[str, StreamHandler] = {}

    async def serve_streams(self, handlers: Mapping[str, StreamHandler]) -> None:
        self.handlers = handlers


class _Written:
    """What is written goes nowhere."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: object) -> None:
        assert not self.closed

    async def drain(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


async def fed(handler: StreamHandler, data: bytes, sender: PeerId = MEMBER) -> None:
    """Serve a stream on which these bytes come, and no more."""
    reader, writer = asyncio.StreamReader(), _Written()
    reader.feed_data(data)
    reader.feed_eof()
    async with asyncio.timeout(60):
        await handler(sender, reader, cast(asyncio.StreamWriter, writer))
    assert writer.closed


@pytest.mark.parametrize("count", _COUNTS)
def test_whatever_comes_on_a_stream_it_ends_and_only_whole_requests_are_handed_over(count: int) -> None:
    async def scenario() -> None:
        daemon, served = _Streams(), list[bytes]()

        async def echo(sender: PeerId, request: bytes) -> bytes:
            served.append(request)
            return request

        open_ = HivemindTransport(cast(Daemon, daemon), ME)
        gate = Gate(ME, new_access().held())
        private = HivemindTransport(cast(Daemon, _Streams()), ME, gate=gate).admission
        await open_.serve("echo", echo, max_request_bytes=SIZE)
        dice = random.Random("streams")
        call = RequestHead("echo", 20).packed() + bytes(20)
        for number in range(count // 2):
            # From many: one alone would have to wait.
            await fed(daemon.handlers[PROTOCOL], broken(dice, call), PeerId(f"member{number % 100}"))
        for _ in range(count // 2):
            await fed(private.receive, broken(dice, bytes(32) + (40).to_bytes(4, "big") + bytes(40)))
        assert len(served) > count / 20
        assert max(map(len, served)) <= SIZE
        assert (open_._tasks, open_._methods["echo"].active.total(), private._num_strangers) == (set(), 0, 0)
        assert not open_._bundles._bundles
        await open_.close()

    run(scenario(), until_s=1e6)  # streams of a call that are not all there are waited for


@pytest.mark.parametrize("count", _COUNTS)
def test_a_proof_that_is_broken_lets_nobody_in_under_another_key(count: int) -> None:
    held = new_access().held()
    callee, dice = Gate(ME, held), random.Random("proofs")
    caller = Gate(MEMBER, held)
    meeting = Meeting(MEMBER, ME, bytes(64))
    good, answer = caller.proof(Role.CALLER, meeting), callee.proof(Role.CALLEE, meeting)
    for _ in range(count):
        callee.answer(broken(dice, good), meeting)
        caller.conclude(broken(dice, answer), meeting)
        admitted = {**callee._admitted, **caller._admitted}
        assert set(admitted.values()) <= {held.key.public}
        assert set(admitted) <= {MEMBER, ME}


FLOODER = PeerId("flooder")


@pytest.mark.parametrize(
    ("request_", "most_per_s"),
    [
        pytest.param(b"", 150, id="short calls"),
        pytest.param(b"x", 10, id="messages that are none"),
    ],
)
def test_who_floods_waits_and_others_do_not(request_: bytes, most_per_s: float) -> None:
    """In virtual time: of what comes a burst is served, and what the budget allows."""
    seconds, burst = 3.0, 10 * most_per_s

    async def scenario() -> None:
        daemon, served = _Streams(), Counter[PeerId]()
        transport = HivemindTransport(cast(Daemon, daemon), ME)

        async def serve(sender: PeerId, request: bytes) -> bytes:
            served[sender] += 1
            if request == b"x":
                raise FrameError("no message")
            return b""

        await transport.serve("serve", serve, max_request_bytes=1)
        handler, data = daemon.handlers[PROTOCOL], RequestHead("serve", len(request_)).packed() + request_
        loop = asyncio.get_running_loop()
        calls = []
        for _ in range(int(50 * seconds)):
            calls += [loop.create_task(fed(handler, data, FLOODER)) for _ in range(4 if request_ else 90)]
            began = loop.time()
            await fed(handler, RequestHead("serve", 0).packed(), MEMBER)
            assert loop.time() == began
            await asyncio.sleep(0.02)
        assert served[MEMBER] == 50 * seconds
        assert burst <= served[FLOODER] <= burst + most_per_s * seconds + _MAX_STREAMS_OF_ONE
        await asyncio.gather(*calls)

    run(scenario(), until_s=200.0)


def test_of_a_methods_places_some_are_left_for_others() -> None:
    async def scenario() -> None:
        daemon = _Streams()
        transport = HivemindTransport(cast(Daemon, daemon), ME)
        over = asyncio.Event()

        async def hold(sender: PeerId, request: bytes) -> bytes:
            await over.wait()
            return b""

        await transport.serve("hold", hold, max_request_bytes=0, max_concurrent=8)
        calls = [
            asyncio.create_task(fed(daemon.handlers[PROTOCOL], RequestHead("hold", 0).packed(), sender))
            for sender in [FLOODER] * 20 + [MEMBER]
        ]
        await asyncio.sleep(0.1)
        assert transport._methods["hold"].active == {FLOODER: 6, MEMBER: 1}
        over.set()
        await asyncio.gather(*calls)

    run(scenario(), until_s=200.0)

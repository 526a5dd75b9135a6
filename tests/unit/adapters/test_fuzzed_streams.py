"""Broken bytes on the two kinds of streams that a worker takes, and broken proofs: each ends, and nothing is kept."""

import asyncio
import random
from collections.abc import Mapping
from typing import cast

import pytest

from decentral.adapters.daemon import Daemon, StreamHandler
from decentral.adapters.gate import Gate, Meeting, Role
from decentral.adapters.transport import _PROTOCOL, HivemindTransport
from decentral.adapters.wire import request_head
from decentral.run.access import new_access
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


async def fed(handler: StreamHandler, data: bytes) -> None:
    """Serve a stream on which these bytes come, and no more."""
    reader, writer = asyncio.StreamReader(), _Written()
    reader.feed_data(data)
    reader.feed_eof()
    async with asyncio.timeout(5):
        await handler(MEMBER, reader, cast(asyncio.StreamWriter, writer))
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
        call = request_head("echo", 20) + bytes(20)
        for _ in range(count // 2):
            await fed(daemon.handlers[_PROTOCOL], broken(dice, call))
        for _ in range(count // 2):
            await fed(private.receive, broken(dice, bytes(32) + (40).to_bytes(4, "big") + bytes(40)))
        assert len(served) > count / 20
        assert max(map(len, served)) <= SIZE
        assert (open_._tasks, open_._methods["echo"].active, private._num_strangers) == (set(), 0, 0)
        await open_.close()

    asyncio.run(scenario())


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

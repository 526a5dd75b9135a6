import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest

from decentral import PROTOCOL, __version__
from decentral.engine.hello import HELLO, Hello, ask_hello, serve_hello
from decentral.errors import DecentralError, ProtocolError, UnreachableError, WrongPeerError
from decentral.ports.transport import Transport
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.presence import Presence, State, encode

HOST, ASKER = peer_id(0), peer_id(1)


def ask(serve: Callable[[Transport], Awaitable[None]]) -> Hello:
    async def main() -> Hello:
        world = World(0)
        host, asker = world.add(HOST), world.add(ASKER)
        await serve(host.transport)
        return await ask_hello(asker.transport, HOST, asker.identity.verify, timeout_s=5.0)

    return run(main(), until_s=60.0)


def ask_one_that_says(reply: bytes) -> Hello:
    async def serve(transport: Transport) -> None:
        async def answer(sender: Any, request: bytes) -> bytes:
            return reply

        await transport.serve(HELLO, answer, max_request_bytes=0)

    return ask(serve)


def test_a_worker_introduces_its_swarm() -> None:
    record = Presence(HOST, "run-1", 7, State.TRAINING, 3, 1, "d")

    async def serve(transport: Transport) -> None:
        world_identity = World(0).add(HOST).identity
        records = [(encode(record, world_identity), 1.2345)]
        await serve_hello(transport, "run-1", b"config", lambda: records)

    hello = ask(serve)
    assert hello == Hello(HOST, PROTOCOL, __version__, "run-1", b"config", hello.workers)
    ((presence, age_s),) = hello.workers
    assert repr(presence) == repr(record)
    assert age_s == 1.234


def test_another_protocol_is_named_together_with_the_release_that_speaks_it() -> None:
    with pytest.raises(ProtocolError) as caught:
        ask_one_that_says(bytes(msgpack.packb([PROTOCOL + 1, "7.8.9", "a field of the future"])))
    assert f"protocol {PROTOCOL + 1} (decentral 7.8.9)" in caught.value.message
    assert f"protocol {PROTOCOL} (decentral {__version__})" in caught.value.message
    assert "decentral==7.8.9" in caught.value.hint


def test_a_peer_that_is_no_worker() -> None:
    async def serve(transport: Transport) -> None:
        pass

    with pytest.raises(WrongPeerError, match="not a worker of decentral"):
        ask(serve)


def test_nobody_answers() -> None:
    async def main() -> None:
        asker = World(0).add(ASKER)
        await ask_hello(asker.transport, HOST, asker.identity.verify, timeout_s=5.0)

    with pytest.raises(UnreachableError, match="did not answer"):
        run(main(), until_s=60.0)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([]),
        msgpack.packb([PROTOCOL]),
        msgpack.packb([PROTOCOL, __version__]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config"]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config", 5]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config", [5]]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config", [[5, 5]]]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config", [[b"forged", 5]]]),
        msgpack.packb([PROTOCOL, __version__, "run", b"config", [[[], 5]]]),
        msgpack.packb([PROTOCOL, __version__, "run", "config", []]),
        msgpack.packb([PROTOCOL, __version__, "run", [1, 2], []]),
        msgpack.packb([PROTOCOL, __version__, "run", 1 << 62, []]),
        msgpack.packb([PROTOCOL, "9" * 41, "run", b"config", []]),
        msgpack.packb(["1", __version__, "run", b"config", []]),
    ],
)
def test_nonsense_is_no_worker(reply: bytes) -> None:
    with pytest.raises(WrongPeerError):
        ask_one_that_says(reply)


@pytest.mark.parametrize("field", range(5))
def test_every_error_is_one_for_people(field: int) -> None:
    for value in (None, True, -1, 1 << 62, 1.5, "x" * 1000, b"\x00", [], {}, {"a": []}):
        values: list[Any] = [PROTOCOL, __version__, "run", b"config", []]
        values[field] = value
        with contextlib.suppress(DecentralError):
            ask_one_that_says(bytes(msgpack.packb(values)))


def test_asking_needs_no_torch() -> None:
    code = "import sys, decentral.engine.hello; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

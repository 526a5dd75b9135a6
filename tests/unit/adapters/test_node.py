"""Real nodes on loopback. Few and shared: each takes half a second."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from decentral.adapters import directory as directory_module
from decentral.adapters.address import parse_address
from decentral.adapters.bundle import STREAM_BYTES
from decentral.adapters.daemon import DaemonOptions, start_daemon
from decentral.adapters.hivemind_light import MSGPackSerializer, PeerID
from decentral.adapters.identity import KeyIdentity
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.probe import probe
from decentral.adapters.reach import Way
from decentral.adapters.transport import PROTOCOL
from decentral.adapters.wire import RequestHead
from decentral.errors import (
    CallRefused,
    DecentralError,
    IdentityError,
    PortTakenError,
    UnreachableError,
    UsageError,
    WrongPeerError,
)
from decentral.types import PeerId

STRANGER = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")


class Nodes:
    """Opens nodes for a scenario; all of them are closed at its end, also if it fails."""

    def __init__(self) -> None:
        self.opened: list[Node] = []

    async def found(self) -> Node:
        return await self._open(NodeOptions(host="127.0.0.1"))

    async def join(self, *initial_peers: str, identity_path: Path | None = None, asker: bool = False) -> Node:
        return await self._open(
            NodeOptions(host="127.0.0.1", initial_peers=initial_peers, identity_path=identity_path, asker=asker)
        )

    async def _open(self, options: NodeOptions) -> Node:
        self.opened.append(await open_node(options))
        return self.opened[-1]


def run(scenario: Callable[[Nodes], Awaitable[None]]) -> None:
    async def main() -> None:
        nodes = Nodes()
        try:
            async with asyncio.timeout(60):
                await scenario(nodes)
        finally:
            for node in nodes.opened:
                await node.close()

    asyncio.run(main())


def test_a_node_can_be_found_by_its_port_alone_and_keeps_it_to_itself() -> None:
    async def scenario(nodes: Nodes) -> None:
        node = await nodes.found()
        address = parse_address(node.addresses()[0])
        me = node.transport.peer_id
        assert address.peer == me == node.identity.peer_id
        found = await probe(parse_address(f"localhost:{address.port}"))
        assert found.address == address
        assert (await probe(address)).address == address
        with pytest.raises(WrongPeerError) as caught:
            await probe(address.with_peer(STRANGER))
        assert me[-6:] in caught.value.message
        assert STRANGER[-6:] in caught.value.message
        with pytest.raises(PortTakenError, match=rf"taken by pid {os.getpid()} \("):  # Not its daemon's.
            await open_node(NodeOptions(host="127.0.0.1", port=address.port))
        await node.close()
        await node.close()
        assert not node.daemon.folder.exists()
        assert node.daemon.process.returncode is not None

    run(scenario)


def test_an_asker_calls_others_and_is_nobody_to_them() -> None:
    async def scenario(nodes: Nodes) -> None:
        async def echo(sender: PeerId, request: bytes) -> bytes:
            return request

        node = await nodes.found()
        other = await nodes.join(node.addresses()[0])
        await other.transport.serve("echo", echo, max_request_bytes=10)
        asker = await nodes.join(node.addresses()[0], asker=True)
        assert asker.directory is None
        assert asker.addresses() == ()
        # Found through the node it joined, without a pause in between.
        reply = await asker.transport.call(other.transport.peer_id, "echo", b"hello", timeout_s=20, max_reply_bytes=10)
        assert reply == b"hello"
        assert not await node.finds(STRANGER)

    run(scenario)


@pytest.mark.slow
def test_an_identity_that_lives_in_the_swarm_is_refused_and_a_free_one_taken(tmp_path: Path) -> None:
    async def scenario(nodes: Nodes) -> None:
        key = tmp_path / "id.key"
        founder = await nodes.found()
        first = await nodes.join(founder.addresses()[0], identity_path=key)
        copy = tmp_path / "copied to another machine"
        copy.write_bytes(key.read_bytes())
        copy.chmod(0o600)
        with pytest.raises(IdentityError, match="in use by a live worker of this swarm"):
            await nodes.join(founder.addresses()[0], identity_path=copy)
        with pytest.raises(IdentityError, match="in use by another worker on this machine"):
            await nodes.join(founder.addresses()[0], identity_path=key)
        await first.close()
        again = await nodes.join(founder.addresses()[0], identity_path=key)
        assert again.transport.peer_id == first.transport.peer_id

    run(scenario)


def test_one_live_initial_peer_is_enough_and_none_is_an_error_that_lists_all(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(nodes: Nodes) -> None:
        founder = await nodes.found()
        live = founder.addresses()[0]
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}"
        wrong = f"{live.rpartition('/')[0]}/{STRANGER}"
        node = await nodes.join(dead, live)
        assert "joined without 127.0.0.1:1" in caplog.text
        assert node.addresses()
        with pytest.raises(UnreachableError) as caught:
            await nodes.join(dead, wrong)
        assert "connection refused" in caught.value.message
        assert "peer id mismatch" in caught.value.message
        with pytest.raises(UsageError, match="does not say which peer"):
            await nodes.join("127.0.0.1:1")

    run(scenario)


def test_a_daemon_that_does_not_start_or_ends_leaves_its_last_words(tmp_path: Path) -> None:
    async def scenario(nodes: Nodes) -> None:
        key = tmp_path / "key"
        KeyIdentity.generate().save(key)
        with pytest.raises(DecentralError, match=r"did not start: .*greater than 65536"):
            await start_daemon(DaemonOptions(tmp_path, key, listen=("/ip4/127.0.0.1/tcp/80000",)))
        node = await nodes.found()
        failing = asyncio.create_task(node.failed())
        os.kill(node.daemon.process.pid, signal.SIGKILL)
        assert "ended with status -9" in (await failing).message

    run(scenario)


def test_a_stranger_cannot_spoil_the_records_of_others() -> None:
    async def scenario(nodes: Nodes) -> None:
        founder = await nodes.found()
        stranger = await nodes.join(founder.addresses()[0])
        assert founder.directory is not None
        assert stranger.directory is not None
        await founder.directory.publish("run", "founder", b"good", ttl_s=60)
        [(key_id, _)] = founder.directory._node.protocol.storage.items()
        soon, pack = time.time() + 100, MSGPackSerializer.dumps
        forged: list[tuple[object, bytes, float]] = [
            (None, pack("a plain value in place of all entries"), soon),
            ("broken", b"\xc1", soon),
            ("a number", pack(7), soon),
            (b"not a name", pack(b"x"), soon),
            ("for ever", pack(b"x"), time.time() + 1e9),
            ("long", pack(bytes(100_000)), soon),
            ("good", pack(b"x"), soon),
        ]
        stored = await stranger.directory._node.protocol.call_store(
            PeerID.from_base58(founder.transport.peer_id),
            [key_id] * len(forged),
            [value for _, value, _ in forged],
            [expiration for _, _, expiration in forged],
            subkeys=[subkey for subkey, _, _ in forged],
        )
        assert list(stored) == [False] * 6 + [True]
        assert await founder.directory.lookup("run") == {"founder": b"good", "good": b"x"}

    run(scenario)


def test_a_worker_whose_clock_is_ten_minutes_behind_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "time", SimpleNamespace(time=lambda: time.time() - 600))

    async def scenario(nodes: Nodes) -> None:
        founder = await nodes.found()
        late = await nodes.join(founder.addresses()[0])
        assert founder.directory is not None
        assert late.directory is not None
        assert await late.directory.publish("run", "late", b"x", ttl_s=60)
        assert await founder.directory.lookup("run") == {"late": b"x"}

    run(scenario)


def test_a_stream_is_the_callers_to_close_as_a_reply_that_it_has_not_read_would_be_lost() -> None:
    async def scenario(nodes: Nodes) -> None:
        server = await nodes.found()
        caller = await nodes.join(server.addresses()[0])

        async def echo(sender: PeerId, request: bytes) -> bytes:
            return request

        await server.transport.serve("echo", echo, max_request_bytes=10)
        for request in (b"reply", b"much too long"):
            reader, writer = await caller.daemon.open_stream(server.transport.peer_id, PROTOCOL)
            writer.write(RequestHead("echo", len(request)).packed() + request)
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[1:], "big"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.read(1)
            writer.close()

    run(scenario)


def test_a_long_call_goes_over_several_streams_and_so_does_a_reply_like_one_before_it() -> None:
    async def scenario(nodes: Nodes) -> None:
        server = await nodes.found()
        caller = await nodes.join(server.addresses()[0])
        long, opened = os.urandom(3 * STREAM_BYTES + 5), 0
        open_stream = caller.daemon.open_stream

        async def counted(peer: PeerId, protocol: str) -> Any:
            nonlocal opened
            opened += 1
            return await open_stream(peer, protocol)

        async def turn(sender: PeerId, request: bytes) -> bytes:
            return long if request == b"" else b"" if len(request) < len(long) else request[::-1]

        async def call(request: bytes) -> tuple[bytes, int]:
            nonlocal opened
            opened = 0
            peer = server.transport.peer_id
            reply = await caller.transport.call(peer, "turn", request, timeout_s=30, max_reply_bytes=len(long))
            return reply, opened

        caller.daemon.open_stream = counted  # type: ignore[method-assign]
        await server.transport.serve("turn", turn, max_request_bytes=len(long))
        assert await call(b"short") == (b"", 1)
        assert await call(bytes(STREAM_BYTES)) == (b"", 1), "it has room in the first, as a piece of a state has"
        assert await call(b"") == (long, 1), "nobody knew how long the reply would be"
        assert await call(b"") == (long, 4)
        assert await call(long) == (long[::-1], 4)
        assert await call(b"short") == (b"", 4)
        assert await call(b"short") == (b"", 1)
        with pytest.raises(CallRefused):
            await call(bytes(4 * len(long)))
        assert not caller.transport._further
        assert not server.transport._bundles._bundles

    run(scenario)


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_both_families_have_one_port_and_each_leads_to_the_node() -> None:
    async def scenario(nodes: Nodes) -> None:
        founder = await open_node(NodeOptions(host="::"))
        nodes.opened.append(founder)
        places = [parse_address(text) for text in founder.addresses()]
        assert len({place.port for place in places}) == 1
        for text in ("127.0.0.1", "::1"):
            there = next(place for place in places if place.host == text)
            assert (await probe(there)).address == there
        joiner = await open_node(NodeOptions(host="::", initial_peers=(f"/ip6/::1/tcp/{there.port}/p2p/{there.peer}",)))
        nodes.opened.append(joiner)
        assert joiner.reached.way is Way.DIRECT

    run(scenario)

"""A private swarm's nodes on loopback: members come in, strangers get nothing, whoever is put out hears it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from decentral.adapters.admission import ADMISSION
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.policy import signed
from decentral.adapters.transport import PROTOCOL
from decentral.adapters.wire import RequestHead
from decentral.errors import AdmissionError, CallRefused, NotAdmitted, NotAdmittedBy
from decentral.run.access import Access, new_access
from decentral.types import PeerId


@contextlib.asynccontextmanager
async def opened(access: Access | None, *initial: str, served: list[PeerId] | None = None) -> AsyncIterator[Node]:
    held = access.held() if access is not None else None
    node = await open_node(NodeOptions(host="127.0.0.1", initial_peers=initial, held=held))

    async def echo(sender: PeerId, request: bytes) -> bytes:
        if served is not None:
            served.append(sender)
        return request

    try:
        await node.transport.serve("echo", echo, max_request_bytes=64)
        yield node
    finally:
        await node.close()


async def echoed(caller: Node, callee: Node) -> bytes:
    peer = callee.identity.peer_id
    return await caller.transport.call(peer, "echo", b"hello", timeout_s=60, max_reply_bytes=64)


async def refused(caller: Node, callee: Node) -> NotAdmittedBy:
    with pytest.raises(NotAdmitted) as caught:
        await echoed(caller, callee)
    return caught.value.by


async def raw(node: Node, peer: PeerId, protocol: str, data: bytes, *lengths: int) -> bytes:
    """What comes back for these bytes: a part of each length, and another one of the length that the last is of."""
    reader, writer = await node.daemon.open_stream(peer, protocol)
    try:
        writer.write(data)
        async with asyncio.timeout(60):
            parts = [await reader.readexactly(length) for length in lengths]
            return b"".join([*parts, await reader.readexactly(int.from_bytes(parts[-1][-8:], "big"))])
    finally:
        writer.close()


async def records(node: Node) -> dict[str, bytes]:
    assert node.directory is not None
    return await node.directory.lookup("run")


async def put(node: Node, subkey: str) -> bool:
    assert node.directory is not None
    return await node.directory.publish("run", subkey, b"of the run", ttl_s=60)


def test_members_come_in_strangers_get_nothing_and_whoever_is_put_out_hears_it() -> None:
    async def scenario() -> None:
        access, served = new_access(), list[PeerId]()
        invited = Access(access.invitation)
        async with opened(access, served=served) as founder:
            at = founder.addresses()[0]
            assert await put(founder, "founder")
            async with opened(None, at) as stranger, opened(new_access(), at) as other, opened(invited, at) as member:
                # The stranger and the member of another swarm.
                assert await refused(stranger, founder) is NotAdmittedBy.NO_TOKEN
                assert await refused(other, founder) is NotAdmittedBy.WRONG_TOKEN
                assert await refused(founder, stranger) is NotAdmittedBy.OPENNESS
                for node in (stranger, other):
                    await put(node, "stranger")
                    assert "founder" not in await records(node)
                peer = founder.identity.peer_id
                told = await raw(stranger, peer, PROTOCOL, RequestHead("echo", 0).packed(), 1, 8)
                assert b"not admitted" in told
                # A number, and that it is not let in.
                assert len(await raw(stranger, peer, ADMISSION, bytes(32) + b"\0\0\0\1\0", 33, 4)) < 64
                with pytest.raises(asyncio.IncompleteReadError):
                    await raw(stranger, peer, ADMISSION, bytes(32) + b"\xff" * 4, 33, 4)
                assert served == []
                # The member.
                assert await echoed(member, founder) == b"hello"
                assert await records(member) == {"founder": b"of the run"}
                assert await put(member, "member")
                assert set(await records(founder)) == {"founder", "member"}
                # One that was restarted knows nobody: those who knew it prove themselves again.
                founder.gate.forget(member.identity.peer_id)
                assert await echoed(member, founder) == b"hello"
                founder.gate.forget(member.identity.peer_id)
                assert set(await records(member)) == {"founder", "member"}
                # It is put out.
                leaves = asyncio.create_task(member.failed())
                assert founder.gate.policy is not None
                assert access.founder is not None
                ban = signed(founder.gate.policy.policy.with_ban(member.identity.peer_id), access.founder)
                assert founder.gate.adopt(ban.data)
                assert await refused(member, founder) is NotAdmittedBy.BAN
                assert await refused(founder, member) is NotAdmittedBy.BAN
                why = await asyncio.wait_for(leaves, 60)
                assert isinstance(why, AdmissionError)
                assert why.by is NotAdmittedBy.BAN
                assert set(served) == {member.identity.peer_id}

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_new_policy_goes_from_one_to_the_next() -> None:
    async def scenario() -> None:
        access = new_access()
        invited = Access(access.invitation)
        async with opened(access) as founder:
            at = founder.addresses()[0]
            async with opened(invited, at) as first, opened(invited, at) as second:
                assert await echoed(first, founder) == await echoed(first, second) == b"hello"
                assert founder.gate.policy is not None
                assert access.founder is not None
                newer = signed(founder.gate.policy.policy.with_invitation(bytes(32)), access.founder)
                peer = first.identity.peer_id
                told = asyncio.Event()
                second.gate.on_policy.append(lambda _: told.set())
                reply = await founder.transport.call(peer, "policy", newer.data, timeout_s=60, max_reply_bytes=1)
                assert reply == b"y"
                await asyncio.wait_for(told.wait(), 60)
                assert second.gate.policy == first.gate.policy == newer
                with pytest.raises(CallRefused, match="malformed"):
                    await founder.transport.call(peer, "policy", b"x", timeout_s=60, max_reply_bytes=1)

    asyncio.run(scenario())

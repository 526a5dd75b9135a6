"""A private swarm of real processes: strangers get nothing however they try, and its founder puts out whom he wants."""

import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from decentral.adapters.daemon import DaemonError, DaemonGone
from decentral.adapters.invitation import Invitation
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.transport import PROTOCOL
from decentral.adapters.wire import RequestHead
from decentral.errors import CallRefused, ExitCode
from decentral.run.access import ACCESS, Access, new_access
from decentral.types import PeerId
from tests.process.command import P, Process, WorkerProcess, founding, mixed_together, processes_of, status_of, wait_for

pytestmark = pytest.mark.slow
#: Every method that a worker serves, with a request that a member might send or none at all.
CALLS = (
    *(("hello", b""), ("presence", b"\x90"), ("ping", b""), ("state.head", b""), ("inventory", b"")),
    *(("state.piece", b"\x92\xb0" + b"0" * 16 + b"\0"), ("convene", b"x" * 200), ("held", b"\x92\0\0")),
    *(("shard", b"x" * 4096), ("coming", b"x"), ("result", b"x"), ("doubted", b"x"), ("policy", b"x" * 300)),
    *(("gossip.ask", b"\x91\0"), ("gossip.bring", b"x" * 1000), ("server.push", b"x" * 1000), ("server.ask", b"x")),
    *(("reach", b"\x91\x05"), ("speed", b"\0\x10\0\0"), ("state.values", b"\x91\x90")),
)
STREAMS, AT_ONCE = 2000, 50
#: Each look at a status is a process of its own, whose answer comes too late on a busy machine.
SLOWLY_S = 180.0
UNMEASURED = ("--set", "eval_every_rounds=1000000")


@contextlib.asynccontextmanager
async def outside(address: str, access: Access | None = None) -> AsyncIterator[Node]:
    """A node of somebody who knows address and peer id."""
    held = access.held() if access is not None else None
    node = await open_node(NodeOptions(host="127.0.0.1", initial_peers=(address,), held=held))
    try:
        yield node
    finally:
        await node.close()


async def answer_to(node: Node, peer: PeerId, method: str, request: bytes) -> bytes:
    """What a call gets, without the handshake that the ordinary caller begins with."""
    head = RequestHead(method, len(request)).packed()
    reader, writer = await node.daemon.open_stream(peer, PROTOCOL)
    try:
        writer.write(head + request)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


def resident_bytes(worker: Process) -> int:
    return int(Path(f"/proc/{worker.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rounds_of(worker: WorkerProcess) -> int:
    return len(worker.events("round_mixed"))


@pytest.mark.timeout(600)
def test_a_stranger_gets_nothing_however_he_tries_and_the_swarm_trains_on(
    start: Callable[[P], P], tmp_path: Path
) -> None:
    founder = start(WorkerProcess(tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.1, rounds=2000), *UNMEASURED))
    joiner = start(WorkerProcess(tmp_path / "1", "--join", founder.address))
    wait_for(lambda: rounds_of(joiner), "a round")
    place, peer = founder.address.partition("#")[0], PeerId(founder.peer)
    run = founder.events("started")[0]["run"]
    key = f"decentral/{run}/presence"

    async def attempts(access: Access | None) -> bytes:
        """All that the stranger was told, in the order of his attempts."""
        told = b""
        async with outside(place, access) as stranger:
            for method, request in CALLS:
                with pytest.raises(CallRefused):
                    await stranger.transport.call(peer, method, request, timeout_s=10, max_reply_bytes=1 << 24)
                told += await answer_to(stranger, peer, method, request)
            assert stranger.directory is not None
            assert await stranger.directory.lookup(key) == {}
            await stranger.directory.publish(key, stranger.identity.peer_id, b"of a stranger", ttl_s=60)

            async def knock() -> int:
                with contextlib.suppress(DaemonError, DaemonGone, OSError):  # libp2p has limits of its own
                    return len(await answer_to(stranger, peer, "shard", b"x" * 1000))
                return 0

            rounds, before = rounds_of(joiner), resident_bytes(founder)
            for _ in range(STREAMS // AT_ONCE):
                sizes = await asyncio.gather(*(knock() for _ in range(AT_ONCE)))
                assert max(sizes) < 300
            assert resident_bytes(founder) - before < 32 << 20
            wait_for(lambda: rounds_of(joiner) > rounds + 1, "rounds beside the flood")
        return told

    for access in (None, new_access()):
        told = asyncio.run(attempts(access))
        for secret in (run.encode(), b"inner_steps", b"paced", joiner.peer.encode()):
            assert secret not in told
        assert len(told) < 300 * len(CALLS)
    _, report = status_of(founder.address)
    assert {row["peer"] for row in report["workers"]} == {founder.peer, joiner.peer}
    assert {event["peer"] for event in founder.events("peer_seen")} == {joiner.peer}

    # A member reads the directory, in which nothing of the stranger's is.
    async def read() -> dict[str, bytes]:
        async with outside(place, Access(Invitation.parse(founder.address.rpartition("#")[2]))) as member:
            assert member.directory is not None
            return await member.directory.lookup(key)

    assert set(asyncio.run(read())) == {founder.peer, joiner.peer}
    (tmp_path / "hurry").touch()


@pytest.mark.timeout(600)
def test_the_founder_invites_and_puts_out(start: Callable[[P], P], tmp_path: Path) -> None:
    founder = start(WorkerProcess(tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.1, rounds=2000), *UNMEASURED))
    stays = start(WorkerProcess(tmp_path / "1", "--join", founder.address, "--checkpoint-every", "5s"))
    banned = start(WorkerProcess(tmp_path / "2", "--join", founder.host_port))

    def says(*words: str, code: ExitCode = ExitCode.OK) -> str:
        process = start(Process(tmp_path / "command", *words))
        assert process.code() == code, process.stderr
        return process.stdout.strip() or process.stderr

    key = ("--founder", str(founder.folder))
    line = says("invite", founder.host_port.partition("#")[0], *key)  # the founder's key is enough
    assert line.startswith("decentral worker --join /")
    guest = start(WorkerProcess(tmp_path / "3", *shlex.split(line)[2:]))
    everybody = {worker.peer for worker in (founder, stays, banned, guest)}

    def names() -> set[str]:
        return {row["peer"] for row in status_of(stays.address)[1].get("workers", [])}

    wait_for(lambda: names() == everybody, "all four", SLOWLY_S)
    assert banned.peer in says("ban", stays.address, banned.peer[-6:], *key)
    assert banned.code() == ExitCode.NOT_ADMITTED
    assert "The founder has banned this worker" in banned.stderr
    others = [founder, stays, guest]
    last = max(event["round"] for worker in others for event in worker.events("round_mixed"))
    wait_for(lambda: mixed_together(others, after=last), "rounds of the others without the banned one", SLOWLY_S)
    wait_for(lambda: names() == everybody - {banned.peer}, "the name of the banned one gone", SLOWLY_S)
    assert says("revoke", founder.address, line, *key) == "revoked"
    assert guest.code() == ExitCode.NOT_ADMITTED
    assert "has been revoked" in guest.stderr
    wait_for(lambda: names() == {founder.peer, stays.peer}, "the name of the guest gone", SLOWLY_S)

    # None of them comes back, nor does anybody without a token, or with another one.
    place = founder.address.partition("#")[0]
    other = new_access().invitation.token()
    for arguments, what in (
        (("--resume", str(banned.folder)), "has banned this worker"),
        (("--join", line.split()[-1]), "has been revoked"),
        (("--join", place), "the address has no token"),
        (("--join", f"{place}#{other}"), "is not one of this swarm's"),
    ):
        assert what in says("worker", "--host", "127.0.0.1", *arguments, code=ExitCode.NOT_ADMITTED)
    assert "has no token" in says("status", place, code=ExitCode.NOT_ADMITTED)
    assert "not a token" in says("status", f"{place}#{other[:-1]}", code=ExitCode.USAGE)
    says("ban", founder.address, banned.peer, "--undo", *key)
    back = start(WorkerProcess(tmp_path / "2", "--join", founder.address))
    wait_for(lambda: names() == {founder.peer, stays.peer, back.peer}, "the one that may come back", SLOWLY_S)
    assert back.peer == banned.peer

    # One that stays comes back without a word, by what is in its folder, which nobody else can read.
    stays.popen.kill()
    assert (stays.folder / ACCESS).stat().st_mode & 0o777 == 0o600
    resumed = start(Process(tmp_path / "resumed", "worker", "--resume", str(stays.folder), "--host", "127.0.0.1"))
    wait_for(lambda: len(stays.events("resumed")) == 1, "the one that was killed being back", SLOWLY_S)
    # The token is where it belongs, and nowhere else.
    token = founder.address.rpartition("#")[2]
    for folder in (founder.folder, stays.folder, resumed.folder):
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in (ACCESS, "stdout.txt"):
                assert token.encode() not in path.read_bytes(), path


@pytest.mark.timeout(300)
def test_a_public_swarm_takes_anybody_and_no_token(start: Callable[[P], P], tmp_path: Path) -> None:
    founder = start(
        WorkerProcess(tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.1, rounds=2000), *UNMEASURED, "--public")
    )
    assert "#" not in founder.address
    joiner = start(WorkerProcess(tmp_path / "1", "--join", founder.address))
    wait_for(lambda: rounds_of(joiner), "a round")
    wrong = start(WorkerProcess(tmp_path / "2", "--join", f"{founder.address}#{new_access().invitation.token()}"))
    assert wrong.code() == ExitCode.NOT_ADMITTED
    assert "the swarm at the address is public" in wrong.stderr.lower()
    # What its configuration names is imported by nobody who has not named it.
    careful = start(Process(tmp_path / "3", "worker", "--host", "127.0.0.1", "--join", founder.address))
    assert careful.code() == ExitCode.CONFIG
    assert "tests.process.paced:build" in careful.stderr
    assert "--trust-config" in careful.stderr


@pytest.mark.timeout(300)
def test_a_local_run_shows_its_token_in_no_command_line(start: Callable[[P], P], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--tokens", "100000000", "--set", "task.factory=decentral.workers.toy:build", "--workers", "2")
    start(Process(tmp_path, "local", *words, "--out", str(out)))
    access = [out / "workers" / str(index) / ACCESS for index in range(2)]
    wait_for(lambda: all(path.exists() for path in access), "both in the swarm", SLOWLY_S)
    tokens = {path.read_text().split('"token":"')[1].partition('"')[0] for path in access}
    assert len(tokens) == 1
    lines = processes_of(out)
    assert len(lines) >= 2
    assert not [line for line in lines if next(iter(tokens)) in line]

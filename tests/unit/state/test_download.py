"""Downloads over the memory network, with donors that fail in every way that a donor can."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import torch

from decentral.outer.rule import OuterState
from decentral.sim.loop import run
from decentral.sim.world import SimPeer, World, peer_id
from decentral.state import download as module
from decentral.state.download import CHUNK, HEAD, Donor, Download, Downloader, NoDownload
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.timing import Timing
from decentral.types import PeerId
from tests.support.later import later

LAYOUT = "layout"
NUMELS = (700, 90)
TOTAL = 8 * sum(NUMELS)
CHUNK_BYTES = 1000
FIRST, SECOND, JOINER = (peer_id(number) for number in range(3))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK_BYTES)


def snapshot(seed: int = 0, step: int = 30) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    fragments = tuple(
        FragmentState.of(
            3 + number,
            torch.randn(numel, generator=generator),
            OuterState((torch.randn(numel, generator=generator),), 3 + number, (PeerId("somebody"),)),
        )
        for number, numel in enumerate(NUMELS)
    )
    return Snapshot(step, fragments)


class Nursery:
    """A joiner and peers that may become its donors."""

    def __init__(self) -> None:
        self.world = World(0)
        self.peers = {peer: self.world.add(peer) for peer in (FIRST, SECOND, JOINER)}
        self.seen: list[tuple[int, int]] = []

    async def donor(
        self, peer: SimPeer, state: Snapshot | None, *, layout: str = LAYOUT
    ) -> Callable[[Snapshot | None], None]:
        """Let a peer serve; returns a function that changes what it serves."""
        states = [state]
        await Donor(peer.transport, layout, later(lambda: states[-1])).start()
        return states.append

    async def fake(self, peer: SimPeer, change: Callable[[str, bytes, bytes], bytes], state: Snapshot) -> None:
        """A donor whose replies pass through ``change(method, request, reply)``."""
        handlers: dict[str, Any] = {}

        class Recorder:
            async def serve(self, method: str, handler: Any, **limits: int) -> None:
                handlers[method] = handler

        recorder: Any = Recorder()
        await Donor(recorder, LAYOUT, later(lambda: state)).start()
        for method, handler in handlers.items():

            async def answer(sender: Any, request: bytes, method: str = method, handler: Any = handler) -> bytes:
                return change(method, request, await handler(sender, request))

            await peer.transport.serve(method, answer, max_request_bytes=1000)

    async def fetch(self, *donors: Any) -> Download | NoDownload:
        downloader = Downloader(self.peers[JOINER].transport, LAYOUT, NUMELS, 1, Timing())
        return await downloader.fetch(donors, lambda *seen: self.seen.append(seen))


def play(scenario: Callable[[Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Nursery())

    run(main(), until_s=200.0)


def check_equal(download: Download | NoDownload, state: Snapshot) -> None:
    assert isinstance(download, Download), download
    assert download.received_bytes == TOTAL
    assert (download.snapshot.step, download.snapshot.rounds) == (state.step, state.rounds)
    assert download.snapshot.digests == state.digests
    for mine, theirs in zip(download.snapshot.fragments, state.fragments, strict=True):
        assert torch.equal(mine.anchor_N, theirs.anchor_N)
        assert torch.equal(mine.outer.buffers_N[0], theirs.outer.buffers_N[0])
        assert mine.outer.num_steps == theirs.outer.num_steps


def test_a_download_is_the_donors_state() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(nursery.peers[FIRST], snapshot())
        download = await nursery.fetch(FIRST)
        check_equal(download, snapshot())
        assert isinstance(download, Download)
        assert download.donor == FIRST
        # 2800 and 2800 bytes of the first fragment, 360 and 360 of the second: no chunk crosses an end.
        sizes = [1000, 1000, 800, 1000, 1000, 800, 360, 360]
        assert nursery.seen == [(sum(sizes[: i + 1]), TOTAL) for i in range(len(sizes))]

    play(scenario)


def test_another_donor_continues_where_the_first_was_lost() -> None:
    async def scenario(nursery: Nursery) -> None:
        num_chunks = 0

        def dies_after_three(method: str, request: bytes, reply: bytes) -> bytes:
            nonlocal num_chunks
            num_chunks += method == CHUNK
            if num_chunks == 4:
                nursery.world.network.crash(FIRST)
            return reply

        await nursery.fake(nursery.peers[FIRST], dies_after_three, snapshot())
        await nursery.donor(nursery.peers[SECOND], snapshot())
        download = await nursery.fetch(FIRST, SECOND)
        check_equal(download, snapshot())
        assert isinstance(download, Download)
        assert download.donor == SECOND
        assert num_chunks == 4, "the fault fired"
        received = [size for size, _ in nursery.seen]
        assert received == sorted(set(received)), "no byte was fetched twice"
        assert received[3] == 3800

    play(scenario)


def test_bytes_of_another_state_are_not_continued() -> None:
    async def scenario(nursery: Nursery) -> None:
        def dies_soon(method: str, request: bytes, reply: bytes) -> bytes:
            if len(nursery.seen) == 2:
                raise ValueError("out of memory")
            return reply

        await nursery.fake(nursery.peers[FIRST], dies_soon, snapshot(seed=1))
        await nursery.donor(nursery.peers[SECOND], snapshot(seed=2))
        check_equal(await nursery.fetch(FIRST, SECOND), snapshot(seed=2))
        assert [size for size, _ in nursery.seen][:3] == [1000, 2000, 1000]

    play(scenario)


def test_a_donor_keeps_what_is_fetched_while_it_trains_on() -> None:
    async def scenario(nursery: Nursery) -> None:
        states = [snapshot(seed=number) for number in range(4)]
        served = [0]
        transport = nursery.peers[FIRST].transport
        await Donor(transport, LAYOUT, later(lambda: states[served[0]])).start()
        downloader = Downloader(nursery.peers[JOINER].transport, LAYOUT, NUMELS, 1, Timing())

        def train_on(received: int, total: int) -> None:
            served[0] = min(3, served[0] + 1)

        check_equal(await downloader.fetch([FIRST], train_on), states[0])
        assert served == [3]

    play(scenario)


def test_a_snapshot_that_nobody_fetched_for_long_is_gone() -> None:
    async def scenario(nursery: Nursery) -> None:
        serve = await nursery.donor(nursery.peers[FIRST], snapshot(seed=0))
        joiner = nursery.peers[JOINER].transport

        async def ask(method: str, *request: Any) -> bytes:
            packed = bytes(msgpack.packb(request)) if request else b""
            return await joiner.call(FIRST, method, packed, timeout_s=9.0, max_reply_bytes=9000)

        await ask(HEAD)
        first = snapshot(seed=0).name
        assert len(await ask(CHUNK, first, 0, 0, 0)) == CHUNK_BYTES
        for seed in (1, 2):
            serve(snapshot(seed=seed))
            await ask(HEAD)
            await ask(CHUNK, first, 0, 0, 0)
        serve(snapshot(seed=3))
        await ask(HEAD)
        assert len(await ask(CHUNK, first, 0, 0, 0)) == CHUNK_BYTES, "what is in use is kept"
        for seed in (4, 5, 6):
            serve(snapshot(seed=seed))
            await ask(HEAD)
        with pytest.raises(Exception, match="this snapshot is gone"):
            await ask(CHUNK, first, 0, 0, 0)

    play(scenario)


@pytest.mark.parametrize("request_", [["no", 0, 0, 0], [None, 0, 0, -1], [[], 0, 0, 0], 5, [0, 0, 0]])
def test_a_donor_refuses_what_it_cannot_give(request_: Any) -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(nursery.peers[FIRST], snapshot())
        joiner = nursery.peers[JOINER].transport
        await joiner.call(FIRST, HEAD, b"", timeout_s=9.0, max_reply_bytes=9000)
        name = snapshot().name
        with pytest.raises(Exception, match="Error"):
            await joiner.call(FIRST, CHUNK, bytes(msgpack.packb(request_)), timeout_s=9.0, max_reply_bytes=9000)
        for fragment, part, offset in ((2, 0, 0), (0, 2, 0), (0, 0, -1), (0, 0, "0"), ("0", 0, 0)):
            packed = bytes(msgpack.packb([name, fragment, part, offset]))
            with pytest.raises(Exception, match="Error"):
                await joiner.call(FIRST, CHUNK, packed, timeout_s=9.0, max_reply_bytes=9000)

    play(scenario)


def head_with(**changes: Any) -> Callable[[str, bytes, bytes], bytes]:
    names = ["layout", "step", "rounds", "num_steps", "digests", "counted"]

    def change(method: str, request: bytes, reply: bytes) -> bytes:
        if method != HEAD:
            return reply
        values = dict(zip(names, msgpack.unpackb(reply), strict=True)) | changes
        return bytes(msgpack.packb(list(values.values())))

    return change


def spoilt(method: str, request: bytes, reply: bytes) -> bytes:
    return bytes([reply[0] ^ 1, *reply[1:]]) if method == CHUNK else reply


BAD_DONORS: dict[str, tuple[Callable[[str, bytes, bytes], bytes], str]] = {
    "another model": (head_with(layout="other"), "trains another model"),
    "fragments": (head_with(rounds=[1]), "wrong number of fragments"),
    "digests": (head_with(digests=["a", "b", "c"]), "wrong number of fragments"),
    "another name": (head_with(digests=["0" * 16, "1" * 16]), "this snapshot is gone"),
    "outer steps": (head_with(num_steps=[3, 5]), "does not have the promised digest"),
    "counted": (head_with(counted=[["x"], ["y"]]), "does not have the promised digest"),
    "counted fragments": (head_with(counted=[["x"]]), "wrong number of fragments"),
    "text for peers": (
        head_with(counted=["ab", "cd"]),
        "malformed head: Expected `array`, got `str`",
    ),
    "nested without end": (
        head_with(layout=functools.reduce(lambda inner, _: [inner], range(900), 0)),
        "malformed head",
    ),
    "no peers": (head_with(counted=[1, 2]), "malformed head"),
    "negative round": (head_with(rounds=[-1, 3]), "malformed head"),
    "step": (head_with(step="30"), "malformed head"),
    "no list": (head_with(rounds=5), "malformed head"),
    "no head": (lambda method, request, reply: b"\xc1", "malformed head"),
    "short chunk": (lambda method, request, reply: reply[:-1] if method == CHUNK else reply, "999 bytes, expected"),
    "empty chunk": (lambda method, request, reply: b"" if method == CHUNK else reply, "0 bytes, expected 1000"),
    "long chunk": (lambda method, request, reply: reply + b"x" if method == CHUNK else reply, "1001 bytes"),
    "spoilt chunk": (spoilt, "does not have the promised digest"),
}


@pytest.mark.parametrize("fault", BAD_DONORS)
def test_a_bad_donor_is_found_out_and_the_next_one_asked(fault: str) -> None:
    change, match = BAD_DONORS[fault]

    async def scenario(nursery: Nursery) -> None:
        await nursery.fake(nursery.peers[FIRST], change, snapshot())
        refusal = await nursery.fetch(FIRST)
        assert isinstance(refusal, NoDownload)
        assert match in refusal.why
        await nursery.donor(nursery.peers[SECOND], snapshot())
        check_equal(await nursery.fetch(FIRST, SECOND), snapshot())

    play(scenario)


@pytest.mark.parametrize("where", ["anchor", "momentum"])
def test_values_that_are_not_finite_are_not_taken_even_with_the_right_digest(where: str) -> None:
    async def scenario(nursery: Nursery) -> None:
        good = snapshot()
        first = good.fragments[0]
        bad_N = first.anchor_N.clone()
        bad_N[5] = float("nan")
        outer = replace(first.outer, buffers_N=(bad_N,)) if where == "momentum" else first.outer
        bad = FragmentState.of(first.round, bad_N if where == "anchor" else first.anchor_N, outer)
        await nursery.donor(nursery.peers[FIRST], Snapshot(30, (bad, good.fragments[1])))
        refusal = await nursery.fetch(FIRST)
        assert isinstance(refusal, NoDownload)
        assert "not finite" in refusal.why

    play(scenario)


def test_nobody_can_give() -> None:
    async def scenario(nursery: Nursery) -> None:
        assert await nursery.fetch() == NoDownload("there is no donor")
        await nursery.donor(nursery.peers[FIRST], None)
        refusal = await nursery.fetch(FIRST, SECOND, peer_id(77))
        assert isinstance(refusal, NoDownload)
        assert "no state to give yet" in refusal.why
        assert "nobody there" in refusal.why
        assert refusal.why.count(";") == 2

    play(scenario)

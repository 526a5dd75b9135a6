"""What a courier puts on the wire: bytes held to arithmetic, and how much is under way to a peer at once."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack
import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.pipeline import courier as module
from decentral.pipeline.courier import BACKWARD, FORWARD, Courier
from decentral.pipeline.packets import MAX_HEADER_BYTES, Hop, Load, Packet
from decentral.pipeline.pieces import HEADER_BYTES
from decentral.pipeline.placement import CutInForce
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.world import World, peer_id
from decentral.swarm.timing import Timing
from decentral.types import PeerId

SHAPE = (2, 16, 64)
NUMEL = math.prod(SHAPE)
HEAD, STAGE, OTHER = peer_id(0), peer_id(1), peer_id(2)
#: Magic, version, name of the codec, number of values, checksum: docs/wire-format.md.
FRAME_HEADER = 4 + 2 + 22 + 8 + 4
PAYLOAD = {
    "fp32": 4 * NUMEL,
    "bf16": 2 * NUMEL,
    "int8-b128": NUMEL + 2 * (NUMEL // 128),
    "int8-b64": NUMEL + 2 * (NUMEL // 64),
}

Couriers = Callable[[PeerId], Courier]


def check(codec: str, scenario: Callable[[Couriers], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=1.0))

        def courier(peer: PeerId) -> Courier:
            ports = world.add(peer)
            return Courier(ports.transport, ports.clock, make_codec(codec), SHAPE, CutInForce(((0, 1),)), Timing())

        await scenario(courier)

    run(main(), until_s=1000.0)


def packet(index: int = 0, *, hop: int = 0, num_loads: int = 0) -> Packet:
    loads = tuple(Load(1, STAGE, 3, 0.25) for _ in range(num_loads))
    return Packet(0, 7, index, 1, (Hop(0, HEAD), Hop(1, STAGE), Hop(0, HEAD)), hop, True, loads, b"")


def header_bytes(sent: Packet, hop: int) -> int:
    """Of a packet as it is at its next hop, in one piece; a frame of some kilobytes takes three to tell its length."""
    path = [(place.stage, place.peer) for place in sent.path]
    loads = [(load.stage, load.peer, load.queued, load.seconds) for load in sent.loads]
    key = (sent.slot, sent.batch, sent.index, sent.attempt)
    return len(msgpack.packb([*key, path, hop, sent.train, loads, None, b""])) - 1 + 3 + HEADER_BYTES


@pytest.mark.parametrize("codec", PAYLOAD)
def test_bytes_are_those_of_the_frames_and_their_headers(codec: str) -> None:
    async def scenario(courier: Couriers) -> None:
        head, stage = courier(HEAD), courier(STAGE)
        came: list[torch.Tensor] = []

        async def take(sender: PeerId, request: bytes) -> bytes:
            _, values = await stage.read(sender, request, 1, backward=False)
            came.append(values)
            return b""

        async def answered(sender: PeerId, request: bytes) -> bytes:
            return b""

        await stage.serve(1, FORWARD, take)
        await head.serve(0, BACKWARD, answered)
        there, back = packet(), packet(hop=1, num_loads=1)
        values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            assert await head.send(there, values, backward=False) is None
        assert await stage.send(back, values, backward=True) is None
        frame = FRAME_HEADER + PAYLOAD[codec]
        assert head.sent_bytes == 3 * (frame + header_bytes(there, 1))
        assert stage.sent_bytes == frame + header_bytes(back, 0)
        assert header_bytes(back, 0) < MAX_HEADER_BYTES
        assert [value.shape for value in came] == [SHAPE] * 3
        assert (came[0] - values).abs().max() <= {"fp32": 0.0, "bf16": 2**-8 * 4}.get(codec, 4 / 127)

    check(codec, scenario)


def test_what_a_peer_sends_itself_is_no_traffic() -> None:
    async def scenario(courier: Couriers) -> None:
        head = courier(HEAD)

        async def answered(sender: PeerId, request: bytes) -> bytes:
            return b""

        await head.serve(1, FORWARD, answered)
        alone = Packet(0, 0, 0, 1, (Hop(0, HEAD), Hop(1, HEAD), Hop(0, HEAD)), 0, True, (), b"")
        assert await head.send(alone, torch.zeros(SHAPE), backward=False) is None
        assert head.sent_bytes == 0

    check("bf16", scenario)


def test_only_so_much_is_under_way_to_a_peer_and_gradients_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNDER_WAY_BYTES", 3 * (FRAME_HEADER + PAYLOAD["bf16"]))

    async def scenario(courier: Couriers) -> None:
        stage, couriers = courier(STAGE), {HEAD: courier(HEAD), OTHER: courier(OTHER)}
        came: list[tuple[PeerId, int, bool]] = []
        go_on = asyncio.Event()

        def taking(me: PeerId, *, backward: bool) -> Callable[[PeerId, bytes], Coroutine[Any, Any, bytes]]:
            async def take(sender: PeerId, request: bytes) -> bytes:
                there, _ = await couriers[me].read(sender, request, 0, backward=backward)
                came.append((me, there.index, backward))
                await go_on.wait()
                return b""

            return take

        for peer, to in couriers.items():
            await to.serve(0, FORWARD, taking(peer, backward=False))
            await to.serve(0, BACKWARD, taking(peer, backward=True))

        async def send(peer: PeerId, index: int, *, backward: bool) -> None:
            path = (Hop(0, peer), Hop(1, STAGE), Hop(0, peer))
            what = Packet(0, 0, index, 1, path, 1, True, (), b"")
            assert await stage.send(what, torch.zeros(SHAPE), backward=backward) is None

        async with asyncio.TaskGroup() as group:
            for index in range(5):
                group.create_task(send(HEAD, index, backward=False))
            group.create_task(send(HEAD, 5, backward=True))
            group.create_task(send(OTHER, 6, backward=False))
            await asyncio.sleep(3)
            assert sorted(came) == [(HEAD, 0, False), (HEAD, 1, False), (HEAD, 2, False), (OTHER, 6, False)]
            go_on.set()
        assert sorted(came[4:]) == [(HEAD, 3, False), (HEAD, 4, False), (HEAD, 5, True)]
        assert (HEAD, 5, True) in came[4:6]

    check("bf16", scenario)

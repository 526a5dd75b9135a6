"""The contract of ports.identity.Identity, on memory and on hivemind."""

from decentral.types import PeerId
from tests.support.harness import Harness, World


def test_a_signature_is_good_for_its_signer_and_its_data_only(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b = (await world.peer("a")).identity, (await world.peer("b")).identity
        signature = a.sign(b"record")
        assert b.verify(a.peer_id, b"record", signature)
        assert a.verify(a.peer_id, b"record", signature)
        assert not b.verify(a.peer_id, b"Record", signature)
        assert not b.verify(a.peer_id, b"", signature)
        assert not b.verify(b.peer_id, b"record", signature)
        assert not b.verify(a.peer_id, b"record", b.sign(b"record"))

    harness.run(scenario)


def test_garbage_is_no_signature(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a = (await world.peer("a")).identity
        good = a.sign(b"record")
        noise = [b"", b"\x00", b"\xff" * len(good), bytes(100_000), good[:-1], good[1:], good + b"\x00"]
        spoilt = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(0, len(good), max(1, len(good) // 40))]
        for garbage in noise + spoilt:
            assert not a.verify(a.peer_id, b"record", garbage)
        assert not a.verify(PeerId(""), b"record", good)
        assert not a.verify(PeerId("not base58: 0OIl"), b"record", good)

    harness.run(scenario)

"""The contract of ports.directory.Directory, on memory and on hivemind."""

import asyncio

from tests.support.harness import Harness, World


def test_records_are_found_by_everybody_until_they_expire(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a, b, c = [await world.peer(name) for name in "abc"]
        assert await c.directory.lookup("run/1") == {}
        assert await a.directory.publish("run/1", "a", b"first", ttl_s=60)
        assert await b.directory.publish("run/1", "b", b"\x00\xff" * 1000, ttl_s=60)
        assert await a.directory.publish("run/2", "a", b"elsewhere", ttl_s=60)
        for peer in (a, b, c):
            assert await peer.directory.lookup("run/1") == {"a": b"first", "b": b"\x00\xff" * 1000}
        assert await a.directory.publish("run/1", "a", b"second", ttl_s=61)
        assert (await c.directory.lookup("run/1"))["a"] == b"second"

        assert await a.directory.publish("run/3", "brief", b"soon gone", ttl_s=1.5)
        assert await a.directory.publish("run/3", "long", b"here to stay", ttl_s=60)
        found = await c.directory.lookup("run/3")
        assert found in (
            {"long": b"here to stay"},
            {"brief": b"soon gone", "long": b"here to stay"},
        )  # on a busy machine
        await asyncio.sleep(1.6)  # Expiry is a matter of the clock, real or virtual.
        records = await c.directory.lookup("run/3")
        assert records == {"long": b"here to stay"}

    harness.run(scenario)


def test_a_directory_without_others_works_and_a_closed_one_only_says_no(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        a = await world.peer("a")
        assert await a.directory.publish("run/1", "a", b"x", ttl_s=60)
        assert await a.directory.lookup("run/1") == {"a": b"x"}
        await a.directory.close()
        await a.directory.close()
        assert await a.directory.publish("run/1", "a", b"y", ttl_s=60) is False
        assert await a.directory.lookup("run/1") == {}

    harness.run(scenario)

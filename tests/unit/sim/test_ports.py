"""Directory, clock, identity and trainer of the simulator."""

import asyncio
import math

import numpy as np
import pytest
import torch

from decentral.sim.clock import SimClock
from decentral.sim.faults import Kind
from decentral.sim.identity import SimIdentity
from decentral.sim.loop import run, virtual_loop
from decentral.sim.network import Conditions
from decentral.sim.trainer import ToyProblem, ToyTrainer
from decentral.sim.world import World, peer_id

A, B, C = peer_id(0), peer_id(1), peer_id(2)


def test_a_record_expires_on_virtual_time() -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=0.0))
        a, b = world.add(A).directory, world.add(B).directory
        assert await a.publish("run", "a", b"first", ttl_s=10.0)
        assert await a.publish("run", "a", b"second", ttl_s=20.0)
        assert await b.publish("run", "b", b"other", ttl_s=5.0)
        assert await b.lookup("run") == {"a": b"second", "b": b"other"}
        await asyncio.sleep(5.0)
        assert await b.lookup("run") == {"a": b"second"}
        await asyncio.sleep(15.0)
        assert await b.lookup("run") == {}

    run(main(), until_s=100.0)


def test_records_are_read_in_the_order_in_which_their_peers_first_came() -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=0.0))
        a, b = world.add(A).directory, world.add(B).directory
        await a.publish("run", "a", b"first", ttl_s=5.0)
        await b.publish("run", "b", b"other", ttl_s=100.0)
        found = await b.lookup("run")
        found.clear()  # what somebody does to its answer is not seen by others
        assert [*await a.lookup("run")] == ["a", "b"]
        await asyncio.sleep(6.0)
        assert [*await b.lookup("run")] == ["b"]
        await a.publish("run", "a", b"again", ttl_s=5.0)
        assert [*(await b.lookup("run")).items()] == [("a", b"again"), ("b", b"other")]

    run(main(), until_s=100.0)


def test_a_record_replaces_the_one_before_it_even_if_it_expires_earlier() -> None:
    async def main() -> None:
        world = World(0)
        a, b = world.add(A).directory, world.add(B).directory
        await a.publish("run", "a", b"long", ttl_s=100.0)
        await a.publish("run", "a", b"short", ttl_s=1.0)
        await asyncio.sleep(2.0)
        assert await b.lookup("run") == {}

    run(main(), until_s=100.0)


def test_others_see_a_record_late_and_the_one_before_it_until_then() -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=0.0), stale_s=4.0)
        a, b = world.add(A).directory, world.add(B).directory
        await a.publish("run", "a", b"first", ttl_s=100.0)
        assert (await a.lookup("run"), await b.lookup("run")) == ({"a": b"first"}, {})
        await asyncio.sleep(4.0)
        await a.publish("run", "a", b"second", ttl_s=100.0)
        assert (await a.lookup("run"), await b.lookup("run")) == ({"a": b"second"}, {"a": b"first"})
        await asyncio.sleep(4.0)
        assert await b.lookup("run") == {"a": b"second"}

    run(main(), until_s=100.0)


def test_what_is_published_across_a_cut_is_seen_after_it_heals() -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=0.0))
        a, b, c = (world.add(one).directory for one in (A, B, C))
        await a.publish("run", "a", b"before", ttl_s=100.0)
        world.network.partition([A, B])
        await a.publish("run", "a", b"after", ttl_s=100.0)
        assert (await b.lookup("run"), await c.lookup("run")) == ({"a": b"after"}, {"a": b"before"})
        assert world.network.felt[Kind.CUT] > 0
        world.network.heal()
        assert await c.lookup("run") == {"a": b"after"}

    run(main(), until_s=100.0)


def test_lost_publications_say_so_and_the_record_of_the_dead_lives_until_it_expires() -> None:
    async def main() -> None:
        world = World(0, Conditions(latency_s=0.0, loss=1.0))
        a, b = world.add(A).directory, world.add(B).directory
        assert not await a.publish("run", "a", b"lost", ttl_s=10.0)
        world.network.conditions = Conditions(latency_s=0.05)
        assert await a.publish("run", "a", b"here", ttl_s=10.0)
        assert virtual_loop().time() == pytest.approx(0.1)
        world.crash(A)
        assert await b.lookup("run") == {"a": b"here"}
        assert not await a.publish("run", "a", b"ghost", ttl_s=10.0)
        await b.close()
        assert await b.lookup("run") == {}

    run(main(), until_s=100.0)


def test_work_takes_the_time_that_it_charges_one_piece_after_the_other() -> None:
    async def main() -> None:
        clock = SimClock(skew_s=-300.0)
        ends: list[tuple[str, float]] = []

        async def work(name: str, seconds: float) -> None:
            def charge() -> str:
                clock.charge(seconds)
                return name

            ends.append((await clock.run(charge), clock.monotonic()))

        before_s = clock.wall()
        await asyncio.gather(work("long", 3.0), work("free", 0.0), work("short", 1.0))
        assert ends == [("long", 3.0), ("free", 3.0), ("short", 4.0)]
        assert clock.wall() - before_s == pytest.approx(4.0)
        assert SimClock().wall() - clock.wall() == pytest.approx(300.0)

    run(main(), until_s=100.0)


def test_work_that_raises_has_taken_its_time() -> None:
    async def main() -> None:
        clock = SimClock()

        def fail() -> None:
            clock.charge(2.0)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await clock.run(fail)
        assert clock.monotonic() == 2.0

    run(main(), until_s=100.0)


def test_a_signature_binds_peer_and_data() -> None:
    mine = SimIdentity(A)
    signature = mine.sign(b"data")
    assert SimIdentity(B).verify(A, b"data", signature)
    assert not mine.verify(B, b"data", signature)
    assert not mine.verify(A, b"Data", signature)
    assert not mine.verify(A, b"data", signature[:-1])
    assert not mine.verify(A, b"data", b"")


def steps(trainer: ToyTrainer, count: int) -> torch.Tensor:
    trainer.train_steps(0, count)
    return torch.cat([tensor.flatten() for tensor in trainer.parameters().values()])


def test_a_worker_alone_finds_its_own_optimum_and_the_mean_of_all_is_the_goal() -> None:
    problem = ToyProblem(seed=1, num_workers=5)
    ends = [steps(problem.trainer(worker), 300) for worker in range(5)]
    goal = torch.from_numpy(problem.goal)
    torch.testing.assert_close(torch.stack(ends).mean(dim=0), goal, atol=1e-5, rtol=0)
    assert all((end - goal).abs().max() > 0.1 for end in ends)


def test_a_step_is_gradient_descent_and_its_report_is_of_before_the_step() -> None:
    charged: list[float] = []
    problem = ToyProblem(seed=2, num_workers=1, num_values=7, inner_lr=0.25)
    trainer = problem.trainer(0, charged.append, step_s=0.5)
    report = trainer.train_steps(0, 2)
    goal = problem.goal
    expected = [np.mean(goal**2) / 2, np.mean((0.75 * goal) ** 2) / 2]
    assert report.loss == pytest.approx(np.mean(expected))
    assert report.tokens == 64
    assert trainer.validate() == pytest.approx(float(np.mean((0.75**2 * goal) ** 2)) / 2)
    assert charged == [1.0]
    assert [tensor.numel() for tensor in trainer.parameters().values()] == [3, 2, 2]


def test_loading_a_subset_keeps_the_rest() -> None:
    trainer = ToyProblem(seed=3, num_workers=1).trainer(0)
    trainer.load({"layers.1": torch.full((8,), 2.0)})
    assert [float(tensor.sum()) for tensor in trainer.parameters().values()] == [0.0, 16.0, 0.0]


def test_values_become_nan_at_the_step_asked_for() -> None:
    trainer = ToyProblem(seed=6, num_workers=1).trainer(0, nan_at_step=15)
    assert math.isfinite(trainer.train_steps(10, 5).loss)
    assert math.isnan(trainer.train_steps(15, 5).loss)
    assert not torch.isfinite(trainer.parameters()["layers.0"]).any()

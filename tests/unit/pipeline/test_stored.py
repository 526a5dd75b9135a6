"""The step from which a pipeline goes on: by hand, and what holds of drawn inventories."""

import random
from collections.abc import Sequence

from decentral.pipeline.stored import Inventory, Lacking, Start, Stored, start_of
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def full(stage: int, step: int, digest: str = "d") -> Stored:
    return Stored(stage, step, digest, True)


def copy(stage: int, step: int) -> Stored:
    return Stored(stage, step, "copy", False)


def test_the_newest_step_that_all_stages_have() -> None:
    start = start_of({A: [full(0, 96), full(0, 64)], B: [full(1, 64), full(1, 32)]}, 1)
    assert start == Start(64, {A: frozenset({0}), B: frozenset({1})})


def test_weights_alone_will_do_and_nobody_is_to_take_them_at_once() -> None:
    start = start_of({A: [full(0, 64)], C: [copy(1, 64), copy(0, 64)]}, 1)
    assert start == Start(64, {A: frozenset({0}), C: frozenset()})


def test_of_two_states_of_a_stage_that_of_most_members() -> None:
    stored = {A: [full(0, 8), full(1, 8, "x")], B: [full(1, 8, "y")], C: [full(1, 8, "y")]}
    assert start_of(stored, 1) == Start(8, {A: frozenset({0}), B: frozenset({1}), C: frozenset({1})})


def test_what_is_missing_is_named() -> None:
    lacking = start_of({A: [full(0, 64)], B: [full(2, 64), full(2, 96)]}, 2)
    assert isinstance(lacking, Lacking)
    assert str(lacking) == "nobody here has a checkpoint of stage 1 at step 64"
    assert str(start_of({A: []}, 1)) == "nobody here has a checkpoint of the head, stage 1"


def test_whoever_goes_on_already_decides() -> None:
    stored = {A: [full(0, 96), full(0, 64)], B: [full(1, 96), full(1, 64)]}
    assert start_of(stored, 1, origin=64) == Start(64, {A: frozenset({0}), B: frozenset({1})})
    assert start_of({B: stored[B]}, 1, origin=64) == Start(64, {B: frozenset({1})})


def drawn(draw: random.Random) -> tuple[dict[PeerId, Sequence[Stored]], int]:
    num_stages = draw.randint(1, 4)
    peers = [PeerId(f"p{number}") for number in range(draw.randint(1, 8))]
    return {
        peer: [
            Stored(draw.randint(0, num_stages), 16 * draw.randint(1, 4), draw.choice("xy"), draw.random() < 0.7)
            for _ in range(draw.randint(0, 6))
        ]
        for peer in peers
    }, num_stages


def test_what_holds_of_all_inventories() -> None:
    seen = set()
    for seed in range(500):
        inventories, num_stages = drawn(random.Random(seed))
        found = start_of(inventories, num_stages)
        at = {
            step: {one.stage for stored in inventories.values() for one in stored if one.step == step}
            for step in range(0, 80, 16)
        }
        whole = [step for step, stages in at.items() if len(stages) == num_stages + 1]
        seen.add(type(found))
        if isinstance(found, Lacking):
            assert not whole, f"seed {seed}"
            assert found.stages == set(range(num_stages + 1)) - at[found.step], f"seed {seed}"
            continue
        assert found.step == max(whole), f"seed {seed}"
        digests: dict[int, set[str]] = {}
        for peer, stages in found.full.items():
            for stage in stages:
                mine = {o.digest for o in inventories[peer] if o.full and (o.stage, o.step) == (stage, found.step)}
                assert mine, f"seed {seed}"
                digests.setdefault(stage, mine).intersection_update(mine)
        assert all(digests.values()), f"seed {seed}: different states of a stage"
        shuffled = dict(sorted(inventories.items(), reverse=True))
        assert start_of(shuffled, num_stages) == found, f"seed {seed}: depends on the order"
    assert seen == {Start, Lacking}


def test_an_inventory_of_the_longest_pipeline_fits_into_its_message() -> None:
    stored = tuple(Stored(stage, 10**9 + n, "0" * 64, True) for stage in range(257) for n in range(4))
    inventory = Inventory(True, 7, stored)
    assert from_wire(Inventory, to_wire(inventory)) == inventory

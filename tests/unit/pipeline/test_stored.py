"""The step from which a pipeline goes on, and who takes what: by hand, and what holds of drawn inventories."""

import random
from collections.abc import Sequence

from decentral.pipeline.stored import (
    HEAD,
    Inventory,
    Lacking,
    Part,
    Span,
    Start,
    Stored,
    newest_of,
    parts_of,
    span_of,
    start_of,
)
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId

A, B, C, D, E = map(PeerId, "abcde")


def spans(*bounds: int) -> list[Span]:
    """A head, and stages that end at these blocks."""
    return [HEAD, *zip((0, *bounds[:-1]), bounds, strict=True)]


#: A head and two stages of a block each.
TWO = spans(1, 2)


def mine(stage: int, step: int, digest: str = "d", cut: Sequence[Span] = TWO) -> Stored:
    return Stored(*cut[stage], step, digest, True)


def copy(stage: int, step: int) -> Stored:
    return Stored(*TWO[stage], step, "copy", False)


def test_blocks_are_known_by_the_names_of_parameters() -> None:
    assert span_of(["blocks.3.up", "blocks.4.up", "blocks.4.down"]) == (3, 5)
    assert span_of(["embedding.weight", "final.blocks.7.norm"]) == HEAD


def test_the_newest_step_that_all_stages_have() -> None:
    start = start_of({A: [mine(0, 96), mine(0, 64)], B: [mine(1, 64), mine(1, 32)]}, TWO[:2])
    assert start == Start(64, {A: frozenset({0}), B: frozenset({1})})


def test_what_is_kept_for_others_will_do_and_nobody_is_to_take_it_at_once() -> None:
    start = start_of({A: [mine(0, 64)], C: [copy(1, 64), copy(0, 64)]}, TWO[:2])
    assert start == Start(64, {A: frozenset({0}), C: frozenset()})


def test_of_two_states_of_a_stage_that_of_most_members() -> None:
    stored = {A: [mine(0, 8), mine(1, 8, "x")], B: [mine(1, 8, "y")], C: [mine(1, 8, "y")]}
    assert start_of(stored, TWO[:2]) == Start(8, {A: frozenset({0}), B: frozenset({1}), C: frozenset({1})})


def test_what_is_missing_is_named() -> None:
    stored = {A: [mine(0, 64)], B: [mine(2, 64), mine(2, 96)]}
    assert str(start_of(stored, TWO)) == "nobody here has a checkpoint of stage 1 at step 64"
    assert str(start_of({A: []}, TWO[:2])) == "nobody here has a checkpoint of the head, stage 1"
    assert str(start_of(stored, spans(2))) == "nobody here has a checkpoint of block 0 at step 64"
    assert str(start_of({B: stored[B]}, spans(2))) == "nobody here has a checkpoint of the head, block 0 at step 96"


def test_whoever_goes_on_already_decides() -> None:
    stored = {A: [mine(0, 96), mine(0, 64)], B: [mine(1, 96), mine(1, 64)]}
    assert start_of(stored, TWO[:2], origin=64) == Start(64, {A: frozenset({0}), B: frozenset({1})})
    assert start_of({B: stored[B]}, TWO[:2], origin=64) == Start(64, {B: frozenset({1})})


FOUR = spans(3, 6, 9, 12)
#: A head and four stages, each on a machine.
MACHINES = {peer: [mine(stage, 32, cut=FOUR), mine(stage, 64, cut=FOUR)] for stage, peer in enumerate((A, B, C, D, E))}


def taken(start: Start | Lacking) -> dict[str, list[int]]:
    assert isinstance(start, Start)
    return {str(peer): sorted(stages) for peer, stages in start.takes.items() if stages}


def test_fewer_stages_go_to_those_who_have_most_of_them_and_the_others_wait() -> None:
    start = start_of(MACHINES, spans(6, 12), num_replicas=1)
    assert taken(start) == {"a": [0], "b": [1], "d": [2]}
    assert isinstance(start, Start)
    assert (start.step, start.cuts, start.reserve) == (64, {1, 2}, {})
    assert taken(start_of(MACHINES, spans(6, 12))) == {"a": [0], "b": [1], "c": [1], "d": [2], "e": [2]}


def test_more_stages_than_machines_wait_for_others_and_go_to_those_who_have_them_if_none_come() -> None:
    start = start_of(MACHINES, spans(2, 4, 6, 8, 10, 12), num_replicas=1)
    assert taken(start) == {"a": [0], "b": [1], "c": [3], "d": [4], "e": [6]}
    assert isinstance(start, Start)
    assert start.reserve == {2: B, 5: D}


def test_a_machine_takes_as_many_as_it_had_and_one_that_is_alone_all() -> None:
    alone = {A: [one for stored in MACHINES.values() for one in stored]}
    for bounds in ((12,), (5, 12), (2, 4, 6, 8, 10, 12)):
        assert taken(start_of(alone, spans(*bounds), num_replicas=1)) == {"a": list(range(len(bounds) + 1))}
    with_another = start_of({**alone, B: []}, spans(2, 4, 6, 8, 10, 12), num_replicas=1)
    assert taken(with_another) == {"a": [0, 1, 2, 3, 4]}
    assert isinstance(with_another, Start)
    assert with_another.reserve == {5: A, 6: A}


def test_a_stage_is_made_of_the_fewest_parts() -> None:
    assert [part.stored.span for part in parts_of(MACHINES, (4, 7), 64)] == [(3, 6), (6, 9)]
    assert parts_of(MACHINES, (3, 6), 64) == (Part(mine(2, 64, cut=FOUR), (C,)),)
    assert parts_of(MACHINES, (4, 7), 65) == ()
    whole = Stored(0, 12, 64, "copy", False)
    assert parts_of({**MACHINES, A: [whole, *MACHINES[A]]}, (0, 12), 64) == (Part(whole, (A,)),)


def test_a_lost_stage_comes_from_the_newest_that_is_not_ahead_of_the_run() -> None:
    stored = {A: [mine(1, 96), mine(1, 64)], C: [copy(1, 80), copy(1, 64)]}
    assert newest_of(stored, TWO[1], 90) == (Part(copy(1, 80), (C,)),)
    assert newest_of(stored, TWO[1], 70) == (Part(mine(1, 64), (A,)),), "its holder's own before a copy"
    assert newest_of(stored, TWO[1], 50) == (Part(mine(1, 96), (A,)),), "there is none but of what was given up"
    assert newest_of(stored, TWO[2], 90) == ()


def drawn(draw: random.Random) -> tuple[dict[PeerId, Sequence[Stored]], list[Span]]:
    num_blocks = draw.randint(1, 4)

    def cut() -> list[Span]:
        return spans(*sorted(draw.sample(range(1, num_blocks), draw.randint(0, num_blocks - 1))), num_blocks)

    peers = [PeerId(f"p{number}") for number in range(draw.randint(1, 8))]
    cuts = [cut(), cut()]
    return {
        peer: [
            Stored(*draw.choice(draw.choice(cuts)), 16 * draw.randint(1, 4), draw.choice("xy"), draw.random() < 0.7)
            for _ in range(draw.randint(0, 6))
        ]
        for peer in peers
    }, draw.choice([*cuts, cut()])


def test_what_holds_of_all_inventories() -> None:
    seen = set()
    for seed in range(500):
        inventories, cut = drawn(random.Random(seed))
        found = start_of(inventories, cut, num_replicas=seed % 3)
        made = {step: [parts_of(inventories, span, step) for span in cut] for step in range(16, 80, 16)}
        whole = [step for step, parts in made.items() if all(parts)]
        seen.add(type(found))
        if isinstance(found, Lacking):
            assert not whole, f"seed {seed}"
            assert found.stages == {s for s, parts in enumerate(made.get(found.step, [()] * len(cut))) if not parts}
            continue
        assert found.step == max(whole), f"seed {seed}"
        for stage, (span, parts) in enumerate(zip(cut, made[found.step], strict=True)):
            blocks = [block for part in parts for block in range(*part.stored.span)]
            assert len(blocks) == len(set(blocks)), f"seed {seed}: a block twice"
            assert set(blocks) >= set(range(*span)), f"seed {seed}"
            assert all(part.stored in inventories[peer] for part in parts for peer in part.peers), f"seed {seed}"
            takers = {peer for peer, stages in found.takes.items() if stage in stages}
            if [part.stored.span for part in parts] == [span]:
                assert takers == (set(parts[0].peers) if parts[0].stored.own else set()), f"seed {seed}"
            else:
                assert (stage in found.cuts, stage in found.reserve) == (True, not takers), f"seed {seed}"
        shuffled = dict(sorted(inventories.items(), reverse=True))
        assert start_of(shuffled, cut, num_replicas=seed % 3) == found, f"seed {seed}: depends on the order"
    assert seen == {Start, Lacking}


def test_an_inventory_of_the_longest_pipeline_fits_into_its_message() -> None:
    stored = tuple(Stored(10**4 + n, 10**5, 10**9 + n, "0" * 64, True) for n in range(4 * 257))
    inventory = Inventory(True, 7, stored)
    assert from_wire(Inventory, to_wire(inventory)) == inventory

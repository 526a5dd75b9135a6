"""Stages of a simulated pipeline that were lost: where they come back from, to the bit, and who takes them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from decentral.engine.takeover import Standing, Takeover
from decentral.monitor.events import BatchCounted, StageLost, StagePlaced
from decentral.pipeline.handover import LiveWeights
from decentral.sim.faults import Fault, Kind
from decentral.sim.loop import Overrun
from decentral.sim.world import peer_id
from decentral.state.snapshot import Snapshot
from tests.sim import pipelines
from tests.sim.pipelines import PipelineRecord

#: In the middle of a batch.
LOST_S = 4.2


def play(*faults: Fault, **changes: Any) -> PipelineRecord:
    """Its first machines hold head and stages in order."""
    return pipelines.play(*faults, **{"rounds": 5, "inner_steps": 2, "until_s": 600.0, **changes})[1]


def recovered(record: PipelineRecord) -> dict[int, str]:
    return {event.stage: str(event.source) for event in record.recovered()}


def placed(record: PipelineRecord) -> list[tuple[int, int]]:
    """Machine and stage, in order of machines."""
    return sorted((int(peer[-4:]), event.stage) for peer, event in record.events(StagePlaced))


class Spy:
    """Sees what a stage is brought back with, and what neighbours hand out for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.brought: dict[int, dict[str, torch.Tensor]] = {}
        self.handed_out: dict[str, torch.Tensor] = {}
        """By the first name in a stage."""
        self.norms: dict[int, float] = {}
        bring, copy, standing = Takeover.bring, LiveWeights._copy, Takeover.standing

        async def see_brought(takeover: Takeover, recovery: Any, compute: Any, *more: Any) -> Any:
            result = await bring(takeover, recovery, compute, *more)
            (stage,) = (k for k in range(5) if takeover._cut.span(k) == takeover._cut.span_of(compute.parameters()))
            self.brought[stage] = {name: value.clone() for name, value in compute.parameters().items()}
            return result

        async def see_copy(live: LiveWeights) -> Snapshot:
            snapshot = await copy(live)
            self.handed_out[next(iter(live._model.parameters()))] = snapshot.fragments[0].anchor_N.clone()
            return snapshot

        async def see_standing(takeover: Takeover, slot: int, origin: int) -> Standing:
            found = await standing(takeover, slot, origin)
            self.norms = {stage: norm for (stage, _), norm in found.norms.items()}
            return found

        monkeypatch.setattr(Takeover, "bring", see_brought)
        monkeypatch.setattr(LiveWeights, "_copy", see_copy)
        monkeypatch.setattr(Takeover, "standing", see_standing)


@pytest.mark.parametrize("norm", ["l2", pytest.param("squared", marks=pytest.mark.slow)])
def test_a_stage_in_the_middle_is_the_mean_of_its_neighbours(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    record = play(Fault(Kind.KILL, LOST_S, (2,)), pipeline={"norm": norm})
    assert recovered(record) == {2: "blend"}
    omega = {stage: spy.norms[stage] ** (2 if norm == "squared" else 1) + 1e-4 for stage in (1, 3)}
    below, above = (spy.handed_out[f"blocks.{number}.weight"].double().numpy() for number in (0, 2))
    expected = (omega[1] * below + omega[3] * above) / (omega[1] + omega[3])
    np.testing.assert_allclose(spy.brought[2]["blocks.1.weight"].numpy().ravel(), expected, rtol=0, atol=1e-7)
    assert 0 < spy.norms[1] <= 1.0
    assert not np.allclose(below, above)


@pytest.mark.parametrize(("lost", "twin"), [(1, 2), (4, 3)])
def test_first_and_last_stage_are_copies(lost: int, twin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    record = play(Fault(Kind.KILL, LOST_S, (lost,)))
    assert recovered(record) == {lost: "copy"}
    copy = spy.brought[lost][f"blocks.{lost - 1}.weight"]
    assert torch.equal(copy.flatten(), spy.handed_out[f"blocks.{twin - 1}.weight"])


@pytest.mark.parametrize(
    "keepers_lost", [(), pytest.param((1,), marks=pytest.mark.slow), pytest.param((4,), marks=pytest.mark.slow)]
)
def test_a_head_comes_back_to_the_bit(keepers_lost: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It has two keepers, one of which may be lost with it."""
    spy = Spy(monkeypatch)
    faults = [Fault(Kind.KILL, LOST_S, (0,)), *(Fault(Kind.KILL, LOST_S, (keeper,)) for keeper in keepers_lost)]
    record = play(*faults, num_spares=2)
    assert recovered(record)[0] == "kept"
    (dead,) = record.processes[peer_id(0)][0]._stage_workers.values()
    weights = dead.loop._compute.parameters()
    assert spy.brought[0].keys() == weights.keys() == {"scale", "shift"}
    assert all(torch.equal(spy.brought[0][name], weights[name]) for name in weights)
    assert not torch.equal(weights["shift"], torch.zeros_like(weights["shift"]))


def test_a_replica_alive_needs_no_recovery() -> None:
    record = play(Fault(Kind.KILL, 6.5, (2,)), num_replicas=2, num_spares=0)
    assert recovered(record) == {}
    assert record.events(StageLost) == []


@pytest.mark.slow
@pytest.mark.slow
def test_two_adjacent_stages_wait_and_one_comes_from_a_checkpoint() -> None:
    faults = [Fault(Kind.KILL, 9.0, (2,)), Fault(Kind.KILL, 9.05, (3,))]
    with pytest.raises(Overrun):
        play(*faults, num_spares=2, rounds=12, until_s=120.0)
    record = play(*faults, num_spares=2, rounds=20, checkpoint_s=2.0)
    assert recovered(record) == {2: "checkpoint", 3: "checkpoint"}


@pytest.mark.slow
@pytest.mark.slow
def test_everything_lost_comes_back_from_checkpoints() -> None:
    """What was learned and counted since is learned anew, from the first batch on: no head is left to know better."""
    faults = [Fault(Kind.KILL, 9.0, (stage,)) for stage in range(5)]
    record = play(*faults, counted_once=False, num_spares=5, rounds=20, checkpoint_s=2.0)
    assert recovered(record).keys() == {0, 1, 2, 3, 4}
    assert set(recovered(record).values()) <= {"checkpoint", "copy", "blend", "kept"}
    # Whoever came later was counted by the others once: the second run is a whole one.
    again = Counter(
        (event.slot, event.batch)
        for life in record.lives
        if life.over
        for event in life.events(BatchCounted)
        if event.stage == 3
    )
    assert set(again.values()) == {1}


@pytest.mark.slow
def test_without_healing_a_checkpoint_of_the_spare_serves() -> None:
    record = play(Fault(Kind.KILL, 9.0, (2,)), rounds=20, checkpoint_s=2.0, healing="checkpoint")
    assert recovered(record) == {2: "checkpoint"}


def test_without_a_spare_a_replica_of_another_stage_moves_and_no_head_if_that_can_be() -> None:
    record = play(Fault(Kind.KILL, 8.0, (2,)), Fault(Kind.KILL, 8.0, (7,)), rounds=8, num_spares=0, num_replicas=2)
    assert recovered(record) == {2: "blend"}
    (moved,) = [machine for machine, count in Counter(machine for machine, _ in placed(record)).items() if count > 1]
    assert moved not in (0, 5)


def test_of_two_spares_one_takes_the_stage() -> None:
    record = play(Fault(Kind.KILL, LOST_S, (2,)), num_spares=2)
    assert len(placed(record)) == 6
    assert recovered(record) == {2: "blend"}


def test_a_joiner_rescues_a_stage_that_nobody_could_take() -> None:
    record = play(Fault(Kind.KILL, LOST_S, (2,)), Fault(Kind.START, 12.0, (5,)), late=frozenset({5}), wanted={5: ()})
    assert recovered(record) == {2: "blend"}
    assert record.ended_at_s > 12.0


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_who_join_at_once_are_spread_evenly() -> None:
    record = play(num_replicas=3, num_spares=0, rounds=3, starts=dict.fromkeys(range(1, 15), 0.0))
    assert Counter(stage for _, stage in placed(record)) == dict.fromkeys(range(5), 3)
    assert {slot for slot, _, _ in record.counted(0)} == {0, 1, 2}


def test_heads_that_join_at_once_have_slots_of_their_own() -> None:
    record = play(num_stages=1, num_replicas=4, num_spares=0, rounds=6, starts=dict.fromkeys(range(8), 0.0))
    slots = [
        process.membership.own.slot
        for processes in record.processes.values()
        for process in processes
        if "0" in process.membership.own.holds
    ]
    assert sorted(slots) == [0, 1, 2, 3]


def test_more_joiners_than_are_wanted_wait_as_spares() -> None:
    record = play(num_spares=2, wanted={5: (), 6: ()})
    assert placed(record) == [(machine, machine) for machine in range(5)]
    assert record.outcomes[peer_id(5)] == record.outcomes[peer_id(6)] == {}


def test_whoever_insists_gets_the_stages_asked_for() -> None:
    record = play(wanted={1: (4,), 2: (1, 2), 3: (3,)})
    assert placed(record) == [(0, 0), (1, 4), (2, 1), (2, 2), (3, 3)]
    assert record.outcomes[peer_id(2)].keys() == {1, 2}

"""Pipelines of stages on simulated machines: what is counted, what comes back, and how runs end."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import structs

from decentral.codecs.codec import make_codec
from decentral.monitor.events import Resent, StagePlaced
from decentral.sim.faults import Fault, Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from tests.sim import pipelines
from tests.sim.pipelines import (
    PipelineRecord,
    PipelineScenario,
    miscounts,
    simulate_pipeline,
    unfinished,
)

FP32 = make_codec("fp32")
#: Four stages, a replica each, eight batches of four micro-batches; all are there at 3 s, and it ends at 5.7 s.
SHORT: dict[str, Any] = {"rounds": 4, "inner_steps": 2, "until_s": 600.0}
#: In this time a whole batch goes by, its commit included, between two batches.
BATCH_FROM_S, BATCH_S = 4.0, 0.36


def play(*faults: Fault, **changes: Any) -> tuple[PipelineScenario, PipelineRecord]:
    return pipelines.play(*faults, **{**SHORT, **changes})


def sources(record: PipelineRecord) -> dict[int, str]:
    """Where each stage that was lost came back from."""
    return {event.stage: str(event.source) for event in record.recovered()}


def holder(record: PipelineRecord, stage: int) -> Any:
    """Who held a stage last."""
    return [(peer, event) for peer, event in record.events(StagePlaced) if event.stage == stage][-1]


# -- exactly once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "source"), [(0, "kept"), (1, "copy"), (2, "blend")])
def test_a_stage_that_dies_at_any_moment_of_a_batch_is_back_and_nothing_is_counted_twice(
    victim: int, source: str
) -> None:
    for moment in (0.2, 0.9):
        _, record = play(Fault(Kind.KILL, BATCH_FROM_S + BATCH_S * moment, (victim,)))
        assert sources(record) == {victim: source}, f"at {moment} of a batch"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", range(5))
@pytest.mark.parametrize("changes", [{}, {"healing": "checkfree", "routing": "speed"}, {"pipeline": {"in_flight": 1}}])
def test_a_stage_may_die_at_every_moment_of_a_batch(victim: int, changes: Mapping[str, Any]) -> None:
    first_or_last = changes.get("healing") == "checkfree" and victim in (0, 1, 4)
    if first_or_last:
        changes = {**changes, "checkpoint_s": 0.5}
    for moment in range(40):
        play(Fault(Kind.KILL, BATCH_FROM_S + BATCH_S * moment / 40, (victim,)), **changes)


def test_who_comes_back_under_its_name_gets_what_it_has_forgotten_once_more() -> None:
    for victim in (0, 2):
        at_s = BATCH_FROM_S + 0.2
        play(Fault(Kind.KILL, at_s, (victim,)), Fault(Kind.START, at_s + 0.3, (victim,)), num_spares=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_comes_back_may_do_so_at_every_moment() -> None:
    for victim in (0, 1, 2):
        for moment in range(20):
            at_s = BATCH_FROM_S + BATCH_S * moment / 20
            play(Fault(Kind.KILL, at_s, (victim,)), Fault(Kind.START, at_s + 0.3, (victim,)), num_spares=moment % 2)


@pytest.mark.parametrize("victim", [pytest.param(5, marks=pytest.mark.slow), 7])
def test_with_two_replicas_what_one_took_with_it_is_counted_by_the_other(victim: int) -> None:
    """The rule: a share counts when its replica has taken its step, and the head is told so, not before."""
    _, record = play(Fault(Kind.KILL, 6.0, (victim,)), num_replicas=2, num_spares=0, rounds=6)
    assert len(record.events(Resent)) > 0 or victim == 5
    assert len({slot for slot, _, _ in record.counted(0)}) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("routing", ["permutation", "speed"])
@pytest.mark.parametrize("victim", [0, 2, 5, 6, 9])
def test_with_two_replicas_one_may_die_at_every_moment(victim: int, routing: str) -> None:
    for moment in range(20):
        at_s = 6.0 + 0.8 * moment / 20
        play(Fault(Kind.KILL, at_s, (victim,)), num_replicas=2, num_spares=moment % 3, rounds=6, routing=routing)


@pytest.mark.parametrize("victim", [0, 2])
def test_who_is_stopped_for_a_while_goes_on(victim: int) -> None:
    _, record = play(Fault(Kind.PAUSE, 4.1, (victim,), 3.0))
    assert sources(record) == {}
    assert record.ended_at_s > 8.0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_who_was_stopped_and_replaced_makes_way_or_is_one_more_replica(victim: int) -> None:
    """Of a batch that it was about to confirm when it was stopped, it takes the step when it goes on."""
    scenario = PipelineScenario(**{**SHORT, "rounds": 30})
    tape = FaultTape([Fault(Kind.PAUSE, 4.1, (victim,), 12.0)])
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert unfinished(scenario, record) == []
    assert len(miscounts(scenario, record)) <= scenario.num_microbatches
    assert len(sources(record)) == 1
    placed = [peer for peer, event in record.events(StagePlaced) if event.stage == victim]
    assert peer_id(5) in placed
    heads = {process.membership.own.slot for processes in record.processes.values() for process in processes}
    assert len(heads) == (2 if victim == 0 else 1)


def test_messages_that_are_lost_or_late() -> None:
    _, record = play(Fault(Kind.LOSS, 4.0, (), 1.5, 0.05), conditions=Conditions(latency_s=0.04, jitter=0.5))
    assert record.world.network.felt[Kind.LOSS] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(0, 100, 10))
def test_drawn_faults(start: int) -> None:
    """Crashes with restarts, pauses and loss over pipelines of all kinds."""
    for seed in range(start, start + 10):
        num_replicas = 1 + seed % 2
        changes = {
            "seed": seed,
            "num_stages": 4 + seed % 2,
            "num_replicas": num_replicas,
            "num_spares": 1 + seed % 3,
            "routing": ("permutation", "speed")[seed // 2 % 2],
            "healing": ("checkfree+", "checkfree")[seed // 4 % 2],
            "pipeline": {"in_flight": (0, 1, 2)[seed % 3]},
            "conditions": Conditions(jitter=0.3),
            "checkpoint_s": 1.0,
            "rounds": 12,
        }
        machines = range((changes["num_stages"] + 1) * num_replicas)
        began_s = 0.5 * (len(machines) + changes["num_spares"]) + 2.5
        plan = Plan(began_s, began_s + 12.0, num={Kind.KILL: 1 + seed % 2, Kind.PAUSE: seed // 3 % 2}, loss=0.01)
        faults = [
            structs.replace(fault, for_s=min(fault.for_s, 4.0)) if fault.kind is Kind.PAUSE else fault
            for fault in draw(seed, machines, plan)
        ]
        try:
            play(*faults, unfired=1, **changes)
        except AssertionError as err:
            raise AssertionError(f"seed {seed}") from err


def test_the_same_seed_gives_the_same_trace_whatever_was_drawn_before() -> None:
    traces = []
    for state in range(2):
        random.seed(state)
        _, record = play(Fault(Kind.KILL, 4.2, (2,)), conditions=Conditions(jitter=0.3), checkpoint_s=1.0)
        traces.append(record.world.network.trace.digest())
    assert traces[0] == traces[1]

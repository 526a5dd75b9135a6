"""Plans: their figures against what was measured and against the wire, and what they advise."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.codecs.codec import make_codec
from decentral.config.method import MethodSection
from decentral.config.names import METHODS
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import checked
from decentral.errors import ConfigError
from decentral.ports.trainer import Size
from decentral.run import sizing, tasks
from decentral.run.planning import ENOUGH, Case, choose, compare, cost_of, data_parallel
from decentral.run.sizing import choice_of_founder, number, size_by_number

#: Of docs/benchmarks/utilisation.md, as it was before: four workers behind 50 Mbit/s and 50 ms, steps of 0.55 s.
MEASURED = Case(Size(11_170_240, 12, 252), 0.55, 4, 50e6 / 8, 0.05, 1e7)
CASES = st.builds(
    Case,
    st.builds(Size, st.integers(10_000, 10**10), st.integers(1, 48), st.sampled_from([2048, 8192])),
    st.floats(0.01, 10.0),
    st.integers(2, 64),
    st.floats(1e5, 1e9),
    st.sampled_from([0.0, 0.05, 0.2]),
    st.floats(1e7, 1e14),
)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({"name": "streaming"}, 0.991),
        ({"name": "diloco", "inner_steps": 100, "codec": "int8-b128"}, 0.877),
        ({"name": "diloco", "inner_steps": 100, "codec": "fp32"}, 0.788),
    ],
)
def test_shares_are_near_those_of_real_workers_behind_emulated_links(values: dict[str, object], share: float) -> None:
    """What the plan leaves out is work of the processor, which costs the int8 of small models most."""
    assert cost_of(MEASURED, MethodSection(**values)).utilisation == pytest.approx(share, abs=0.06)
    assert data_parallel(MEASURED).utilisation == pytest.approx(0.043, abs=0.01)


def test_bytes_of_an_all_reduce_and_of_a_swap_are_those_of_the_wire() -> None:
    numel = MEASURED.size.parameters
    up, down = make_codec("topk1.5-2bit").nbytes(numel), make_codec("topk6-8bit").nbytes(numel)
    assert cost_of(MEASURED, MethodSection(name="sparseloco")).sent_bytes == pytest.approx(3 / 4 * (up + down))
    assert cost_of(MEASURED, MethodSection(name="noloco")).sent_bytes == pytest.approx(1.75 * numel, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(case=CASES)
def test_what_is_advised_can_be_run_and_is_enough_unless_nothing_is(case: Case) -> None:
    choice = choose(case)
    swarm = checked(SwarmConfig, dict(choice.values))
    assert cost_of(case, swarm.method) == choice.cost
    assert choice.cost.utilisation >= ENOUGH or "Nothing computes" in choice.why[0]
    assert swarm.run.rounds == min(math.ceil(case.steps / choice.cost.inner_steps), 10_000_000)
    faster = choose(replace(case, bytes_per_s=4 * case.bytes_per_s)).cost
    if choice.cost.utilisation >= ENOUGH:
        assert faster.inner_steps <= choice.cost.inner_steps


def test_a_fast_line_has_many_rounds_and_a_slow_one_hides_fewer_of_them() -> None:
    at_once = replace(MEASURED, bytes_per_s=1e11, round_trip_s=1e-4)
    fast = choose(at_once)
    assert (fast.values["method.inner_steps"], "method.delay_steps" in fast.values) == (10, False)
    short = choose(replace(at_once, tokens=999 * at_once.tokens / at_once.steps))
    assert (short.values["method.name"], short.cost.inner_steps) == ("local-sgd", 3)
    slow = choose(MEASURED)
    assert slow.values["method.inner_steps"] >= 10
    assert slow.values["method.delay_steps"] == "auto"
    long = choose(replace(MEASURED, tokens=1e10))
    beyond = {"method.name": "diloco", "method.outer_lr": 1.0, "method.outer_momentum": 0.7, "method.mix_alpha": 0.0}
    assert slow.values == {**slow.values, **beyond}
    assert (long.values["method.name"], long.values.get("method.outer_momentum")) == ("diloco", None)
    assert ["papers" in each.why[-1] for each in (short, slow, long)] == [False, True, True]


def test_what_is_stated_stays() -> None:
    stated = {"method.codec": "fp32", "run.seed": 3}
    choice = choose(MEASURED, stated)
    assert "method.codec" not in choice.values
    assert choice.cost.sent_bytes == pytest.approx(1.5 * 4 * MEASURED.size.parameters)
    with pytest.raises(ConfigError, match=r"method\.gamma"):
        choose(MEASURED, {"method.gamma": 0.9})


def test_every_method_and_data_parallel_training_is_compared() -> None:
    costs = compare(MEASURED)
    assert [cost.name for cost in costs] == ["data-parallel", *METHODS]
    assert all(0 < cost.utilisation <= 1 and cost.memory_bytes > 0 and cost.seconds > 0 for cost in costs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 1}, "workers must be at least 2"),
        ({"step_s": 0.0}, "the time of a step"),
        ({"bytes_per_s": 0.0}, "the rate of a line"),
        ({"tokens": math.inf}, "tokens"),
        ({"size": Size(10, 1, 0)}, "tokens of a step"),
    ],
)
def test_out_of_range(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MEASURED, **change)


def test_numbers_as_people_write_them() -> None:
    assert [number(text) for text in ("135m", "1.1B", "2e9", "12k", "./dir", "")] == [
        135e6,
        1.1e9,
        2e9,
        12e3,
        None,
        None,
    ]
    assert size_by_number(124e6).layers == pytest.approx(12, abs=2)
    with pytest.raises(ConfigError, match="cannot be planned for"):
        size_by_number(0)


def test_a_step_is_timed_without_what_its_thread_waited_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.3 s, the first of them half as long again, on a machine that does something else for a second each."""
    came, waits = iter([0.0, 1.45, 1.45, 2.75, 2.75, 4.05, 4.05, 5.35]), iter([5, 6, 6, 7, 7, 8, 8, 9])
    trainer = SimpleNamespace(
        parameters=lambda: {"w": torch.zeros(7)}, train_steps=lambda step, count: SimpleNamespace(tokens=11)
    )
    monkeypatch.setattr(tasks, "build_trainer", lambda *_, **__: trainer)
    monkeypatch.setattr(sizing, "time", SimpleNamespace(perf_counter=lambda: next(came)))
    monkeypatch.setattr(sizing, "waited_for_core_s", lambda: next(waits))
    size, step_s = sizing.measured(SwarmConfig(), WorkerConfig())
    assert (size.parameters, size.tokens_per_step) == (7, 11)
    assert step_s == pytest.approx(0.3)


def test_what_a_thread_waited_for_a_core_only_grows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = sizing.waited_for_core_s()
    assert 0 <= before <= sizing.waited_for_core_s()
    monkeypatch.setattr(sizing, "_SCHEDULED", tmp_path / "nowhere")
    assert sizing.waited_for_core_s() == 0.0


def test_a_founder_of_several_processes_chooses_by_what_its_task_says() -> None:
    swarm, own = SwarmConfig(), WorkerConfig()
    choice, words = choice_of_founder(swarm, {}, own, alone=False)
    assert "824k values, supposed steps of 1 s" in words
    assert choice.values["run.rounds"] * choice.values["method.inner_steps"] >= 6000
    kept, _ = choice_of_founder(swarm, {"run.rounds": 5}, own, alone=False)
    assert "run.rounds" not in kept.values
    assert choice_of_founder(swarm, {"method.outer_lr": 0.5}, own, alone=False) is None
    silent = checked(SwarmConfig, {"task.factory": "mine:build"})
    assert choice_of_founder(silent, {}, own, alone=False) is None

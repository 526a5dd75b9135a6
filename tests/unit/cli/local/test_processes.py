"""How many processes a local run has, and how long a step takes them."""

import pytest

from decentral.cli.local.processes import Processes, processes_for
from decentral.config.pipeline import PipelineSection
from decentral.errors import UsageError

NONE = PipelineSection()


def test_without_a_pipeline_there_are_four_workers_or_as_many_as_asked_for():
    assert processes_for(NONE, None, None) == processes_for(NONE, 4, 0) == Processes(4)
    assert processes_for(NONE, 7, None).describe() == "7 workers"
    assert processes_for(NONE, 7, None).values == {"run.min_workers": 7}
    assert processes_for(NONE, 7, None).num_streams == 7


def test_a_pipeline_has_a_head_and_its_stages_as_often_as_it_has_replicas():
    one = processes_for(PipelineSection(stages=4), None, None)
    assert (one.size, one.num_streams, one.values) == (5, 1, {"pipeline.replicas": 1})
    assert one.describe() == "5 workers: a head and 4 stages"
    two = processes_for(PipelineSection(stages=4, replicas=2), None, 3)
    assert (two.size, two.num_streams, two.values) == (13, 2, {"pipeline.replicas": 2})
    assert two.describe() == "13 workers: a head and 4 stages, 2 of each, and 3 spares"


def test_the_last_processes_are_spares_and_the_others_are_given_what_is_needed():
    made = processes_for(PipelineSection(stages=2), None, 2)
    assert [made.stage(index) for index in range(made.size)] == ["", "", "", "spare", "spare"]
    assert {processes_for(NONE, 3, None).stage(index) for index in range(3)} == {""}


@pytest.mark.parametrize(
    ("pipeline", "workers", "spares", "match", "hint"),
    [
        (PipelineSection(stages=4), 5, None, "--workers and a pipeline exclude each other", "--replicas, or --spares"),
        (PipelineSection(stages=4, replicas=2), 4, 1, "4 stages and a head take 10 processes", "Leave --workers out"),
        (NONE, None, 1, "--spares is for a pipeline, and there is none", "--stages"),
        (PipelineSection(stages=32, replicas=2), None, None, "are 66 processes; at most 64", "fewer --stages"),
        (PipelineSection(stages=62), None, 2, "and 2 spares are 65 processes", "--spares"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(pipeline, workers, spares, match, hint):
    with pytest.raises(UsageError, match=match) as caught:
        processes_for(pipeline, workers, spares)
    assert hint in caught.value.hint


def test_workers_that_find_no_core_wait():
    assert Processes(4).step_s(2.0, 1, 8, on_cpu=True) == 2.0
    assert Processes(4).step_s(2.0, 2, 4, on_cpu=True) == 4.0
    assert Processes(4).step_s(2.0, 1, 8, on_cpu=False) == 8.0


def test_the_batches_of_the_heads_share_the_cores():
    one = processes_for(PipelineSection(stages=4), None, None)
    alone = one.step_s(2.0, 1, 1, on_cpu=True)
    assert alone == one.step_s(2.0, 1, 64, on_cpu=False) > 2.0  # one after the other, and something for the way
    assert one.step_s(2.0, 1, 2, on_cpu=True) == alone / 2
    assert one.step_s(2.0, 1, 64, on_cpu=True) == alone / 5
    assert one.step_s(2.0, 4, 2, on_cpu=True) == alone
    two = processes_for(PipelineSection(stages=4, replicas=2), None, 2)
    assert two.step_s(2.0, 1, 2, on_cpu=True) == alone


def test_the_way_goes_by_micro_batches_and_hops_and_not_by_the_model():
    def way_s(alone_s: float, **pipeline: int) -> float:
        processes = processes_for(PipelineSection(**pipeline), None, None)
        return processes.step_s(alone_s, 1, 1, on_cpu=True) - alone_s

    assert way_s(2.0, stages=4) == pytest.approx(way_s(8.0, stages=4))
    assert way_s(2.0, stages=4, microbatches=16) == pytest.approx(2 * way_s(2.0, stages=4))
    assert way_s(2.0, stages=9) == pytest.approx(2 * way_s(2.0, stages=4))

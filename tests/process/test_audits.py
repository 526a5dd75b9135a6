"""A reducer that lies among real workers: proven to by its own signatures, barred by all, named by status."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.command import WorkerProcess, founding, processes_of, status_of, wait_for


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_reducer_that_lies_is_barred_by_all_others(tmp_path: Path) -> None:
    with ExitStack() as stack:
        often = ("--set", "method.audits=4", "--set", "method.bound=0")
        founder = WorkerProcess(tmp_path / "a", *founding(tmp_path / "hurry", step_s=0.05, rounds=100_000), *often)
        stack.callback(founder.end)
        other = WorkerProcess(tmp_path / "b", "--join", founder.address)
        stack.callback(other.end)
        (tmp_path / "c").mkdir()
        task = ("--task", "tests.process.lying:build", "--data", str(tmp_path / "c"))
        liar = WorkerProcess(tmp_path / "c", "--join", founder.address, *task)
        stack.callback(liar.end)
        for worker in (founder, other):
            found = wait_for(lambda worker=worker: worker.events("restrained"), "a lie is proven")  # type: ignore[misc]
            assert {(event["peer"], event["kind"]) for event in found} == {(liar.peer, "proven")}
        here = founder.events("round_mixed")[-1]["round"]

        def both() -> bool:
            mixed = founder.events("round_mixed")[-1]
            return mixed["round"] > here + 2 and set(mixed["members"]) == {founder.peer, other.peer}

        wait_for(both, "rounds without the liar")
        _, report = status_of(founder.address)
        assert report["banned"] == [liar.peer]
    wait_for(lambda: not processes_of(tmp_path), "no process left")

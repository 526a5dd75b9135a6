"""A donor that lies among real workers of a gossip: a newcomer that asks it first takes the weights of another one."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.command import WorkerProcess, founding, processes_of, wait_for


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_newcomer_of_a_gossip_passes_by_a_donor_that_lies(tmp_path: Path) -> None:
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> WorkerProcess:
            worker = WorkerProcess(tmp_path / name, *arguments)
            stack.callback(worker.end)
            return worker

        gossip = ("--set", "method.name=noloco")
        founder = start("a", *founding(tmp_path / "hurry", step_s=0.05, rounds=100_000), *gossip)
        other = start("b", "--join", founder.address)
        (tmp_path / "c").mkdir()
        lies = ("--task", "tests.process.poisoning:build", "--data", str(tmp_path / "c"))
        liar = start("c", "--join", founder.address, *lies)
        workers = (founder, other, liar)
        # Anchors begin at zero, of which the other sign is the same.
        wait_for(lambda: all(len(worker.events("round_mixed")) > 9 for worker in workers), "ten rounds of all three")
        newcomer = start("d", "--join", liar.address)
        (joined,) = wait_for(lambda: newcomer.events("joined"), "a newcomer")
        assert (joined["num_compared"], joined["passed_by"]) == (2, [liar.peer])
        assert joined["donor"] in (founder.peer, other.peer)
    wait_for(lambda: not processes_of(tmp_path), "no process left")

"""A swarm of real processes through its life: join by pasting, fail, leave, die, be looked at, end in agreement.

Every outcome is awaited by condition within a generous deadline.
"""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from decentral.errors import ExitCode
from tests.process.command import (
    P,
    WorkerProcess,
    done_here,
    founding,
    mixed_together,
    processes_of,
    status_of,
    wait_for,
)
from tests.process.test_trainer_faults import RAISES, Faulty

#: At the visible pace these take far longer than the test; then the run is told to hurry.
ROUNDS = 80


def assert_members_agree(workers: list[WorkerProcess]) -> None:
    """Whoever mixed a round with the same members holds the same anchor after it."""
    digests: dict[tuple[int, tuple[str, ...]], set[str]] = {}
    for event in (event for worker in workers for event in worker.events("round_mixed")):
        digests.setdefault((event["round"], tuple(event["members"])), set()).add(event["digest"])
    assert {key: seen for key, seen in digests.items() if len(seen) > 1} == {}


@pytest.mark.timeout(300)
def test_a_swarm_from_its_founding_to_its_end(start: Callable[[P], P], tmp_path: Path) -> None:
    stated = founding(tmp_path / "hurry", step_s=0.3, rounds=ROUNDS)
    founder = start(WorkerProcess(tmp_path / "0", *stated, "--codec", "int4-b128"))  # which leaves something to send
    line = founder.join_line()
    assert line == f"decentral worker --join {founder.address}"
    # Pasted as it is, and as the bare address that a person would type.
    pasted = start(WorkerProcess(tmp_path / "1", *shlex.split(line)[2:]))
    leaver = start(WorkerProcess(tmp_path / "2", "--join", founder.host_port))
    swarm = [founder, pasted, leaver]
    wait_for(lambda: mixed_together(swarm), "a round with all three")
    assert {worker.events("joined")[0]["donor"] for worker in swarm[1:]} == {founder.peer}

    # Asking is not taking part: nobody is in any answer but the three.
    def is_healthy() -> bool:
        code, report = status_of(founder.address)
        if code == 0:
            assert report["schema_version"] == 2
            assert {row["peer"] for row in report["workers"]} == {worker.peer for worker in swarm}
        return code == 0

    wait_for(is_healthy, "a healthy status")

    out = tmp_path / "exported.safetensors"
    exported = done_here("export", leaver.host_port, "--trust-config", "--out", str(out))
    assert exported.exit_code == 0, exported.stderr
    assert "from 3 workers" in exported.stderr
    assert f"wrote {out}: replica " in exported.stdout
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["digest"] in {event["digest"] for w in swarm for event in w.events("round_mixed")}

    faulty = start(Faulty(tmp_path / "3", founder))
    faulty.fail("raises", *swarm)
    faulty.ended_in_order(founder, "raises", ExitCode.TRAINER, RAISES)

    leaver.signal(signal.SIGINT)
    assert leaver.code() == 0
    assert leaver.events("stopped")[-1]["reason"] == "asked to stop"
    assert leaver.model()["digest"] in {event["digest"] for w in swarm for event in w.events("round_mixed")}
    assert not processes_of(tmp_path / "2")

    # Back with the same folder it goes on with what it still had to send.
    owed = leaver.events("round_mixed")[-1]["residual_norm"]
    back = start(WorkerProcess(tmp_path / "2", "--join", founder.address))
    wait_for(lambda: len(back.events("joined")) == 2, "the worker that left being back")
    assert back.peer == leaver.peer
    assert [event["residual_norm"] for event in back.events("joined")] == [0, pytest.approx(owed)]
    assert owed > 0
    saved = len(back.events("saved"))
    back.signal(signal.SIGUSR1)
    wait_for(lambda: len(back.events("saved")) > saved, "a checkpoint at the notice")

    back.popen.kill()
    wait_for(lambda: not processes_of(tmp_path / "2"), "no process of the killed worker")
    survivors = [founder, pasted]
    last = back.events("round_mixed")[-1]["round"]
    wait_for(lambda: mixed_together(survivors, after=last), "a round of the survivors")

    def is_degraded() -> bool:
        code, report = status_of(founder.address)
        assert {row["peer"] for row in report.get("workers", [])} <= {worker.peer for worker in (*swarm, faulty)}
        dead = [row for row in report.get("workers", []) if row["peer"] == back.peer]
        return code == 20 and any(row["state"] == "lost" and row["reason"].startswith("not seen for") for row in dead)

    wait_for(is_degraded, "a degraded status that names the dead worker")

    (tmp_path / "hurry").touch()
    assert [worker.code() for worker in survivors] == [0, 0]
    assert founder.model() == pasted.model()
    assert founder.model()["round"] == str(ROUNDS)
    assert_members_agree([*swarm, faulty])
    assert not processes_of(tmp_path)

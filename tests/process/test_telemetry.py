"""A worker that Prometheus and an experiment logger are told of, and its swarm as it is."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.process.command import P, WorkerProcess, founding, mixed_together, wait_for


@pytest.mark.slow
def test_a_real_swarm_is_exposed_and_logged(tmp_path: Path, start: Callable[[P], P]) -> None:
    for name in ("prometheus_client", "tensorboard"):
        pytest.importorskip(name, reason="an extra is not installed")
    told = ("--metrics", "0", "--log-to", "tensorboard")
    founder = start(WorkerProcess(tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.1, rounds=60), *told))
    joiner = start(WorkerProcess(tmp_path / "1", "--join", founder.address))
    wait_for(lambda: mixed_together([founder, joiner]), "a round with both")
    (url,) = re.findall(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", founder.stderr)

    def exposed() -> str:
        with urlopen(url, timeout=10) as reply:
            text: str = reply.read().decode()
        return text if re.search(r"decentral_totals_contributing\{.*\} 2\.0", text) else ""

    text = wait_for(exposed, "figures of both")
    assert re.search(rf'decentral_worker_loss{{run="[^"]+",worker="{founder.peer[-6:]}"}} 0\.\d+', text)
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")

    (tmp_path / "hurry").touch()
    assert [founder.code(), joiner.code()] == [0, 0]
    assert founder.stdout.count("\n") == 1
    assert "not everything is logged" not in founder.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(str(founder.folder / "tensorboard"))
    logged.Reload()
    assert logged.Scalars("worker/step")[-1].step == 240
    assert {"totals/loss", "worker/loss"} <= set(logged.Tags()["scalars"])

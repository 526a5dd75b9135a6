"""What other tools are told of a worker, and what is refused before there is one."""

import asyncio
import importlib.util
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest

from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError
from decentral.metrics import log_to
from decentral.monitor.history import History
from decentral.run.connect import connect
from decentral.run.connection import Start
from decentral.run.watch import watch
from tests.unit.metrics.made import OWN, told


@pytest.mark.parametrize(
    ("own", "extra"),
    [(WorkerConfig(metrics="0"), "metrics"), (WorkerConfig(log_to=("tensorboard", "wandb")), "wandb")],
)
def test_a_missing_library_is_refused_before_anything_is_opened(monkeypatch, own, extra):
    there = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return None if name in ("prometheus_client", "wandb") else there("json")

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr("decentral.run.connect.open_node", pytest.fail)
    with pytest.raises(ConfigError, match="not installed here") as refused:
        asyncio.run(connect(Start(SwarmConfig(), own)))
    assert refused.value.hint == f"pip install 'decentral[{extra}]'"


def test_a_port_that_there_cannot_be_is_refused_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr("decentral.run.connect.open_node", pytest.fail)
    with pytest.raises(ConfigError, match="--metrics 70000 is no place"):
        asyncio.run(connect(Start(SwarmConfig(), WorkerConfig(metrics="70000"))))


def test_endpoint_and_loggers_are_told_from_the_beginning_to_the_last_report(monkeypatch, caplog):
    pytest.importorskip("prometheus_client", reason="the extra decentral[metrics] is not installed")
    logged: list[int] = []

    class Kept:
        def log(self, step: int, values: Any) -> None:
            logged.append(step)

        def close(self) -> None:
            logged.append(-1)

    monkeypatch.setattr(log_to, "OPEN", {"wandb": lambda about: Kept()})
    steps = iter([10, 20])
    connection: Any = SimpleNamespace(
        own=WorkerConfig(metrics="0", log_to=("wandb",)),
        node=SimpleNamespace(identity=SimpleNamespace(peer_id=OWN), gate=SimpleNamespace(policy=None)),
        run_id="demo-1a2b",
        swarm=SwarmConfig(),
        report=lambda workers: told(next(steps)),
    )
    membership: Any = SimpleNamespace(everybody=list)

    async def scenario() -> str:
        async with AsyncExitStack() as resources:
            await watch(connection, membership, History(), resources)
            await asyncio.sleep(0)  # the first look
            url = next(record.args[0] for record in caplog.records if record.msg == "metrics: %s")
            return (await asyncio.to_thread(urlopen, url, timeout=60)).read().decode()

    with caplog.at_level("INFO"):
        assert 'decentral_worker_step{run="demo-1a2b",worker="OwnOwn"} 10.0' in asyncio.run(scenario())
    assert logged == [10, 20, -1]

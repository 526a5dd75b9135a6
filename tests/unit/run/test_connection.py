"""What a worker writes down of the run that it has come to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from decentral.config.resolve import resolve
from decentral.config.settings import load
from decentral.errors import ConfigError
from decentral.run.book import Book
from decentral.run.connection import opened
from decentral.run.folder import CONFIG

NODE: Any = SimpleNamespace(addresses=lambda: ["/ip4/127.0.0.1/tcp/1"], gate=SimpleNamespace(policy=None))


def test_a_disk_that_takes_nothing_refuses_a_newcomer_and_not_who_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load(assignments=[f"worker.out={tmp_path}"])
    swarm = resolve(settings.swarm)
    (tmp_path / CONFIG).mkdir()  # so that nobody can write it, whoever asks
    with pytest.raises(ConfigError, match="Cannot write"):
        opened(NODE, swarm, settings.worker, Book("demo-1", 0), (), None)
    connection = opened(NODE, swarm, settings.worker, Book("demo-1", 0), (), None, is_back=True)
    assert connection.run_id == "demo-1"
    assert "Training goes on with what is there from before" in caplog.text

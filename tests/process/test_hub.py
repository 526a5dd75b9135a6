"""A model, its tokenizer and a data set by their names on a hub, through the libraries that ask one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.command import ROOT
from tests.support.hf import make_folder, write_rows
from tests.support.hub import Hub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: A worker, told its settings and what is particular to its seat; says what it trained with.
_WORKER = """
import json, sys
from decentral.errors import DecentralError
from decentral.ports.trainer import Seat
from decentral.workers import hf

settings, seat = json.loads(sys.argv[1])
try:
    settings = hf.resolve(settings)
    trainer = hf.build(settings, Seat(1, 2, 10, **seat))
    print(json.dumps([settings, trainer.train_steps(0, 1).tokens]))
except DecentralError as err:
    print(json.dumps([err.message, err.hint]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    make_folder(tmp_path / "hub" / "models" / "some" / "model")
    texts = tmp_path / "hub" / "datasets" / "some" / "texts"
    texts.mkdir(parents=True)
    write_rows(texts / "train.jsonl")
    with Hub(tmp_path / "hub").open() as opened:
        yield opened


def worker(hub: Hub, home: Path, settings: Any, **seat: Any) -> tuple[Any, Any]:
    """What a worker says whose cache is ``home``."""
    hub.asked.clear()
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", _WORKER, json.dumps([settings, seat])]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found, more = json.loads(ran.stdout.splitlines()[-1])
    return found, more


@pytest.mark.parametrize("streaming", [False, True])
def test_a_founder_downloads_and_a_joiner_only_what_it_was_allowed_to(
    hub: Hub, tmp_path: Path, *, streaming: bool
) -> None:
    data = {"dataset": "some/texts", "prefetch": 0, "streaming": streaming}
    given = {"model": {"name": "some/model"}, "data": data}
    settings, tokens = worker(hub, tmp_path / "founder", given, founding=True, dataset="some/texts")
    assert tokens > 0
    assert any(path.endswith("/model.safetensors") for path in hub.asked)

    message, hint = worker(hub, tmp_path / "joiner", settings)
    assert "nothing is downloaded unasked" in message
    assert "--allow-download" in hint
    assert not [path for path in hub.asked if "/some/" in path]

    _, tokens = worker(hub, tmp_path / "joiner", settings, allow_download=True)
    assert tokens > 0
    assert any(path.endswith("/tokenizer.json") for path in hub.asked)
    assert any(path.endswith("/train.jsonl") for path in hub.asked)
    # Weights come from the swarm.
    assert not any(path.endswith("/model.safetensors") for path in hub.asked)

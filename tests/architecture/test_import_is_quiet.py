"""Importing the package does nothing: no threads, no logging, no look at the environment; and the light stays light."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

#: What `decentral status` and `--help` load, in an order from light to heavy; none of it may load torch.
LIGHT = [
    "decentral",
    "decentral.errors",
    "decentral.types",
    "decentral.config.resolve",
    "decentral.config.file",
    "decentral.swarm.presence",
    "decentral.swarm.roster",
    "decentral.monitor.status",
    "decentral.engine.hello",
    "decentral.cli.app",
    "decentral.cli.status",
    "decentral.adapters.node",
    "decentral.adapters.probe",
    "decentral.run.connect",
]
#: Loaded by a worker only.
HEAVY = ["decentral.engine.worker", "decentral.sim.world", "decentral.workers.lm", "decentral.workers.toy"]

_SPY = """
import json, logging, os, sys, threading

root = sys.argv[1]
reads = []

class Spy(type(os.environ)):
    def __getitem__(self, key):
        frame = sys._getframe(1)
        while frame and ("_collections_abc" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("os.py")
                         or frame.f_code.co_filename in ("<frozen os>", "<frozen _collections_abc>")):
            frame = frame.f_back
        name = frame.f_code.co_filename if frame else ""
        if name.startswith((root + "/decentral", root + "/workers")) or name == "<string>":
            reads.append(f"{key} by {name}")
        return super().__getitem__(key)

os.environ.__class__ = Spy
os.getenv("PROBE")
assert reads == ["PROBE by <string>"], reads
reads.clear()
found = {}
for name in sys.argv[2:]:
    __import__(name)
    names = [n for n in logging.root.manager.loggerDict if n.split(".")[0] == "decentral"]
    ours = [logging.getLogger(n) for n in names]
    found[name] = {
        "reads": list(reads),
        "threads": [thread.name for thread in threading.enumerate()],
        "handlers": [repr(h) for logger in (logging.root, *ours) for h in logger.handlers],
        "levels": [logger.name for logger in ours if logger.level] + [logging.root.level],
        "torch": "torch" in sys.modules,
        "cuda": "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(),
    }
print(json.dumps(found))
"""


@functools.cache
def observed(*names: str) -> dict[str, dict[str, Any]]:
    """What was seen after the import of each module, one after the other in a fresh process."""
    found = subprocess.run(
        [sys.executable, "-c", _SPY, str(ROOT), *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    result: dict[str, dict[str, Any]] = json.loads(found.stdout)
    return result


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("light", "heavy") for n in (LIGHT if g == "light" else HEAVY)]
)
def test_an_import_does_nothing(group: str, name: str) -> None:
    seen = observed(*(LIGHT if group == "light" else HEAVY))[name]
    assert seen["reads"] == []
    assert seen["threads"] == ["MainThread"]
    assert seen["handlers"] == []
    assert seen["levels"] == [30]
    assert not seen["cuda"]


@pytest.mark.parametrize("name", LIGHT)
def test_what_is_light_loads_no_torch(name: str) -> None:
    assert not observed(*LIGHT)[name]["torch"]


def test_the_configuration_loads_no_network_either() -> None:
    look = "import decentral.config.file, decentral.config.resolve, sys; print('hivemind' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_the_probe_can_see_torch() -> None:
    assert observed(*HEAVY)[HEAVY[0]]["torch"]

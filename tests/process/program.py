"""A program of the user's, run on loopback with lively timing and at a pace that a test decides; otherwise as it is.

    python -m tests.process.program SCRIPT FOLDER HURRY ROUNDS [ARGUMENT...]

Its current folder and that of its workers is FOLDER; each of its steps takes a while until the file HURRY exists.
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import decentral

STEP_S = 1.0
INNER_STEPS = 2
OWN = {"worker.host": "127.0.0.1", "worker.threads": 1}
SWARM = {
    "method.inner_steps": INNER_STEPS,
    "timing.beat_s": 0.5,
    "timing.ttl_s": 3.0,
    "timing.min_patience_s": 3.0,
}


def main() -> None:
    script, folder, hurry, rounds, *arguments = sys.argv[1:]
    found, join, step = decentral.found, decentral.join, decentral.Swarm.step

    def lively_found(model: Any, **given: Any) -> decentral.Swarm:
        settings = given.pop("settings", {}) | OWN | SWARM
        return found(model, **(given | {"rounds": int(rounds)}), settings=settings, out=folder)

    def local_join(address: str, model: Any, **given: Any) -> decentral.Swarm:
        return join(address, model, **given, settings=OWN, out=folder)

    def paced_step(self: decentral.Swarm, **given: Any) -> None:
        if not Path(hurry).exists():
            time.sleep(STEP_S)
        step(self, **given)

    decentral.found, decentral.join = lively_found, local_join
    decentral.Swarm.step = paced_step  # type: ignore[method-assign]
    os.chdir(folder)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()

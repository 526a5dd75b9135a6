"""How often checkpoints are written, as people say it."""

import math
from pathlib import Path

import pytest

from decentral.config.file import to_toml
from decentral.config.interval import parse
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.errors import ConfigError
from decentral.schedule.every import Every


@pytest.mark.parametrize(
    ("text", "seconds", "steps"),
    [
        ("10min", 600, 0),
        ("90s", 90, 0),
        ("1.5 h", 5400, 0),
        ("30d", 30 * 86_400, 0),
        ("1sec", 1, 0),
        ("500steps", math.inf, 500),
        ("1 Step", math.inf, 1),
        ("0", math.inf, 0),
        ("0s", math.inf, 0),
    ],
)
def test_times_and_steps(text: str, seconds: float, steps: int) -> None:
    assert parse(text) == Every(seconds, steps)
    assert load(None, [], {"worker.checkpoint_every": text}).worker.checkpoint_every == text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "it must be a time or a number of inner steps"),
        ("-1min", "it must be a time or a number of inner steps"),
        ("60", "it has no unit: write s, min, h or d for time, or steps"),
        ("10m", "m is not a unit"),
        ("0.5s", "from 1 second to 30 days"),
        ("31d", "from 1 second to 30 days"),
        ("1.5steps", "a whole number from 1 to"),
        ("99999999steps", "a whole number from 1 to"),
        ("nan", "it must be a time"),
    ],
)
def test_what_is_no_interval(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=f'^worker.checkpoint_every = "{text}": .*{match}'):
        load(None, [], {"worker.checkpoint_every": text})


def test_from_a_file_and_back(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for value, expected in (('"500steps"', "500steps"), ("0", "0"), ('"2h"', "2h")):
        file.write_text(f"[worker]\ncheckpoint-every = {value}\nkeep = 7\n")
        assert (load(file).worker.checkpoint_every, load(file).worker.keep) == (expected, 7)
        file.write_text(to_toml(SwarmConfig(), load(file).worker))
        assert load(file).worker.checkpoint_every == expected
    assert (WorkerConfig().checkpoint_every, WorkerConfig().keep) == ("1min", 3)


@pytest.mark.parametrize("stated", ["worker.checkpoint_every=60", "worker.checkpoint_every=true", "worker.keep=0"])
def test_what_is_refused(stated: str) -> None:
    with pytest.raises(ConfigError, match=r"(10min, 90s, 2h or 500steps|at least 1)"):
        load(None, [stated])

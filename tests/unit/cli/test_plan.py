"""``decentral plan``: what it is told, what it asks, and that its advice is a configuration."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from decentral.cli.app import app
from decentral.config.schema import SwarmConfig
from decentral.config.settings import load
from decentral.errors import ExitCode
from decentral.run import asking

CASE = ("--model", "135m", "--workers", "16", "--link", "200mbit", "--step-time", "0.8s")


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_advice_is_a_file_that_config_reads(tmp_path: Path):
    result = run(*CASE, "--format", "toml", "--set", "method.feedback=none")
    assert (result.exit_code, result.stderr) == (0, "")
    file = tmp_path / "plan.toml"
    file.write_text(result.stdout)
    swarm = load(file).swarm
    choice = json.loads(run(*CASE, "--format", "json", "--set", "method.feedback=none").stdout)["choice"]
    assert swarm.run.rounds == choice["values"]["run.rounds"]
    assert swarm.method.inner_steps == choice["cost"]["inner_steps"]
    assert swarm.method.feedback == "none"
    assert result.stdout.startswith("# 135M parameters")


def test_the_table_has_every_method_and_what_to_take():
    result = run(*CASE, "--latency", "20ms", "--set", "method.name=noloco")
    assert result.exit_code == 0
    heading, header, *rows = result.stdout.splitlines()
    assert "16 workers on 200mbit each way, 20 ms there and back; 2.7G tokens" in heading
    assert header.split()[-2:] == ["needs", "time"]
    names = [row.split("  ")[0] for row in rows[:11]]
    assert names == [
        *("data-parallel", "local-sgd", "diloco", "muloco", "streaming", "eager", "sparseloco", "noloco", "async"),
        *("as configured", "take this"),
    ]
    assert "[method]" in rows


def test_a_live_swarm_is_planned_for_by_what_it_measured(monkeypatch: pytest.MonkeyPatch):
    row = SimpleNamespace(
        contributes=True,
        compute_share=0.5,
        wall_s=100.0,
        tokens=204_800,
        peak_sent_bytes_per_s=1.25e6,
        links=[SimpleNamespace(round_trip_s=way_s) for way_s in (0.02, math.nan, 0.08, 0.3)],
    )
    rows = [row, SimpleNamespace(**{**vars(row), "tokens": 102_400}), SimpleNamespace(**{**vars(row), "tokens": 0})]

    async def ask_swarm(addresses, timeout_s):
        assert addresses == ["a:1#TOKEN"]
        return SwarmConfig(), SimpleNamespace(workers=rows)

    monkeypatch.setattr(asking, "ask_swarm", ask_swarm)
    result = run("a:1#TOKEN", "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    case = json.loads(result.stdout)["case"]
    assert (case["workers"], case["bytes_per_s"], case["size"]["parameters"]) == (3, 1.25e6, 824_448)
    assert case["round_trip_s"] == 0.08
    # The slowest takes 50 s for 102,400 tokens, 2,048 a step.
    assert case["step_s"] == pytest.approx(1.0)


def test_a_folder_of_transformers_is_read_for_its_size(tmp_path: Path):
    pytest.importorskip("transformers")
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    config |= {"num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("--model", str(tmp_path), "--step-time", "1", "--format", "toml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "# 162k parameters in 3 layers; steps of 1 s and 1.02k tokens" in result.stdout
    file = tmp_path / "plan.toml"
    file.write_text(result.stdout)
    task = load(file).swarm.task
    assert (task.factory, task.settings) == ("decentral.workers.hf:build", {"model": {"name": str(tmp_path)}})


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--model", "135m"), "--step-time 0.8s", ExitCode.USAGE),
        ((*CASE[:-1], "soon"), "--step-time soon is no time", ExitCode.USAGE),
        ((*CASE, "--workers", "1"), "workers must be at least 2, got 1", ExitCode.USAGE),
        ((*CASE, "--link", "fast"), "a number and a unit", ExitCode.USAGE),
        ((*CASE, "--link", "0"), "the rate of a line must be finite and above 0", ExitCode.USAGE),
        ((*CASE, "--tokens", "many"), "--tokens many is no number", ExitCode.USAGE),
        (
            (*CASE, "--set", "method.gamma=0.9", "--set", "method.name=noloco"),
            "No method goes together",
            ExitCode.CONFIG,
        ),
        ((*CASE, "--set", "method.inner=9"), "unknown key", ExitCode.CONFIG),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str, code: ExitCode):
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr

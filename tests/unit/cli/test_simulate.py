"""``decentral simulate``: the arithmetic has its tests in tests/unit/sim/test_utilisation.py."""

import json

import pytest
from typer.testing import CliRunner

from decentral.cli.app import app
from decentral.errors import ExitCode
from decentral.sim import table4
from decentral.sim.utilisation import Model, Swarm, methods, utilisation

OWN = ("--parameters", "1e9", "--layers", "24", "--step-time", "0.1", "--bandwidth", "100mbit")


def run(*arguments: str):
    return CliRunner().invoke(app, ["simulate", "utilisation", *arguments])


def test_own_model_on_an_own_line():
    result = run(*OWN, "--workers", "4", "--latency", "0.05", "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {row["method"]: row for row in json.loads(result.stdout)["rows"]}
    model, swarm = Model(1e9, 24, 0.1), Swarm(4, 0.05)
    expected = {method.name: utilisation(model, method, 100e6, swarm) for method in methods()}
    assert {name: row["utilisation"] for name, row in rows.items()} == expected
    assert rows["data parallel"]["bits_per_s_for_95"] is None
    assert 4e9 < rows["+ fp4"]["bits_per_s_for_95"] < 5e9


def test_the_table_names_shares_and_what_would_be_enough():
    result = run(*OWN, "--latency", "0.05")
    assert result.exit_code == 0
    title, header, *rows = result.stdout.splitlines()
    assert "1G parameters, 2 workers" in title
    assert header.split() == ["method", "with", "100mbit", "95%", "needs"]
    assert rows[0].split() == ["data", "parallel", "0.1%", "out", "of", "reach"]
    assert rows[-1].split()[:2] == ["+", "fp4"]
    assert rows[-1].endswith("gbit")


def test_without_a_model_the_papers_table_stands_beside_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table4, "MODELS", {"1B": table4.MODELS["1B"]})
    result = run()
    assert result.exit_code == 0
    _, header, *rows = result.stdout.splitlines()
    assert header.split() == ["model", "method", "50%", "80%", "90%", "95%", "99%", "ratio"]
    assert len(rows) == 5
    assert "(86.8)" in rows[0]
    assert rows[1].split()[-1] == "1.00-1.16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (OWN[:4], "--step-time and --bandwidth must be given too"),
        (("--workers", "4"), "are for your own model"),
        ((*OWN, "--workers", "1"), "workers must be at least 2, got 1"),
        ((*OWN, "--overlap", "100"), "below inner_steps = 100"),
        ((*OWN[:-1], "fast"), "a number and a unit"),
        ((*OWN[:-1], "-5mbit"), "a bandwidth must be at least 0"),
        ((*OWN, "--step-time", "0"), "the time of a step must be finite and above 0"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str):
    result = run(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr

"""``decentral codecs`` on the toy task."""

import json

import pytest
import torch
from typer.testing import CliRunner

from decentral.cli import codec_report
from decentral.cli.app import app
from decentral.codecs.codec import codec_names, make_codec
from decentral.codecs.defaults import default_pull_codec
from decentral.errors import ConfigError, DivergedError, ExitCode
from decentral.ports.trainer import Seat
from decentral.workers import toy

NUMEL = 1000
TOY = ("--set", "task.factory=decentral.workers.toy:build", "--set", f"task.settings.numel={NUMEL}")


def run(*arguments: str):
    return CliRunner().invoke(app, ["codecs", *arguments])


def report(*arguments: str):
    result = run(*TOY, "--format", "json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def by_name(*arguments: str):
    return {row["name"]: row for row in report("--no-speed", *arguments)["codecs"]}


def toy_trainer(**settings) -> toy.ToyTrainer:
    return toy.build({"numel": NUMEL, **settings}, Seat(run_seed=0, stream_seed=0, total_steps=100))


def test_the_table_has_a_row_for_every_codec_from_many_bits_to_few():
    int8 = ("--set", "method.codec=int8-b128", "--set", "method.mean_codec=int8-b128")
    result = run(*TOY, *int8, "--no-speed")
    assert result.exit_code == 0
    source, header, *rows = (line.split() for line in result.stdout.splitlines())
    assert source[-7:] == ["decentral.workers.toy:build", "after", "10", "inner", "steps,", "1k", "values"]
    assert header == ["codec", "bits/value", "to", "fp32", "error", "used", "by"]
    assert {row[0] for row in rows} == set(codec_names())
    bits = [float(row[1]) for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert rows[0][:4] == ["fp32", "32.000", "1.0x", "0.0e+00"]
    (used,) = (row for row in rows if row[0] == "int8-b128")
    assert used[1:3] == ["8.128", "3.9x"]
    assert used[4:] == ["method.codec,", "method.mean_codec"]


def test_json_has_the_exact_bits_and_the_error_on_the_tasks_own_pseudo_gradient():
    found = report("--no-speed")
    assert found["schema_version"] == 1
    assert found["reference"] == {"task": "decentral.workers.toy:build", "inner_steps": 10, "numel": NUMEL}
    # 0 and 0 are what the command seeds its trainer with.
    delta_N = codec_report.pseudo_gradient(toy_trainer(), 10)
    assert {row["name"] for row in found["codecs"]} == set(codec_names())
    for row in found["codecs"]:
        codec = make_codec(row["name"])
        decoded_N = codec.decode(codec.encode(delta_N), NUMEL)
        assert row["bits_per_value"] == codec.nbytes(NUMEL) * 8 / NUMEL
        assert row["compression"] == pytest.approx(4 * NUMEL / codec.nbytes(NUMEL))
        assert row["relative_error"] == pytest.approx(float((decoded_N - delta_N).norm() / delta_N.norm()), rel=1e-4)
        assert row["encode_values_per_s"] is row["decode_values_per_s"] is None


def test_fp32_loses_nothing_and_the_others_something():
    rows = by_name("fp32", "int8-b128", "int8-b1024")
    assert rows["fp32"]["relative_error"] == 0
    assert 0 < rows["int8-b128"]["relative_error"] < rows["int8-b1024"]["relative_error"] < 0.02


def test_the_codecs_of_the_configuration_are_marked_and_always_there():
    rows = by_name("--set", "method.codec=int8-b99", "--set", "method.mean_codec=bf16")
    assert set(rows) == {*codec_names(), "int8-b99"}
    used = {name: row["used_by"] for name, row in rows.items() if row["used_by"]}
    assert used == {"int8-b99": ["method.codec"], "bf16": ["method.mean_codec"]}


def test_the_codecs_of_gossip_are_marked_where_they_have_an_effect():
    rows = by_name("--set", "method.name=noloco", "--set", "method.anchor_codec=bf16", "--set", "method.inner_steps=3")
    assert rows["bf16"]["used_by"] == ["method.anchor_codec"]
    assert [name for name, row in rows.items() if "method.pull_codec" in row["used_by"]] == [default_pull_codec().name]


def test_named_codecs_alone_are_shown_once_each():
    found = report("--no-speed", "fp16", "int8-b100", "fp16")
    assert [row["name"] for row in found["codecs"]] == ["fp16", "int8-b100"]


def test_speed_is_measured_on_one_thread(monkeypatch):
    monkeypatch.setattr(codec_report, "SPEED_NUMEL", 5000)
    seen = []

    class Spy:
        name = "spy"

        def nbytes(self, numel):
            return 4 * numel

        def encode(self, x_N):
            seen.append((x_N.numel(), torch.get_num_threads()))
            return make_codec("fp32").encode(x_N)

        def decode(self, payload, numel):
            return make_codec("fp32").decode(payload, numel)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (row,) = codec_report.measure([Spy()], torch.ones(NUMEL), with_speed=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert row.speed.encode > 0
    assert row.speed.decode > 0
    assert seen[0] == (NUMEL, 1)
    assert set(seen[1:]) == {(5000, 1)}


def test_the_table_shows_speeds(monkeypatch):
    monkeypatch.setattr(codec_report, "SPEED_NUMEL", 5000)
    result = run(*TOY, "fp32", "--set", "method.codec=fp32", "--set", "method.mean_codec=bf16")
    _, header, row = result.stdout.splitlines()
    assert "encode M/s  decode M/s" in header
    assert len(row.split()) == 7


@pytest.mark.parametrize(
    ("steps", "taken"), [("3", 10), ("10", 10), ("25", 25)], ids=["too few", "enough", "more than enough"]
)
def test_the_pseudo_gradient_comes_from_a_whole_round_and_from_ten_steps_at_least(steps, taken):
    found = report("--no-speed", "fp32", "--set", f"method.inner_steps={steps}")
    assert found["reference"]["inner_steps"] == taken


def test_a_pseudo_gradient_is_the_anchor_minus_the_parameters():
    trainer = toy_trainer()
    delta_N = codec_report.pseudo_gradient(trainer, 5)
    # The toy starts at zero.
    torch.testing.assert_close(delta_N, -torch.cat(list(trainer.parameters().values())))


def test_a_trainer_that_does_not_move_is_refused(monkeypatch):
    trainer = toy_trainer()
    monkeypatch.setattr(trainer, "train_steps", lambda first_step, count: None)
    with pytest.raises(ConfigError, match="No parameter has changed after 5 inner steps"):
        codec_report.pseudo_gradient(trainer, 5)


def test_a_trainer_that_diverges_is_refused(monkeypatch):
    trainer = toy_trainer()
    poison = {"layers.0.weight": torch.full((NUMEL // 4,), torch.nan)}
    monkeypatch.setattr(trainer, "train_steps", lambda first_step, count: trainer.load(poison))
    with pytest.raises(DivergedError, match="not finite after 5 inner steps"):
        codec_report.pseudo_gradient(trainer, 5)


@pytest.mark.parametrize(
    ("arguments", "message", "hint", "code"),
    [
        (["int8-128"], "unknown codec 'int8-128'", "did you mean int8-b128?", ExitCode.CONFIG),
        (["--set", "method.codec=int7"], "unknown codec 'int7'", "did you mean int", ExitCode.CONFIG),
        (["--set", "method.codc=fp32"], "unknown key 'method.codc'", "'method.codec'", ExitCode.CONFIG),
        (["--set", "task.settings.numl=3"], "numl", "numel", ExitCode.CONFIG),
        (["--config", "none.toml"], "Cannot read the configuration none.toml", "", ExitCode.CONFIG),
        (["--set", "worker.device=cuda"], "the toy task runs on the CPU", "--device cpu", ExitCode.INCAPABLE),
        (["--data", " "], "--data has an empty path.", "variable", ExitCode.USAGE),
    ],
)
def test_a_mistake_on_the_command_line_has_its_own_text_and_code(arguments, message, hint, code):
    result = run(*TOY, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert hint in result.stderr


def test_text_that_is_not_there_is_named(tmp_path):
    result = run("--data", str(tmp_path / "gone"))
    assert (result.exit_code, result.stdout) == (ExitCode.DATA, "")
    assert str(tmp_path / "gone") in result.stderr

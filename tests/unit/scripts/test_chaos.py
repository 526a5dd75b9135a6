"""What does not hold is written down, whatever else goes wrong on the way."""

import argparse
from pathlib import Path

import pytest

from scripts.benches.lib.chaos import run_chaos, verdict, violations_in
from scripts.benches.lib.command import BenchError
from scripts.benches.lib.report import Record, read


def test_violations_are_kept_with_those_of_the_end(tmp_path: Path) -> None:
    def play(folder: Path) -> None:
        report["folder"] = str(folder)
        with violations_in(report, "lone: "):
            try:
                raise BenchError("anchors differ")
            finally:
                raise BenchError("processes are left")

    report: Record = {"seed": 1}
    options = argparse.Namespace(out=tmp_path / "out", folder=tmp_path)
    assert run_chaos("chaos", options, report, play, lambda made: verdict(made, "all held.")) == 1
    assert read(options.out, {})["violations"] == ["lone: processes are left", "lone: anchors differ"]
    assert (tmp_path / "out.md").read_text().splitlines() == [
        "* **violation**: lone: processes are left",
        "* **violation**: lone: anchors differ",
    ]


def test_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report: Record = {}
    options = argparse.Namespace(out=tmp_path / "out", folder=None)
    assert run_chaos("chaos", options, report, lambda folder: None, lambda made: verdict(made, "all held.")) == 0
    assert (tmp_path / "out.md").read_text() == "* No violation: all held."
    assert capsys.readouterr().err == ""

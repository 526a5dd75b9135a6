"""``decentral audit``: which journals it reads, what it shows, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from decentral.errors import ExitCode
from tests.unit.cli.test_runs import ran
from tests.unit.monitor.test_audit import mixed

A, B = "QmAAAAaaaaaa", "QmBBBBbbbbbb"


def write(folder: Path, peer: str, *lines: dict[str, Any], run: str = "demo-1", method: str = "diloco") -> Path:
    folder.mkdir(parents=True)
    started = {"event": "started", "run": run, "peer": peer}
    text = "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in (started, *lines))
    (folder / "journal.jsonl").write_text(text)
    (folder / "config.toml").write_text(f'[method]\nname = "{method}"\n')
    return folder


def test_workers_that_agree_and_one_that_does_not(tmp_path: Path) -> None:
    members = {"members": [A, B]}
    a = write(tmp_path / "a", A, mixed(0, **members), mixed(1, **members))
    b = write(tmp_path / "b", B, mixed(0, **members))
    found = ran("audit", a, b)
    assert found.exit_code == ExitCode.OK, found.output
    assert "demo-1: 2 of 2 workers' journals, rounds 0 to 1" in found.stdout
    assert "no contradictions" in found.stdout
    with (b / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"time": 2.0, **mixed(1, "other", **members)}) + "\n")
    found = ran("audit", a, b)
    assert found.exit_code == ExitCode.DEGRADED
    assert "round 1: different anchors: aaaaaa have d; bbbbbb have other" in found.stdout
    found = ran("audit", a, b, "--round", 1)
    assert "aaaaaa  mixed with aaaaaa, bbbbbb, anchor d" in found.stdout
    parsed = json.loads(ran("audit", a, b, "--format", "json").stdout)
    assert parsed["schema"] == 1
    assert [each["kind"] for each in parsed["differences"]] == ["anchors"]
    assert [sync["round"] for sync in parsed["syncs"]] == [0, 1]


def test_who_was_proven_to_lie_is_named(tmp_path: Path) -> None:
    proven = {"event": "restrained", "round": 1, "fragment": 0, "peer": B, "kind": "proven", "ratio": 0.0}
    found = ran("audit", write(tmp_path / "a", A, mixed(0, members=[A, B]), proven, mixed(1, members=[A])))
    assert "proven to lie and barred in 1" in found.stdout


def test_a_local_run_is_read_by_its_workers_and_a_gossip_has_no_common_anchor(tmp_path: Path) -> None:
    write(tmp_path / "run" / "workers" / "0", A, mixed(0, "x", members=[A, B]), method="noloco")
    write(tmp_path / "run" / "workers" / "1", B, mixed(0, "y", members=[A, B]), method="noloco")
    (tmp_path / "run" / "journal.jsonl").write_text("")
    assert ran("audit", tmp_path / "run").exit_code == ExitCode.OK


def test_only_the_latest_run_of_a_folder_counts_and_an_empty_one_has_a_code(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", A, mixed(7), {"event": "started", "run": "demo-2", "peer": A})
    found = ran("audit", folder)
    assert found.exit_code == ExitCode.EMPTY
    assert "demo-2: 1 of 1 workers' journals, no round" in found.stdout


@pytest.mark.parametrize(("case", "told"), [("runs", "several runs"), ("none", "no journal"), ("start", "whose it is")])
def test_what_cannot_be_audited_is_refused(tmp_path: Path, case: str, told: str) -> None:
    a, b = write(tmp_path / "a", A), write(tmp_path / "b", B, run="demo-9" if case == "runs" else "demo-1")
    if case == "none":
        (b / "journal.jsonl").unlink()
    if case == "start":
        (b / "journal.jsonl").write_text(json.dumps({"time": 1.0, **mixed(0)}) + "\n")
    if case == "odd":
        write(tmp_path / "c", "QmCCCC", mixed(0, absent=[["one"]]))
    found = ran("audit", a, b, *tmp_path.glob("c"))
    assert found.exit_code in (ExitCode.USAGE, ExitCode.CONFIG, ExitCode.MISMATCH)
    assert told in found.stderr

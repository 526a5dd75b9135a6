"""What the doctor makes of what it is told; how it asks is in tests/process/test_nat.py."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from decentral import __version__
from decentral.adapters.address import Address
from decentral.adapters.reach import Dialled, Reached, Sight, Way
from decentral.adapters.speed import Speed
from decentral.cli.app import app
from decentral.engine.hello import Hello
from decentral.errors import ExitCode
from decentral.run import doctor, machine
from decentral.run.findings import Finding, Mark
from decentral.run.reachable import advice, in_words
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

A, B = PeerId("Qm" + "1" * 38 + "AAAAAA"), PeerId("Qm" + "1" * 38 + "BBBBBB")

UNKNOWN = Reached(Way.UNKNOWN)


def sight(
    by: PeerId = A,
    dialled: Dialled = Dialled.OPEN,
    *,
    why: str = "",
    host: str = "203.0.113.7",
    port: int = 5,
    ahead_s: float = 0.0,
) -> Sight:
    return Sight(by, dialled, why, 31337, Address(host, port), ahead_s, 0.01)


CLOSED = sight(dialled=Dialled.CLOSED, why="203.0.113.7:31337 did not answer in 2 s.")


def hello(*workers: Presence, version: str = __version__) -> Hello:
    return Hello(A, 8, version, "demo-1", b"", tuple((worker, 0.0) for worker in workers))


def node(reached: Reached = UNKNOWN) -> Any:
    return SimpleNamespace(reached=reached, directory=object())


@pytest.mark.parametrize(
    ("reached", "mark", "words", "fix"),
    [
        (
            Reached(Way.DIRECT, sight()),
            Mark.FINE,
            "others reach this worker at 203.0.113.7:31337 (dialled by AAAAAA)",
            "",
        ),
        (
            Reached(Way.RELAYED, CLOSED),
            Mark.NOTE,
            "only through a relay, because 203.0.113.7:31337 did not",
            "ufw 31337; or forward",
        ),
        (
            Reached(Way.NONE, CLOSED),
            Mark.MEND,
            "do not reach this worker at all, because 203.0.113.7",
            "ufw 31337; or forward",
        ),
    ],
)
def test_how_others_reach_it_and_what_to_do(reached: Reached, mark: Mark, words: str, fix: str) -> None:
    found = doctor._port(node(reached), [], "ufw {port}")
    assert (found.mark, found.text) == (mark, in_words(reached))
    assert words in found.text
    assert fix in found.fix
    assert ("forward" in advice(reached, "")) is (mark is not Mark.FINE)


@pytest.mark.parametrize(
    ("sights", "mark"),
    [
        ([], Mark.NOTE),
        ([CLOSED], Mark.MEND),
        ([CLOSED, sight(dialled=Dialled.OTHER)], Mark.FINE),  # a worker that runs here
    ],
)
def test_a_port_that_a_worker_has_is_asked_about_all_the_same(sights: Sequence[Sight], mark: Mark) -> None:
    assert doctor._port(node(), sights, "").mark is mark


@pytest.mark.parametrize(
    ("sights", "mark", "words"),
    [
        ([sight()], Mark.FINE, "takes two workers to tell"),
        ([sight(port=5), sight(B, port=5)], Mark.FINE, "cone"),
        ([sight(port=5), sight(B, port=6)], Mark.NOTE, "symmetric"),
        ([sight(host="127.0.0.1"), sight(B, host="127.0.0.1", port=6)], Mark.FINE, "no router translates"),
    ],
)
def test_the_kind_of_router(sights: Sequence[Sight], mark: Mark, words: str) -> None:
    found = doctor._router(node(), sights)
    assert found is not None
    assert found.mark is mark
    assert words in found.text


def test_a_firewall_is_told_of_and_whether_others_come_through() -> None:
    assert doctor._firewall("", 5).mark is Mark.FINE
    assert doctor._firewall("ufw {port}", 5, Mark.FINE).fix == ""
    closed = doctor._firewall("ufw {port}", 5, Mark.MEND)
    assert (closed.mark, closed.fix) == (Mark.NOTE, "ufw 5")


@pytest.mark.parametrize(
    ("way", "mark", "words"),
    [
        (Way.DIRECT, Mark.FINE, "none is needed"),
        (Way.RELAYED, Mark.FINE, "a place for this machine: /ip4/203.0.113.9/"),
        (Way.NONE, Mark.NOTE, "no worker of this swarm has a place"),
        (Way.INTRODUCED, Mark.NOTE, "no worker of this swarm has a place"),
    ],
)
def test_whether_somebody_relays_for_it(way: Way, mark: Mark, words: str) -> None:
    asked = SimpleNamespace(reached=Reached(way, CLOSED), addresses=lambda: ["/ip4/203.0.113.9/tcp/31400/p2p/A"])
    found = doctor._relay(asked)  # type: ignore[arg-type]
    assert found is not None
    assert (found.mark, words in found.text) == (mark, True)
    assert ("--relay any" in found.fix) is (mark is Mark.NOTE)
    assert doctor._relay(node()) is None  # a worker of this machine has the port


def test_a_clock_that_is_off_is_to_be_set() -> None:
    assert doctor._clock([sight(ahead_s=-0.5)]) == Finding(
        "clock", Mark.FINE, "this clock is 0.5 s ahead of the others'"
    )
    late = doctor._clock([sight(ahead_s=9.0), sight(ahead_s=0.0), sight(ahead_s=8.0)])
    assert late is not None
    assert (late.mark, late.text) == (Mark.MEND, "this clock is 8.0 s behind the others'")


def test_a_round_is_told_by_what_the_others_moved() -> None:
    metrics = Metrics(rounds_in=10, sent_bytes=10_000_000, received_bytes=20_000_000)
    worker = Presence(A, "demo-1", 1, State.TRAINING, 10, 0, "", 3.0, metrics)
    slow, fast = Speed(A, 0.04, 1e6, 1e6), Speed(B, 0.04, 1e9, 1e9)
    found = [doctor._round(hello(worker), speeds) for speeds in ([slow], [fast])]
    assert [finding.mark for finding in found if finding] == [Mark.FINE, Mark.FINE]
    assert "1.0MB up and 2.0MB down, 2.0 s here, after 3.0 s of inner steps of the others: 60%" in found[0].text  # type: ignore[union-attr]
    low = doctor._round(hello(worker), [Speed(A, 0.04, 1e5, 1e6)])
    assert low is not None
    assert (low.mark, "23%" in low.text, "--codec" in low.fix) == (Mark.NOTE, True, True)
    assert "not known" in doctor._round(hello(), [slow]).text  # type: ignore[union-attr]


def test_the_machine_is_looked_at_and_what_it_lacks_is_to_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_available_bytes", lambda: 1000)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2000))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (256, 4096))
    found = asyncio.run(doctor.examine(doctor.Patient(folder=tmp_path / "new", device="cuda:77")))
    by = {finding.about: finding for finding in found}
    assert {about for about, finding in by.items() if finding.mark is Mark.MEND} == {
        "device",
        "memory",
        "disk",
        "files",
    }
    assert by["files"].fix == "ulimit -n 4096"
    assert __version__ in by["versions"].text
    assert "decentral doctor ADDR" in by["port"].fix


def test_nobody_there_is_a_finding_and_the_exit_code_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_findings", lambda folder, device: iter(()))
    result = CliRunner().invoke(app, ["doctor", "127.0.0.1:1", "--json", "--port", "31999"])
    assert result.exit_code == ExitCode.DEGRADED
    read = json.loads(result.stdout)
    assert (read["schema"], read["mend"]) == (1, 1)
    assert read["findings"][-1]["text"] == "Nothing listens on 127.0.0.1:1 (connection refused)."
    assert CliRunner().invoke(app, ["doctor", " "]).exit_code == ExitCode.USAGE


def test_findings_are_printed_with_their_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def examine(patient: doctor.Patient) -> list[Finding]:
        return [Finding("clock", Mark.FINE, "right\x1b[31m"), Finding("port", Mark.NOTE, "relayed", "open it")]

    monkeypatch.setattr(doctor, "examine", examine)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == ExitCode.OK
    assert "\x1b" not in result.stdout
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["fine", "clock", "right?[31m"],
        ["note", "port", "relayed"],
        ["fix:", "open", "it"],
    ]

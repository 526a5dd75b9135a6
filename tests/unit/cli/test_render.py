import io
import math

import pytest
from rich.console import Console

from decentral.cli.render import amount, console, loss, size, view
from decentral.monitor.status import RunFacts, StatusReport, summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

REASON = "out of sync: its weights differ from other workers' in round 123456"


def report(**changes: object) -> StatusReport:
    metrics = Metrics(
        loss=2.34567,
        tokens=123_456_789,
        tokens_per_s=98_765.4,
        compute_s=90.0,
        waiting_s=9.0,
        transfer_s=1.0,
        sent_bytes=12_345_678,
        received_bytes=987_654_321,
        dp_bytes=1_234_567_890,
    )
    facts = RunFacts("demo-3f2a", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")
    well = Presence(PeerId("QmWell"), "demo-3f2a", 1, State.TRAINING, 39, 0, "d", metrics=metrics)
    ill = Presence(PeerId("QmIll1"), "demo-3f2a", 1, State.REPAIRING, 1, 0, "d", metrics=Metrics(reason=REASON))
    return summarize(facts, [(well, 0.4), (ill, 12345678.0)], ttl_s=math.inf)


def rendered(width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(view(report(), width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_of_a_row_is_cut(width):
    lines = rendered(width)
    assert max(map(len, lines)) <= width
    assert "…" not in "\n".join(lines)
    row = next(line for line in lines if line.startswith("QmWell"))
    for cell in ("training", "39", "2.346", "98.8k", "90%/9%/1%", "988MB", "12.3MB", "0s"):
        assert cell in row.split()


def test_a_narrow_terminal_has_reasons_below_the_table_and_a_wide_one_in_the_row():
    assert rendered(80)[-1] == f"QmIll1: {REASON}"
    assert any(line.startswith("QmIll1  repairing") and REASON[:20] in line for line in rendered(120))


def test_a_pipe_gets_one_line_a_worker_without_colour():
    file = io.StringIO()
    screen = console(file)
    screen.print(view(report(), screen.width))
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert "\x1b" not in file.getvalue()
    assert "sent 12.3MB (data-parallel 1.2GB, 100x)" in lines[0]
    assert lines[2].startswith("QmIll1")
    assert lines[2].rstrip().endswith(REASON)


def test_what_a_stranger_writes_cannot_steer_the_terminal():
    facts = RunFacts("demo", "diloco", "fp32", 1, 1, "0", "c")
    metrics = Metrics(reason="\x1b[2J\x07[red]gone[/red]\nerror: fake")
    evil = Presence(PeerId("Qm\x1b[31m"), "demo", 1, State.TRAINING, 0, 0, "d", metrics=metrics)
    file = io.StringIO()
    console(file).print(view(summarize(facts, [(evil, 0.0)], ttl_s=6.0), 200))
    assert "\x1b" not in file.getvalue()
    assert "\x07" not in file.getvalue()
    assert "?[2J?[red]gone[/red]?error: fake" in file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (98_765.4, "98.8k"), (3.2e6, "3.2M"), (7e9, "7G"), (1e30, "1e+04T")],
)
def test_amounts(value, text):
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0B"), (999, "999B"), (1234, "1.2kB"), (12_345_678, "12.3MB"), (987_654_321, "988MB")]
)
def test_sizes(value, text):
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.34567, "2.346"), (math.nan, "-"), (math.inf, "inf"), (123456.0, "1e+05")]
)
def test_losses(value, text):
    assert loss(value) == text

import io
import math

import pytest
from rich.console import Console

from decentral.cli.render import console, ranges, view
from decentral.monitor.figures import amount, loss, mbit, percent, size, sparkline
from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

FACTS = RunFacts("demo-3f2a", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")
REASON = "out of sync: its weights differ from other workers' in round 123456"


def report(**changes: object) -> StatusReport:
    metrics = Metrics(
        loss=2.34567,
        tokens=123_456_789,
        tokens_per_s=98_765.4,
        compute_s=90.0,
        waiting_s=9.0,
        transfer_s=1.0,
        wall_s=100.0,
        peak_sent_bytes_per_s=2.5e6,
        delay_steps=7,
        num_groups=4,
        sent_bytes=12_345_678,
        received_bytes=987_654_321,
        dp_bytes=1_234_567_890,
    )
    well = Presence(PeerId("QmWell"), "demo-3f2a", 1, State.TRAINING, 39, 0, "d", metrics=metrics)
    pace = Metrics(reason=REASON, delay_steps=7, num_groups=4)
    ill = Presence(PeerId("QmIll1"), "demo-3f2a", 1, State.REPAIRING, 1, 0, "d", metrics=pace)
    return summarize(FACTS, [(well, 0.4), (ill, 12345678.0)], ttl_s=math.inf, ended={ill.peer: REASON})


def rendered(width: int) -> list[str]:
    return drawn(report(), width)


def drawn(of: StatusReport, width: int, max_workers: int | None = None) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(view(of, width, max_workers))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 150])
def test_no_line_is_wider_than_the_terminal_and_nothing_of_a_row_is_cut(width):
    lines = rendered(width)
    assert max(map(len, lines)) <= width
    assert "…" not in "\n".join(lines)
    row = next(line for line in lines if line.startswith("QmWell"))
    for cell in ("training", "39", "2.346", "98.8k", "90%/9%/1%", "988MB", "12.3MB", "0s"):
        assert cell in row.split()
    assert ("1.0/20.0" in row.split()) is (width > 80)
    assert "overlap 7 steps, 4 launches a round" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [80, 180])
def test_the_reason_is_in_the_row_if_there_is_room_and_else_below_the_table(width):
    lines = rendered(width)
    assert (lines[-1] == f"QmIll1: {REASON}") is (width == 80)
    assert any(line.startswith("QmIll1  lost") and line.endswith(REASON) for line in lines) is (width == 180)


def test_the_widest_figures_of_a_worker_fit_80_columns():
    most = Metrics(
        loss=1e9, tokens_per_s=1e18, compute_s=1.0, wall_s=1.0, sent_bytes=(1 << 62) - 1, received_bytes=(1 << 62) - 1
    )
    record = Presence(PeerId("QmMost"), "demo-3f2a", 1, State.CATCHING_UP, 9_999_999, 0, "", metrics=most)
    shown = drawn(summarize(FACTS, [(record, 99_999.0)], ttl_s=math.inf), 80)
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    assert shown[-1].split()[:3] == ["QmMost", "catching", "up"]


@pytest.mark.parametrize(
    ("paces", "line", "row"),
    [
        (((0, 1), (0, 1)), "int8-b128 | round", ["0.00/0.00", "0s"]),
        (((7, 4), (7, 4)), "int8-b128, overlap 7 steps, 4 launches a round | round", ["0.00/0.00", "0s"]),
        (((12, 4), (7, 4)), "int8-b128, 4 launches a round | round", ["0.00/0.00", "12", "0s"]),
        (((7, 4), (7, 2)), "int8-b128, overlap 7 steps | round", ["0.00/0.00", "4", "0s"]),
    ],
)
def test_the_pace_is_told_once_if_it_is_the_same_for_all_and_else_of_each_worker(paces, line, row):
    records = [
        (Presence(PeerId(f"Qm{n}"), "demo-3f2a", 1, State.TRAINING, 9, 0, "", metrics=Metrics(**pace)), 0.0)
        for n, pace in enumerate({"delay_steps": delay, "num_groups": groups} for delay, groups in paces)
    ]
    shown = drawn(summarize(FACTS, records, ttl_s=6.0), 400)
    assert line in shown[0]
    assert next(each.split() for each in shown if each.startswith("Qm0"))[8:] == row


def test_where_not_all_workers_fit_those_that_are_not_well_come_first():
    shown = drawn(report(), 80, max_workers=1)
    assert [line.split()[0] for line in shown if line.startswith("Qm")] == ["QmIll1", "QmIll1:"]
    assert "and 1 more" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_a_note_is_shown_of_a_worker_that_contributes(width):
    noted = Presence(PeerId("QmFull"), "demo-3f2a", 1, State.TRAINING, 1, 0, "d", metrics=Metrics(note="cannot save"))
    shown = drawn(summarize(FACTS, [(noted, 0.4)], ttl_s=math.inf), width)
    assert shown[0].startswith("degraded")
    assert "contributes, but cannot save" in "\n".join(shown)


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


def gossip(*metrics: Metrics, width: int) -> list[str]:
    facts = RunFacts("demo", "noloco", "int8-b128", 40, 3, "0.1.0", "c0ffee", gossip=True)
    records = [
        (Presence(PeerId(f"Qm-{index:06}"), "demo", 1, State.TRAINING, 9999, 0, "", metrics=m), 99_999.0)
        for index, m in enumerate(metrics)
    ]
    file = io.StringIO()
    screen = Console(file=file, width=width, highlight=False)
    screen.print(view(summarize(facts, records, ttl_s=math.inf), width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def busy(**metrics: object) -> Metrics:
    return Metrics(loss=2.5, tokens_per_s=98_765.4, compute_s=34, waiting_s=33, transfer_s=33, **metrics)


@pytest.mark.parametrize("width", [80, 120, 150])
def test_a_gossip_run_has_partners_and_spread_and_nothing_is_cut(width):
    traffic = {"sent_bytes": 123_456_789, "received_bytes": 234_567_890}
    one = busy(partners="000001,000002,000003", spread=0.1234, **traffic)
    lines = gossip(one, busy(partners="000000", spread=0.01, **traffic), busy(), width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    assert "spread 6.7%" in " ".join(lines[:2])
    rows = [line.split() for line in lines if line.startswith("00000")]
    assert [cells[5:7] for cells in rows] == [["000001+2", "12.3%"], ["000000", "1.0%"], ["-", "-"]]
    assert ("123MB" in rows[0]) is ("235MB" in rows[0]) is (width > 100)


@pytest.mark.parametrize("width", [80, 120])
def test_what_went_wrong_with_partners_is_below_the_table(width):
    well = busy(rounds_alone=4, rounds_in=40)
    alone = busy(rounds_alone=5, rounds_in=40)
    broken = busy(one_sided=3, avoids="000000,000001")
    assert gossip(well, alone, broken, width=width)[-2:] == [
        "000001: alone in 5 of 40 rounds",
        "000002: swaps not confirmed: 3; avoids 000000, 000001",
    ]


def test_a_run_without_gossip_shows_nothing_of_partners():
    facts = RunFacts("demo", "diloco", "fp32", 40, 3, "0", "c")
    metrics = busy(partners="000001", spread=0.1, rounds_alone=9, one_sided=3, avoids="000001")
    file = io.StringIO()
    screen = console(file)
    record = Presence(PeerId("QmWell"), "demo", 1, State.TRAINING, 1, 0, "d", metrics=metrics)
    screen.print(view(summarize(facts, [(record, 0.4)], ttl_s=6.0), screen.width))
    shown = file.getvalue()
    assert len(shown.splitlines()) == 3
    assert [word for word in ("partner", "spread", "10.0%", "000001", "alone", "confirmed") if word in shown] == []


def test_partners_of_a_stranger_neither_steer_the_terminal_nor_widen_the_table():
    evil = "\x1b[2J\nwith no comma and of many characters"
    lines = gossip(busy(partners=evil, avoids=evil, one_sided=1), width=120)
    assert "\x1b" not in "".join(lines)
    assert "?[2J?w" in lines[-2].split()
    assert lines[-1] == "000000: swaps not confirmed: 1; avoids ?[2J?with no comma and of many characters"


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
    ("value", "text"),
    [(0.0, "0.0%"), (0.0123, "1.2%"), (9.999, "999.9%"), (1e300, ">999%"), (math.nan, "-")],
)
def test_shares(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (1250.0, "0.01"), (12_400.0, "0.1"), (2.5e6, "20.0"), (12_495_000.0, "100"), (1e300, "99999")],
)
def test_rates(value, text):
    assert mbit(value) == text


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -1.0, 1e308, 5e-324])
def test_absurd_times_and_rates_of_a_stranger_do_not_widen_the_table(absurd):
    times = {"wall_s": absurd, "compute_s": absurd, "waiting_s": absurd, "transfer_s": absurd}
    most = (1 << 62) - 1
    evil = Metrics(**times, peak_sent_bytes_per_s=absurd, sent_bytes=most, delay_steps=most, num_groups=most)
    lines = gossip(evil, busy(), width=160)
    assert max(map(len, lines)) <= 160
    assert "…" not in "".join(lines)
    assert [word for word in ("nan", "inf", "e+308") if word in "".join(lines)] == []


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


def pipeline(width: int) -> list[str]:
    facts = RunFacts("demo-3f2a", "diloco", "int8-b128", 40, 5, "0.1.0", "c0ffee", num_stages=3)
    traffic = {"sent_bytes": 123_456_789, "received_bytes": 234_567_890, "activation_bytes": 98_765_432}
    head = busy(failures="2:1,3:2", resent=5, **traffic)
    healed = "stage 2 blended from 1 and 3: loss 2.310 before, 2.877 after"
    told = [
        ("QmHead", "0", "", head),
        ("QmSame", "1,2", "", busy(queue=3, microbatch_s=0.0123, recoveries=1, recovery=healed, **traffic)),
        *((f"Qm{index:04}", "1", "", busy(queue=99_999, microbatch_s=1e6, **traffic)) for index in range(4)),
        ("QmTake", "", "3", busy(**traffic)),
        ("QmRest", "", "", busy()),
    ]
    records = [
        (Presence(PeerId(name), "demo-3f2a", 1, State.TRAINING, 9999, 0, "", holds=h, takes=t, metrics=m), 99_999.0)
        for name, h, t, m in told
    ]
    file = io.StringIO()
    screen = Console(file=file, width=width, highlight=False)
    screen.print(view(summarize(facts, records, ttl_s=math.inf), width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 150])
def test_a_pipeline_has_a_line_for_each_stage_and_nothing_is_cut(width):
    lines = pipeline(width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    for words in ("diloco, int8-b128, 3 stages", "activations 691MB", "5 sent again", "loss 2.310 before, 2.877 after"):
        assert words in text
    rows = {line.split()[0]: line.split() for line in lines if line[:1].isdigit() or line.startswith("head ")}
    assert rows["head"][:7] == ["head", "QmHead", "34%", "0", "-", "0", "0"]
    assert rows["1"][:5] == ["1", "Qm0000,", "Qm0001,", "Qm0002", "+2"]
    assert rows["2"][:7] == ["2", "QmSame", "34%", "3", "12", "1", "1"]
    assert rows["3"][:7] == ["3", "nobody", "-", "0", "-", "2", "0"]
    assert "stage 3 has no holder: QmTake takes it" in text


def test_a_worker_of_a_pipeline_shows_its_stages():
    rows = {line.split()[0]: line for line in pipeline(80) if line.startswith("Qm")}
    places = {name: row[8:].split("training")[0].strip() for name, row in rows.items()}
    assert places == {
        "QmHead": "0",
        "QmSame": "1-2",
        **{f"Qm{index:04}": "1" for index in range(4)},
        "QmTake": "takes 3",
        "QmRest": "spare",
    }


@pytest.mark.parametrize(("stages", "text"), [((), ""), ((0,), "0"), ((1, 2, 3), "1-3"), ((0, 2, 3, 5), "0,2-3,5")])
def test_ranges_of_stages(stages, text):
    assert ranges(stages) == text


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([5.0], "▁"),
        ([0.0, 7.0, math.nan, 3.0, math.inf], "▁█ ▄ "),
        ([float(n) for n in range(16)], "▁▂▃▄▅▆▇█"),
        ([1.0, 3.0, math.nan, math.nan] * 4, "▁ " * 4),
    ],
)
def test_a_sparkline_is_as_wide_as_it_may_be_and_shows_lowest_to_highest(values, bars):
    assert sparkline(values, 8) == bars


def test_who_is_banned_is_named() -> None:
    banned = (PeerId("QmLiar1"), PeerId("QmLiar2"))
    assert "banned: mLiar1, mLiar2" in drawn(summarize(FACTS, [], ttl_s=math.inf, banned=banned), 80)

import json
import logging
import math

import pytest

from decentral.monitor.events import (
    Avoided,
    Joined,
    OneSided,
    PeerLost,
    Pulled,
    Resent,
    RolledBack,
    RoundAborted,
    RoundMixed,
    StageLost,
    StagePlaced,
    StageRecovered,
    Started,
    Stopped,
    StretchDone,
    Validated,
)
from decentral.run.logs import install
from decentral.types import PeerId

ME, OTHER = PeerId("QmMe-aaaaaa"), PeerId("QmIt-bbbbbb")


@pytest.fixture(autouse=True)
def restore_logging():
    root = logging.getLogger("decentral")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


def test_a_round_is_told_in_one_line_with_who_was_not_in_it(capsys):
    journal = install("info", "text")
    journal.record(Started("run", ME, "0.1", "cpu", "c0"))
    journal.record(StretchDone(3, 75, 1000, 2.5, 1.0))
    journal.record(RoundMixed(3, 0, (ME,), ((OTHER, "no answer"),), 1.0, 0.5, 4_200_000, 0, 0.8, 0.1, "d"))
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert "INFO    aaaaaa r3 mixed 1 of 2 workers, loss 2.500, sent 4.2MB, waited 0.8 s" in line
    assert line.endswith("; without bbbbbb (no answer)")


def test_a_rollback_is_a_warning_that_says_where_to_and_why(capsys):
    install("warning", "text").record(RolledBack(60, 40, 1.5, "the validation loss is 9"))
    line = "WARNING -      r60 rolled back to the anchor of round 40 (validation loss 1.500): the validation loss is 9"
    assert line in capsys.readouterr().err


def test_an_aborted_round_is_a_warning_that_says_what_becomes_of_the_work(capsys):
    install("warning", "text").record(RoundAborted(4, 0, "deadline", "2 of 3 shards", (), 5.0))
    assert "WARNING -      r4 not mixed (deadline): 2 of 3 shards; the work stays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("members", "gossip", "text"),
    [
        ((ME, OTHER), (0.0123, 4.0), "swapped with bbbbbb, spread 1.2%, loss -, sent 10B"),
        ((ME,), (math.nan, 4.0), "stepped alone, for no partner came within 4.0 s, loss -"),
        ((ME,), (), "stepped alone, loss -"),
        ((ME, OTHER), (), "mixed 2 of 2 workers, loss -"),
    ],
)
def test_a_round_of_a_gossip_names_the_partner_or_says_that_there_was_none(capsys, members, gossip, text):
    journal = install("info", "text")
    journal.record(Started("run", ME, "0.1", "cpu", "c0"))
    journal.record(RoundMixed(3, 0, members, (), 1.0, 0.5, 10, 0, 0.8, 0.1, "", *gossip))
    assert f"r3 {text}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("compared", "text"),
    [
        ((), ""),
        ((0,), ", compared with nobody's: too few answered"),
        ((7,), ", compared with those of 7 others"),
        ((7, (ME, OTHER)), ", compared with those of 7 others; far from most are those of aaaaaa, bbbbbb"),
    ],
)
def test_a_newcomer_says_with_whose_weights_it_compared_its_own(capsys, compared, text):
    install("info", "text").record(Joined(OTHER, 18, 3_300_000, 0.1, 0.0, *compared))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"downloaded the weights of round 18 from bbbbbb: 3.3MB in 0.1 s{text}")


def test_swaps_and_what_went_wrong_with_them_are_told(capsys):
    journal = install("info", "text")
    journal.record(Pulled(5, 0, OTHER, 0.025))
    journal.record(OneSided(6, 0, OTHER))
    journal.record(Avoided(OTHER, "no answer", 30.0))
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "INFO    -      r5 swapped anchors with bbbbbb, spread 2.5%",
        "WARNING -      r6 bbbbbb did not confirm the swap: it may not have its half of it",
        "WARNING -      r6 avoids bbbbbb for 30 s: no answer",
    ]


def test_what_becomes_of_a_pipeline_is_told(capsys):
    journal = install("debug", "text")
    journal.record(Started("run", ME, "0.1", "cpu", "c0"))
    journal.of_stage(0).record(StageLost(2, 30, 2.5))
    journal.of_stage(0).record(Resent(10, 3, 2, "bbbbbb is gone"))
    journal.record(StagePlaced(2, 0, "blend", (OTHER, ME), 30, 4_200_000, 1.25))
    journal.of_stage(2).record(StageRecovered(2, "blend", (OTHER, ME), 30, 2.5, 3.25, 4.0))
    journal.record(StagePlaced(0, 1, "initial", (), 0, 0, 0.5))
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines()[1:]]
    assert lines == [
        "WARNING aaaaaa s0 r0 nobody holds stage 2 any more, at step 30, loss 2.500",
        "DEBUG   aaaaaa s0 r0 sends micro-batch 3 of batch 10 again: bbbbbb is gone",
        "INFO    aaaaaa r0 holds stage 2 from step 30 on (blend of bbbbbb and aaaaaa): 4.2MB in 1.2 s",
        "INFO    aaaaaa s2 r0 stage 2 is back at step 30 (blend), loss 2.500 before and 3.250 after, 4.0 s",
        "INFO    aaaaaa r0 holds the head from step 0 on (initial): 0B in 0.5 s",
    ]


def test_every_stage_has_rounds_of_its_own(capsys):
    journal = install("info", "json")
    head, stage = journal.of_stage(0), journal.of_stage(3)
    head.record(Validated(8, 2.25))
    stage.record(Stopped("asked to stop", 5, 100))
    head.record(PeerLost(OTHER, "silent"))
    journal.record(PeerLost(OTHER, "silent"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line.get("stage"), line["round"]) for line in lines] == [(0, 8), (3, 5), (0, 8), (None, 0)]


def test_levels_are_obeyed(capsys):
    journal = install("warning", "text")
    journal.record(PeerLost(OTHER, "silent"))
    assert capsys.readouterr().err == ""


def test_json_lines_carry_the_same(capsys):
    journal = install("info", "json")
    journal.record(Started("run", ME, "0.1", "cpu", "c0"))
    journal.record(Validated(8, 2.25))
    journal.record(Stopped("run is done", 9, 1_500_000))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["peer"], line["round"]) for line in lines[1:]] == [
        ("info", "aaaaaa", 8),
        ("info", "aaaaaa", 9),
    ]
    assert lines[1]["message"] == "validation loss 2.250"


def test_an_exception_is_logged_with_its_traceback(capsys):
    install("info", "json")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("decentral.engine").exception("failed")
    assert "ValueError: boom" in json.loads(capsys.readouterr().err)["traceback"]

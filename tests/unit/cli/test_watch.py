import io
import math

import pytest
from rich.console import Console

from decentral.cli.watch import Screen, _rates
from decentral.errors import UnreachableError
from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

FACTS = RunFacts("demo-3f2a", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")


def told(num_workers: int, *, num_lost: int = 0, loss: float = 2.5) -> StatusReport:
    rows = [
        (
            Presence(PeerId(f"Qm{n:04}"), "demo-3f2a", 1, State.TRAINING, 3, 0, "d", metrics=Metrics(loss=loss)),
            99.0 if n >= num_workers - num_lost else 0.5,
        )
        for n in range(num_workers)
    ]
    return summarize(FACTS, rows, ttl_s=6.0)


class Seen:
    """A terminal with a clock."""

    def __init__(self, width: int, height: int) -> None:
        self.console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=width, height=height)
        self.now = 0.0
        self.screen = Screen(self.console, "a:1", lambda: self.now)

    def lines(self) -> list[str]:
        segments = self.console.render_lines(self.screen.frame(), pad=False)
        return ["".join(segment.text for segment in line).rstrip() for line in segments]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (200, 50)])
def test_a_swarm_that_is_too_large_for_the_terminal_fits_all_the_same_and_the_lost_are_there(width, height):
    seen = Seen(width, height)
    seen.screen.take(told(64, num_lost=1))
    lines = seen.lines()
    assert height - 2 <= len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any(line.startswith("Qm0063  lost") for line in lines)
    shown = sum(line[:6].startswith("Qm") and ":" not in line[:7] for line in lines)
    assert f"and {64 - shown} more" in lines


def test_the_way_of_a_figure_is_drawn_from_left_to_right():
    seen = Seen(80, 24)
    for loss in (4.0, 3.0, math.nan, 2.0):
        seen.screen.take(told(2, loss=loss))
        seen.now += 2.0
    lines = {line[:12].rstrip(): line[12:].split(maxsplit=1) for line in seen.lines()}
    assert lines["loss"] == ["2.000", "█▅ ▁"]
    assert lines["val loss"] == ["-"]
    assert lines["contributing"] == ["2", "▁▁▁▁"]


def test_the_rate_is_of_what_was_sent_since_the_sample_before_and_never_below_zero():
    assert list(_rates([0.0, 2.0, 4.0, 6.0], [100, 400, 400, 50])) == [0.0, 150.0, 0.0, 0.0]


def test_while_nobody_answers_the_last_answer_stays_and_its_age_is_told():
    seen = Seen(80, 24)
    assert seen.lines() == ["asking a:1 ..."]
    seen.screen.take(UnreachableError("Nothing listens there."))
    assert seen.lines() == ["Nothing listens there."]
    seen.screen.take(told(2))
    seen.now = 30.0
    assert seen.lines()[0] == "a:1 answered 30s ago; Ctrl-C ends this"
    seen.screen.take(UnreachableError("Nothing listens there."))
    seen.now = 90.0
    assert seen.lines()[0] == "no answer for 2min: Nothing listens there."
    assert any(line.startswith("Qm0000  training") for line in seen.lines())

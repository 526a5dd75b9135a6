from types import SimpleNamespace

import torch

from decentral.engine.judge import KeepWork, TakeStep
from decentral.engine.meter import Meter
from decentral.engine.replica import Applied
from decentral.engine.report import Held, Report
from decentral.engine.syncs import Kept, Stepped
from decentral.exchange.api import Aborted, Reason, Verdict
from decentral.monitor.events import Event, Paced, RoundAborted, RoundMixed
from decentral.outer.rule import Mixed
from decentral.ports.transport import Traffic
from decentral.types import PeerId, SyncKey

ME, OTHER = PeerId("me"), PeerId("other")
KEY = SyncKey(3, 1)
HELD = Held(waiting_s=0.25, transfer_s=0.5)


def made() -> tuple[Report, Meter, list[Event]]:
    """A report, what it tells the meter, and what it tells the journal."""
    events: list[Event] = []
    meter = Meter(1, "", "")
    transport = SimpleNamespace(peer_id=ME, traffic=lambda: Traffic(7, 8))
    journal, clock = SimpleNamespace(record=events.append), SimpleNamespace(monotonic=lambda: 5.0)
    parts = SimpleNamespace(journal=journal, transport=transport, clock=clock, note=str)
    report = Report(parts, meter)  # type: ignore[arg-type]
    return report, meter, events


def test_what_an_exchange_took_goes_to_the_journal_and_only_what_training_stood_still_to_others() -> None:
    mixed = Mixed(torch.zeros(2), (ME, OTHER))
    aborted = Aborted(Reason.DEADLINE, "too late")
    for outcome, kind in ((mixed, RoundMixed), (aborted, RoundAborted)):
        report, meter, events = made()
        verdict = Verdict(outcome, waiting_s=20.0, transfer_s=30.0)
        if isinstance(outcome, Mixed):
            end = Stepped(KEY, verdict, TakeStep(outcome, None, (), again=False), Applied("d", 1.0, 2.0))
            report.mixed(end, held=HELD, delay_steps=9)
            assert (events[0].transfer_s, events[0].delay_steps) == (30.0, 9)
        else:
            report.aborted(Kept(KEY, verdict, KeepWork(outcome, repair=False)), held=HELD)
        assert [type(event) for event in events] == [kind]
        assert (events[0].waiting_s, events[0].held_s, events[0].held_waiting_s) == (20.0, 0.75, 0.25)
        seen = meter.metrics(5.0)
        assert (seen.waiting_s, seen.transfer_s, seen.rounds_in + seen.rounds_out) == (0.25, 0.5, 1)


def test_the_journal_hears_of_another_pace_only() -> None:
    report, meter, events = made()
    for pace in ((0, 4), (0, 4), (3, 4), (3, 2), (3, 2)):
        report.paced(*pace)
    assert events == [Paced(0, 4), Paced(3, 4), Paced(3, 2)]
    assert (meter.metrics(5.0).delay_steps, meter.metrics(5.0).num_groups) == (3, 2)

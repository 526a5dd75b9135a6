import math

from msgspec.structs import replace

from decentral.engine.meter import Meter
from decentral.ports.trainer import StepReport, Steps
from decentral.swarm.presence import Metrics
from decentral.types import PeerId

A, B, C = PeerId("QmA-aaaaaa"), PeerId("QmB-bbbbbb"), PeerId("QmC-cccccc")


def figures(meter: Meter) -> Metrics:
    meter.moved(120.0, sent_bytes=11, received_bytes=22)
    return meter.metrics(120.0)


def test_counters() -> None:
    meter = Meter(total_numel=1000, version="9.9", device="cpu")
    assert math.isnan(figures(meter).loss)
    meter.start(100.0)
    meter.trained(5, Steps(5, StepReport(tokens=50, loss=3.0, grad_norm=1.0), 2.0), num_members=4)
    meter.trained(8, Steps(3, StepReport(tokens=30, loss=2.0, grad_norm=1.0, data_s=0.25), 1.0), num_members=1)
    meter.synced(108.0, counted=True, waiting_s=4.0, transfer_s=0.5)
    meter.downloaded(0.25)
    meter.trained(9, Steps(1, StepReport(tokens=10, loss=1.5, grad_norm=1.0, data_s=0.5), 0.5), num_members=2)
    meter.synced(110.0, counted=False, waiting_s=1.0, transfer_s=0.0)
    meter.validated(3, 0.75)
    found = figures(meter)
    assert math.isnan(found.spread)
    # A record with a NaN is equal to none.
    assert replace(found, spread=0.0) == Metrics(
        step=9,
        tokens=90,
        tokens_per_s=5.0,
        loss=1.5,
        val_loss=0.75,
        val_round=3,
        compute_s=3.5,
        data_s=0.75,
        waiting_s=5.0,
        transfer_s=0.75,
        wall_s=20.0,
        sent_bytes=11,
        received_bytes=22,
        # 2 * 3/4 * 4 bytes * 1000 * 5 steps, nothing alone, 2 * 1/2 * 4 bytes * 1000 * 1 step.
        dp_bytes=30_000 + 0 + 4_000,
        rounds_in=1,
        rounds_out=1,
        version="9.9",
        device="cpu",
        spread=0.0,
    )
    assert meter.tokens == 90


def test_two_rounds_at_one_moment_do_not_divide_by_zero() -> None:
    meter = Meter(1, "", "")
    meter.start(5.0)
    meter.synced(5.0, counted=True, waiting_s=0.0, transfer_s=0.0)
    assert figures(meter).tokens_per_s == 0.0


def test_steps_without_tokens_have_no_loss_and_keep_the_last_one() -> None:
    meter = Meter(1, "", "")
    meter.trained(1, Steps(1, StepReport(tokens=10, loss=3.0, grad_norm=1.0), 0.5), num_members=1)
    meter.trained(2, Steps(1, StepReport(tokens=0, loss=math.nan, grad_norm=1.0), 0.5), num_members=1)
    assert (figures(meter).loss, figures(meter).step) == (3.0, 2)


def test_a_validation_without_result_keeps_the_last_one() -> None:
    meter = Meter(1, "", "")
    meter.validated(4, 2.0)
    meter.validated(8, math.nan)
    assert figures(meter).val_loss == 2.0


def test_reasons_are_short_enough_for_a_record() -> None:
    meter = Meter(1, "", "")
    meter.explain("x" * 1000)
    assert 0 < len(figures(meter).reason) <= 200
    meter.explain("")
    assert figures(meter).reason == ""


def test_before_the_first_swap_nothing_is_known_of_partners() -> None:
    seen = figures(Meter(1, "", ""))
    assert (seen.partners, seen.rounds_alone, seen.one_sided, seen.avoids) == ("", 0, 0, "")
    assert math.isnan(seen.spread)


def test_a_swap_tells_partners_and_spread_and_one_without_a_spread_keeps_the_last() -> None:
    meter = Meter(1, "", "")
    meter.swapped([A, B], 0.25)
    assert (figures(meter).partners, figures(meter).spread) == ("aaaaaa,bbbbbb", 0.25)
    meter.swapped([C], math.nan)
    assert (figures(meter).partners, figures(meter).spread) == ("cccccc", 0.25)


def test_a_step_alone_has_no_partner_and_leaves_the_spread() -> None:
    meter = Meter(1, "", "")
    meter.swapped([A], 0.25)
    meter.stepped_alone()
    meter.stepped_alone()
    assert (figures(meter).partners, figures(meter).spread, figures(meter).rounds_alone) == ("", 0.25, 2)


def test_unconfirmed_swaps_add_up_and_avoided_peers_are_those_of_now() -> None:
    meter = Meter(1, "", "")
    meter.unconfirmed(2)
    meter.unconfirmed(1)
    meter.avoiding({B, A})
    assert (figures(meter).one_sided, figures(meter).avoids) == (3, "aaaaaa,bbbbbb")
    meter.avoiding([])
    assert figures(meter).avoids == ""


def test_who_was_restrained_is_said_until_the_next_round_of_that_fragment() -> None:
    meter = Meter(1, "", "")
    meter.restrained(0, [PeerId("Qmbbbbbb"), PeerId("Qmaaaaaa")])
    meter.restrained(1, [PeerId("Qmbbbbbb")])
    assert figures(meter).restrained == "aaaaaa,bbbbbb"
    meter.restrained(0, ())
    assert figures(meter).restrained == "bbbbbb"


def test_any_number_of_peers_fits_into_a_record() -> None:
    many = [PeerId(f"Qm-{index:06}") for index in range(1000)]
    meter = Meter(1, "", "")
    meter.swapped(many, 0.1)
    meter.avoiding(many)
    for text in (figures(meter).partners, figures(meter).avoids):
        assert 100 < len(text) <= 200
        assert set(text.split(",")) <= {peer[-6:] for peer in many}


def test_peaks_are_those_of_windows_of_a_second_at_least_and_totals_the_last() -> None:
    meter = Meter(1, "", "")
    # Before the first reading nothing is known of when; the burst within a second is averaged over its window.
    for now, sent in ((50.0, 10_000), (50.5, 10_900), (51.0, 11_000), (53.0, 15_000), (53.2, 15_900), (54.0, 16_000)):
        meter.moved(now, sent_bytes=sent, received_bytes=3 * sent)
    seen = meter.metrics(54.0)
    assert (seen.peak_sent_bytes_per_s, seen.peak_received_bytes_per_s) == (2000.0, 6000.0)
    assert (seen.sent_bytes, seen.received_bytes) == (16_000, 48_000)


def test_the_pace_is_that_of_now_and_no_time_passes_before_training() -> None:
    meter = Meter(1, "", "")
    first = meter.metrics(70.0)
    assert (first.delay_steps, first.num_groups, first.wall_s) == (0, 1, 0.0)
    meter.start(70.0)
    meter.paced(5, 3)
    meter.paced(7, 2)
    seen = meter.metrics(75.0)
    assert (seen.delay_steps, seen.num_groups, seen.wall_s) == (7, 2, 5.0)

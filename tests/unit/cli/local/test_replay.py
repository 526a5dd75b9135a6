"""What a replay of journals shows of a gossip, of fragments and of overlap; the rest of it is in ``test_local``."""

import math
from pathlib import Path

import pytest

from decentral.cli.local.replay import Replay
from decentral.monitor.events import Avoided, Event, OneSided, Paced, Pulled, RoundMixed, Started, StretchDone
from decentral.monitor.journal import JournalReader, JsonLinesJournal
from decentral.swarm.presence import Metrics, State
from decentral.types import PeerId

ME, A, B = PeerId("QmMe-aaaaaa"), PeerId("QmIt-bbbbbb"), PeerId("QmIt-cccccc")
STARTED = Started("demo", ME, "0.1.0", "cpu", "c0")


def mixed(round_: int, *partners: PeerId, spread: float = math.nan, deadline_s: float = 4.0) -> RoundMixed:
    return RoundMixed(round_, 0, (ME, *partners), (), 1.0, 0.5, 0, 0, 0.0, 0.0, "own", spread, deadline_s)


def replayed(path: Path, *events: tuple[float, Event], gossip: bool = True) -> Replay:
    """After these events, each at its time."""
    times = iter([0.0, *(time for time, _ in events)])
    journal = JsonLinesJournal(path / "journal.jsonl", lambda: next(times), 1_000_000)
    for event in (STARTED, *(event for _, event in events)):
        journal.record(event)
    journal.close()
    replay = Replay(total_numel=1000, tokens_per_step=10, num_workers=4, rounds=9, gossip=gossip)
    for line in JournalReader(path / "journal.jsonl").read():
        replay.take(line)
    return replay


def metrics(replay: Replay) -> Metrics:
    assert replay.presence is not None
    return replay.presence.metrics


def test_a_round_with_partners_tells_who_and_how_far(tmp_path):
    seen = metrics(replayed(tmp_path, (1.0, mixed(0, A, B, spread=0.25))))
    assert (seen.partners, seen.spread, seen.rounds_alone, seen.rounds_in) == ("bbbbbb,cccccc", 0.25, 0, 1)


def test_a_round_in_which_it_waited_in_vain_is_one_alone(tmp_path):
    seen = metrics(replayed(tmp_path, (1.0, mixed(0, A, spread=0.25)), (2.0, mixed(1))))
    assert (seen.partners, seen.spread, seen.rounds_alone) == ("", 0.25, 1)


def test_swaps_at_random_moments_count_and_its_steps_are_not_alone_for_want_of_a_partner(tmp_path):
    step = mixed(0, deadline_s=math.nan)
    seen = metrics(replayed(tmp_path, (1.0, step), (2.0, Pulled(1, 0, A, 0.5)), (3.0, step)))
    assert (seen.partners, seen.spread, seen.rounds_alone) == ("bbbbbb", 0.5, 0)


def test_one_sided_swaps_add_up(tmp_path):
    assert metrics(replayed(tmp_path, (1.0, OneSided(0, 0, A)), (2.0, OneSided(0, 0, B)))).one_sided == 2


@pytest.mark.parametrize(("time", "avoids"), [(30.9, "bbbbbb,cccccc"), (31.0, "cccccc"), (42.0, "")])
def test_a_peer_is_avoided_for_as_long_as_was_said(tmp_path, time, avoids):
    avoided = (1.0, Avoided(A, "no answer", 30.0)), (2.0, Avoided(B, "no answer", 40.0))
    assert metrics(replayed(tmp_path, *avoided, (time, mixed(0, A)))).avoids == avoids


def test_a_worker_started_again_avoids_nobody(tmp_path):
    avoided = (1.0, Avoided(A, "no answer", 30.0))
    assert metrics(replayed(tmp_path, avoided, (2.0, STARTED), (3.0, mixed(0)))).avoids == ""


def test_data_parallel_training_would_have_been_among_all_workers_not_the_group(tmp_path):
    stretch = StretchDone(1, 2, 10, 1.0, 1.0)
    seen = metrics(replayed(tmp_path, (1.0, mixed(0, A)), (2.0, stretch)))
    assert seen.dp_bytes == 2 * 3 / 4 * 4 * 1000


def test_the_digest_of_an_own_anchor_is_not_one_to_agree_on(tmp_path):
    rounds = [(1.0, mixed(0, A)), (2.0, mixed(1, A))]
    assert replayed(tmp_path, *rounds).presence.digest == ""
    assert replayed(tmp_path, *rounds, gossip=False).presence.digest == "own"


def anchor(round_: int, fragment: int, digest: str, *, sent_bytes: int = 0) -> RoundMixed:
    return RoundMixed(round_, fragment, (ME, A), (), 1.0, 0.5, sent_bytes, 0, 0.0, 0.0, digest)


def test_workers_are_compared_by_the_anchors_with_which_a_round_began_whatever_they_have_landed_since(tmp_path):
    events = [anchor(round_, fragment, f"{round_}{fragment}") for round_ in range(3) for fragment in range(2)]
    seen = []
    for count in range(1, len(events) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        presence = replayed(
            folder, *((float(n), event) for n, event in enumerate(events[:count])), gossip=False
        ).presence
        assert presence is not None
        seen.append((presence.round, presence.digest))
    # How many fragments there are is known from the second round on.
    assert seen == [(1, ""), (1, ""), (1, "00/01"), (2, "10/11"), (2, "10/11"), (3, "20/21")]


def test_a_worker_whose_exchanges_overlap_trains_on_after_a_launch(tmp_path):
    launched = StretchDone(0, 5, 50, 2.0, 1.0)
    for delay_steps, state in ((0, State.SYNCING), (3, State.TRAINING)):
        folder = tmp_path / str(delay_steps)
        folder.mkdir()
        replay = replayed(folder, (1.0, Paced(delay_steps, 2)), (2.0, launched), gossip=False)
        assert replay.presence is not None
        assert replay.presence.state is state
        assert (metrics(replay).delay_steps, metrics(replay).num_groups) == (delay_steps, 2)


def test_time_counts_from_the_first_inner_step_and_peaks_are_those_between_rounds(tmp_path):
    gathered = (30.0, StretchDone(0, 5, 50, 2.0, 4.0))
    rounds = [(31.0, anchor(0, 0, "a", sent_bytes=100)), (36.0, anchor(1, 0, "b", sent_bytes=600))]
    seen = metrics(replayed(tmp_path, gathered, *rounds, gossip=False))
    assert (seen.wall_s, seen.sent_bytes, seen.peak_sent_bytes_per_s) == (10.0, 600, 100.0)

"""What the bench of attacks reads from journals, and how liars in processes of their own know what the honest bring."""

from pathlib import Path
from typing import Any

import torch

from decentral.types import PeerId, SyncKey
from scripts.benches.attacks import cells, clean, named, sent_a_round
from scripts.benches.attacks_worker import Files


def mixed(round: int, *absent: str, sent_bytes: int = 0) -> dict[str, Any]:
    whom = [[peer, "late"] for peer in absent]
    return {"event": "round_mixed", "round": round, "absent": whom, "sent_bytes": sent_bytes}


def test_a_liar_is_noticed_when_it_is_left_out_or_restrained_and_an_honest_one_falsely() -> None:
    events = {
        "A": [mixed(0), {"event": "restrained", "round": 1, "peer": "L"}, mixed(1, "L")],
        "B": [mixed(0), mixed(1), {"event": "avoided", "peer": "M"}, {"event": "round_aborted"}],
        "C": [mixed(0), {"event": "restrained", "round": 0, "peer": "A"}, mixed(1, "B")],
    }
    assert named(events, {"L", "M"}) == {"noticed_by": 2, "noticed_after": 2, "false_alarms": 1, "aborted": 1}
    assert named({"A": [mixed(0)]}, {"L"})["noticed_after"] is None


def test_bytes_of_a_round_are_those_after_the_first() -> None:
    assert sent_a_round([mixed(0, sent_bytes=100), mixed(4, sent_bytes=900)]) == 200
    assert sent_a_round([]) == 0


def test_a_run_is_compared_with_the_honest_one_of_its_seed_and_steps() -> None:
    def run(attack: str, step_s: float, loss: float) -> dict[str, Any]:
        defence = "nothing" if attack == "none" else "default"
        noticed = {"noticed_by": 0, "noticed_after": None, "false_alarms": 0, "ended": 6}
        return {"attack": attack, "defence": defence, "seed": 0, "step_s": step_s, "loss": loss, **noticed}

    runs = [run("none", 0.1, 2.0), run("none", 1.0, 4.0), run("negate", 1.0, 5.0)]
    assert clean(runs) == {(0, 0.1): 2.0, (0, 1.0): 4.0}
    assert cells(runs, "negate", "default") == ("+25.0% (1)", "nobody")
    assert cells([runs[0], runs[2]], "negate", "default") == ("", "")


def test_liars_know_from_files_what_the_honest_bring(tmp_path: Path) -> None:
    honest, liar, key = Files(tmp_path, 2), Files(tmp_path, 2), SyncKey(3, 0)
    honest.note(key, PeerId("A"), torch.ones(4))
    assert not liar.complete(key)
    honest.note(SyncKey(2, 0), PeerId("B"), torch.zeros(4))
    assert not liar.complete(key)
    honest.note(key, PeerId("B"), 2 * torch.ones(4))
    assert liar.complete(key)
    assert [values_N.tolist() for values_N in liar.honest(0)] == [4 * [1.0], 4 * [2.0]]
    assert not liar.complete(SyncKey(3, 1))

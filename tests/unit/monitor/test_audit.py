"""Journals side by side: what each worker did, and what cannot all be so."""

from typing import Any

from decentral.monitor.audit import Key, Kind, audit
from decentral.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
ALL = [A, B, C]


def mixed(round_: int, digest: str = "d", members: list[PeerId] | None = None, **more: Any) -> dict[str, Any]:
    fields = {"members": ALL if members is None else members, "digest": digest, "absent": [], "delta_norm": 1.0}
    return {"event": "round_mixed", "round": round_, "fragment": 0, **fields, **more}


def test_those_who_agree_contradict_nobody() -> None:
    found = audit("run", {peer: [mixed(0), mixed(1, "e")] for peer in ALL}, common_anchor=True)
    assert not found.differences
    assert not found.contradicts
    assert [(one.peer, one.first, one.last, one.mixed) for one in found.workers] == [(peer, 0, 1, 2) for peer in ALL]


def test_another_anchor_with_the_same_members_is_a_contradiction() -> None:
    journals = {A: [mixed(3)], B: [mixed(3, "x")], C: [mixed(3)]}
    [found] = audit("run", journals, common_anchor=True).differences
    assert (found.key, found.kind) == (Key(3, 0, -1), Kind.ANCHORS)
    assert found.sides == (("d", (A, C)), ("x", (B,)))
    assert not audit("run", journals, common_anchor=False).differences


def test_a_member_that_mixed_with_others_is_a_contradiction_and_a_cut_swarm_is_not() -> None:
    lied = audit("run", {A: [mixed(0)], B: [mixed(0)], C: [mixed(0, "x", members=[C])]}, common_anchor=True)
    assert [each.kind for each in lied.differences] == [Kind.MEMBERS]
    assert lied.contradicts
    halves = {A: [mixed(0, members=[A, B])], B: [mixed(0, members=[A, B])], C: [mixed(0, "x", members=[C])]}
    cut = audit("run", halves, common_anchor=True)
    assert [each.kind for each in cut.differences] == [Kind.APART]
    assert not cut.contradicts


def test_what_others_say_of_one_counts_once_a_round() -> None:
    silent = {"absent": [[C, "silent"]], "members": [A, B]}
    restrained = [{"event": "restrained", "round": 1, "fragment": 0, "peer": C, "kind": "length", "ratio": 9.0}]
    journals = {peer: [mixed(0, **silent), *restrained, mixed(1)] for peer in (A, B)}
    found = audit("run", journals, common_anchor=True)
    [of_c] = [one for one in found.workers if one.peer == C]
    assert not of_c.has_journal
    assert (of_c.absent, of_c.restrained) == ({"silent": 1}, {"length": 1})
    assert found.syncs[Key(1, 0, -1)][A].restrained == {C: "length"}


def test_rounds_without_a_result_and_repairs_are_counted_and_lines_of_other_kinds_left_out() -> None:
    journal = [
        {"event": "started", "run": "run", "peer": A},
        {"event": "round_aborted", "round": 0, "fragment": 0, "reason": "behind", "detail": "far", "absent": None},
        {"event": "repaired", "round": 4, "donor": B, "reason": "behind"},
        {"event": "sat_out", "round": 5, "reason": "not finite"},
        mixed(5, stage=2),
    ]
    found = audit("run", {A: journal}, common_anchor=True)
    [one, *others] = found.workers
    assert (one.mixed, one.aborted, one.repaired, one.sat_out, one.first, one.last) == (1, 1, 1, 1, 0, 5)
    assert [other.peer for other in others] == [B, C]
    assert found.syncs[Key(0, 0, -1)][A].reason == "behind: far"
    assert Key(5, 0, 2) in found.syncs

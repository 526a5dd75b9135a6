"""Who is let in: proofs between two gates, and what the founder's policy makes of them."""

import pytest

from decentral.adapters.gate import Gate, Meeting, Pass, Role
from decentral.adapters.invitation import Invitation, Key, fingerprint
from decentral.adapters.policy import MAX_BANS, MAX_INVITATIONS, MAX_POLICY_BYTES, Policy, read_policy, signed
from decentral.errors import FrameError, NotAdmittedBy, UsageError
from decentral.types import PeerId

A, B, C = PeerId("QmA"), PeerId("QmB"), PeerId("QmC")
FOUNDER = Key(bytes(32))
PRINT = fingerprint(FOUNDER.public)
FIRST = Invitation(bytes(16), PRINT)
POLICY = Policy(FOUNDER.public, 0).with_invitation(FIRST.key().public)


def gate(own: PeerId, invitation: Invitation | None = FIRST, policy: Policy | None = None, **lists: object) -> Gate:
    """Of a peer with an invitation, or of the founder; a newcomer knows no policy."""
    key = invitation.key() if invitation is not None else FOUNDER
    founder = invitation.founder if invitation is not None else PRINT
    return Gate(own, Pass(key, founder, signed(policy, FOUNDER).data if policy else b""), **lists)  # type: ignore[arg-type]


def meet(caller: Gate, a: PeerId, callee: Gate, b: PeerId) -> NotAdmittedBy | None:
    meeting = Meeting(a, b, caller.nonce() + callee.nonce())
    return caller.conclude(callee.answer(caller.proof(Role.CALLER, meeting), meeting), meeting)


def test_two_who_were_invited_let_each_other_in_and_the_newcomer_learns_the_policy() -> None:
    newcomer, member = gate(A), gate(B, None, POLICY)
    assert newcomer.objection(B) is member.objection(A) is NotAdmittedBy.NO_PROOF
    assert meet(newcomer, A, member, B) is None
    assert newcomer.objection(B) is member.objection(A) is None
    assert newcomer.policy is not None
    assert newcomer.policy.policy == POLICY
    newcomer.forget(B)
    assert newcomer.objection(B) is NotAdmittedBy.NO_PROOF
    assert not newcomer.is_barred(B)


def test_an_invitation_of_nobody_and_a_swarm_of_somebody_else_are_turned_down() -> None:
    guessed, member = gate(A, Invitation(b"x" * 16, PRINT)), gate(B, None, POLICY)
    assert meet(guessed, A, member, B) is NotAdmittedBy.WRONG_TOKEN
    assert member.objection(A) is NotAdmittedBy.NO_PROOF
    assert guessed.policy is None
    impostor = Key.generate()
    theirs = Policy(impostor.public, 7).with_invitation(FIRST.key().public)
    other = Gate(B, Pass(impostor, fingerprint(impostor.public), signed(theirs, impostor).data))
    assert meet(gate(A), A, other, B) is NotAdmittedBy.WRONG_TOKEN
    # One who lets anybody in has still not shown that it was invited.
    newcomer, meeting = gate(A), Meeting(A, B, bytes(64))
    for forged in (other.proof(Role.CALLEE, meeting), b"", b"\x94\xa0\xc4\x00\xc4\x00\xc4\x00"):
        assert newcomer.conclude(forged, meeting) is NotAdmittedBy.IMPOSTURE
    assert newcomer.objection(B) is NotAdmittedBy.NO_PROOF


def test_a_proof_is_of_no_use_to_others_nor_again_nor_in_the_other_direction() -> None:
    caller, member = gate(A, policy=POLICY), gate(B, None, POLICY)
    meeting = Meeting(A, B, bytes(64))
    proof = caller.proof(Role.CALLER, meeting)
    for other in (Meeting(A, B, b"x" * 64), Meeting(C, B, bytes(64)), Meeting(A, C, bytes(64))):
        member.answer(proof, other)
        assert member.objection(other.caller) is NotAdmittedBy.NO_PROOF
    assert caller.conclude(caller.proof(Role.CALLER, meeting), meeting) is NotAdmittedBy.IMPOSTURE
    member.answer(proof, meeting)
    assert member.objection(A) is None


def test_who_is_banned_or_revoked_is_out_and_shown_that_the_founder_wants_it_so() -> None:
    for newer, why in (
        (POLICY.with_ban(A), NotAdmittedBy.BAN),
        (POLICY.without_invitation(FIRST.key().public), NotAdmittedBy.REVOCATION),
    ):
        out, member = gate(A, policy=POLICY), gate(B, None, POLICY)
        assert meet(out, A, member, B) is None
        told: list[int] = []
        member.on_policy.append(lambda policy, told=told: told.append(policy.policy.counter))  # type: ignore[misc]
        assert member.adopt(signed(newer, FOUNDER).data)
        assert told == [newer.counter]
        assert member.is_barred(A)
        assert out.own_objection() is None
        assert meet(out, A, member, B) is why
        assert out.own_objection() is why
        assert member.own_objection() is None
    assert POLICY.with_ban(A).without_ban(A).objection(A, FOUNDER.public) is None


def test_a_liar_cannot_put_anybody_out() -> None:
    worker, meeting = gate(A, policy=POLICY), Meeting(A, B, bytes(64))
    liar = Gate(B, Pass(FIRST.key(), PRINT, signed(POLICY, FOUNDER).data))
    forged = liar.proof(Role.CALLEE, meeting).replace(b"\x94\xa0", b"\x94\xa6banned", 1)
    assert worker.conclude(forged, meeting) is NotAdmittedBy.BAN
    assert worker.own_objection() is None
    with pytest.raises(FrameError, match="did not sign"):
        worker.adopt(signed(POLICY.with_ban(A), FIRST.key()).data)


def test_of_two_policies_the_newer_holds_everywhere() -> None:
    older, newer = signed(POLICY.with_ban(A), FOUNDER), signed(POLICY.with_ban(A).with_ban(B), FOUNDER)
    worker = gate(C, policy=POLICY)
    assert worker.adopt(newer.data)
    assert not worker.adopt(older.data)
    assert worker.is_barred(B)
    twin = signed(POLICY.with_ban(A).with_ban(C), FOUNDER)
    assert newer.is_newer_than(twin) is not twin.is_newer_than(newer)


def test_lists_of_this_machine_go_before_any_proof() -> None:
    assert gate(A, policy=POLICY, deny=[B]).is_barred(B)
    alone = gate(A, policy=POLICY, allow=[B])
    assert alone.is_barred(C)
    assert alone.objection(B) is NotAdmittedBy.NO_PROOF
    assert meet(gate(C), C, alone, A) is NotAdmittedBy.DENIAL
    assert Gate(A).objection(B) is None
    assert Gate(A, deny=[B]).is_barred(B)


def test_a_policy_has_bounds_and_travels_only_whole_and_signed() -> None:
    full = POLICY
    for number in range(MAX_INVITATIONS - 1):
        full = full.with_invitation(bytes([number]) * 32)
    for number in range(MAX_BANS):
        full = full.with_ban(PeerId(f"Qm{number:044}"))
    with pytest.raises(UsageError, match="invitations already"):
        full.with_invitation(b"y" * 32)
    with pytest.raises(UsageError, match="bans already"):
        full.with_ban(A)
    for number in range(MAX_INVITATIONS - 1):
        full = full.without_invitation(bytes([number]) * 32)
    parcel = signed(full, FOUNDER)
    assert len(parcel.data) < MAX_POLICY_BYTES
    assert read_policy(parcel.data, PRINT) == parcel
    with pytest.raises(UsageError, match="was revoked before"):
        full.without_invitation(bytes(32))
    with pytest.raises(UsageError, match="not of this swarm"):
        full.without_invitation(b"\xff" * 32)
    for spoilt in (parcel.data[:-1], parcel.data[:-1] + b"x", b""):
        with pytest.raises(FrameError):
            read_policy(spoilt, PRINT)
    with pytest.raises(FrameError, match="another founder"):
        read_policy(parcel.data, bytes(16))


def test_a_token_is_read_back_and_shown_nowhere_else() -> None:
    invitation = Invitation.create(PRINT)
    assert Invitation.parse(invitation.token()) == invitation
    assert invitation.secret.hex() not in repr(invitation)
    assert repr(invitation.secret) not in repr(invitation)
    for broken in ("", invitation.token()[:-1], invitation.token()[:-1] + "!"):
        with pytest.raises(ValueError, match="token has 43"):
            Invitation.parse(broken)

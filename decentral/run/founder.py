"""What a founder says of who may enter his swarm: asks a worker for the policy, and hands in the next one.

Imports no torch.
"""

from collections.abc import Callable, Iterable, Sequence

from decentral.adapters.gate import Pass
from decentral.adapters.invitation import Invitation, Key, fingerprint
from decentral.adapters.policy import Policy, signed
from decentral.adapters.transport import POLICY
from decentral.errors import AdmissionError, DecentralError, NotAdmittedBy, TransportError, UnreachableError, UsageError
from decentral.run.asking import asking
from decentral.types import PeerId

_TIMEOUT_S = 15.0
_HAND_IN_S = 10.0
#: Of a peer id, such as ``status`` shows.
_MIN_SUFFIX = 6


async def invite(addresses: Sequence[str], founder: Key) -> str:
    """Make a further invitation; the address of the worker that was asked, with its token.

    Raises:
        DecentralError: see ``_change``.
    """
    invitation = Invitation.create(fingerprint(founder.public))
    place = await _change(addresses, founder, lambda policy, _: policy.with_invitation(invitation.key().public))
    return f"{place}#{invitation.token()}"


async def revoke(addresses: Sequence[str], founder: Key, invitation: Invitation) -> None:
    """Have an invitation hold no longer: whoever came by it is out.

    Raises:
        DecentralError: see ``_change``.
    """
    await _change(addresses, founder, lambda policy, _: policy.without_invitation(invitation.key().public))


async def ban(addresses: Sequence[str], founder: Key, peer: str, *, undo: bool = False) -> PeerId:
    """Put a peer out, or let it in again; its full id.

    Args:
        addresses: of workers, tried in order.
        founder: his key.
        peer: its id, or the end of it if it is in the swarm or banned.
        undo: whether to take the ban back.

    Raises:
        DecentralError: see ``_change``; or nobody is meant, or several are.
    """
    meant: list[PeerId] = []

    def change(policy: Policy, workers: Sequence[PeerId]) -> Policy:
        meant.append(_meant(peer, policy.banned if undo else workers))
        return policy.without_ban(meant[-1]) if undo else policy.with_ban(meant[-1])

    await _change(addresses, founder, change)
    return meant[-1]


def _meant(text: str, peers: Iterable[PeerId]) -> PeerId:
    """The peer whose id is, or ends in, ``text``.

    Raises:
        UsageError: nobody, or several.
    """
    found = [peer for peer in peers if peer.endswith(text) and len(text) >= _MIN_SUFFIX]
    if len(found) == 1:
        return found[0]
    if len(text) > 40 and not found:
        return PeerId(text)  # whom nobody has heard of lately
    raise UsageError(
        f"{text!r} is {'nobody' if not found else 'the end of several ids'} there.",
        hint=f"Give the whole peer id, or its last {_MIN_SUFFIX} characters as `decentral status ADDR` shows them.",
    )


async def _change(addresses: Sequence[str], founder: Key, change: Callable[[Policy, Sequence[PeerId]], Policy]) -> str:
    """Have a new policy in force; the address of the worker that took it, who tells the others.

    Raises:
        UsageError: see ``Policy``.
        AdmissionError: the swarm is another founder's, or public.
        DecentralError: nobody can be asked, or another change came between.
    """
    held = Pass(founder, fingerprint(founder.public))
    async with asking(addresses, option="ADDR", timeout_s=_TIMEOUT_S, held=held) as (node, hello):
        if node.gate.policy is None:
            raise AdmissionError(NotAdmittedBy.OPENNESS)
        workers = [presence.peer for presence, _ in hello.workers]
        newer = signed(change(node.gate.policy.policy, workers), founder)
        try:
            reply = await node.transport.call(hello.peer, POLICY, newer.data, timeout_s=_HAND_IN_S, max_reply_bytes=1)
        except TransportError as err:
            raise UnreachableError(f"The worker did not take it: {err}") from err
        if reply != b"y":
            raise DecentralError("Another change came between.", hint="Give the command again.")
        return next(iter(await node.addresses_of(hello.peer)), addresses[0].partition("#")[0])

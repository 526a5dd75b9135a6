"""``decentral invite``, ``revoke`` and ``ban``: who may enter a private swarm, for its founder to say while it runs."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from decentral.cli import flags
from decentral.errors import ExitCode, UsageError
from decentral.types import short_id

_ADDRESS = typer.Argument(metavar="ADDR", help="Of any worker of the swarm.")
_FOUNDER = typer.Option(metavar="DIR", help="Folder of the worker that founded the swarm, which has the founder's key.")
_INVITATION = typer.Argument(metavar="TOKEN", help="Of the invitation, or an address that ends in it.")
_PEER = typer.Argument(metavar="PEER", help="Its peer id, or the end of it as `decentral status` shows it.")


def invite(
    address: Annotated[str, _ADDRESS],
    founder: Annotated[Path, _FOUNDER],
    debug: flags.Debug = False,
) -> int:
    """Make a further invitation, and print the command that joins by it."""
    from decentral.run import founder as says
    from decentral.run.access import founder_in

    joined = asyncio.run(says.invite([address], founder_in(founder)))
    print(f"decentral worker --join {joined}", flush=True)
    return ExitCode.OK


def revoke(
    address: Annotated[str, _ADDRESS],
    token: Annotated[str, _INVITATION],
    founder: Annotated[Path, _FOUNDER],
    debug: flags.Debug = False,
) -> int:
    """Have an invitation hold no longer: all workers that came by it are put out."""
    from decentral.adapters.invitation import Invitation
    from decentral.run import founder as says
    from decentral.run.access import founder_in

    try:
        invitation = Invitation.parse(token.rpartition("#")[2])
    except ValueError as err:
        raise UsageError(f"This is not the token of an invitation: {err}.") from None
    asyncio.run(says.revoke([address], founder_in(founder), invitation))
    print("revoked", flush=True)
    return ExitCode.OK


def ban(
    address: Annotated[str, _ADDRESS],
    peer: Annotated[str, _PEER],
    founder: Annotated[Path, _FOUNDER],
    undo: Annotated[bool, typer.Option("--undo", help="Let it in again.")] = False,
    debug: flags.Debug = False,
) -> int:
    """Put a worker out of the swarm. Under a new identity it comes back by its invitation: revoke that as well."""
    from decentral.run import founder as says
    from decentral.run.access import founder_in

    found = asyncio.run(says.ban([address], founder_in(founder), peer, undo=undo))
    print(f"{'let in again' if undo else 'banned'}: {found} (..{short_id(found)})", flush=True)
    return ExitCode.OK

"""What a worker needs to enter its private swarm, in its folder: readable by its owner alone.

The founder's folder has the founder's key as well, with which invitations are made and revoked and peers are banned.
Knows no node; imports no torch.
"""

import contextlib
import logging
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from decentral.adapters.gate import Pass
from decentral.adapters.invitation import Invitation, Key, fingerprint
from decentral.adapters.policy import MAX_POLICY_BYTES, Policy, SignedPolicy, read_policy, signed
from decentral.errors import ConfigError, FrameError, UsageError
from decentral.run.folder import ACCESS, OwnFile, read_json

_MAX_BYTES = 2 * MAX_POLICY_BYTES
_log = logging.getLogger(__name__)


class _File(OwnFile, frozen=True, kw_only=True):
    """The file as it is; bytes are base64."""

    token: str
    policy: bytes
    founder: Annotated[bytes, Meta(max_length=32)] = b""


@dataclass(frozen=True, slots=True)
class Access:
    """A worker's way into its swarm."""

    invitation: Invitation
    """By which it came, or of a founder the first one; others join by the same."""
    policy: bytes = b""
    """The newest that it knows; empty for a newcomer."""
    founder: Key | None = field(default=None, repr=False)
    """The founder's key, in the founder's folder only."""

    def held(self) -> Pass:
        """What it shows to others."""
        return Pass(self.founder or self.invitation.key(), self.invitation.founder, self.policy)

    def save(self, folder: Path) -> None:
        """Write it into the folder; it appears when it is complete.

        Raises:
            OSError: it cannot be written.
        """
        founder = self.founder.seed if self.founder is not None else b""
        packed = _File(token=self.invitation.token(), policy=self.policy, founder=founder)
        handle, part = tempfile.mkstemp(prefix=f".{ACCESS}.", dir=folder)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(packed) + b"\n")
            os.replace(part, folder / ACCESS)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def keep(self, policy: SignedPolicy, folder: Path) -> None:
        """Write a newer policy into the folder; a disk that is full is not what ends a worker."""
        try:
            replace(self, policy=policy.data).save(folder)
        except OSError as err:
            _log.error("cannot write who may enter the swarm to %s: %s", folder, err.strerror or err)


def new_access() -> Access:
    """Of a founder: his key, a first invitation, and the policy that it holds."""
    founder = Key.generate()
    invitation = Invitation.create(fingerprint(founder.public))
    policy = signed(Policy(founder.public, 0).with_invitation(invitation.key().public), founder)
    return Access(invitation, policy.data, founder)


def read_access(folder: Path) -> Access | None:
    """What a folder has; ``None`` if it is of a public swarm.

    Raises:
        ConfigError: it cannot be read, or is not what it should be.
    """
    path = folder / ACCESS
    try:
        found = read_json(path, _File, _MAX_BYTES)
        return None if found is None else _checked(found)
    except (ValueError, FrameError) as err:
        hint = "Move it away, and join again by an address that ends in #TOKEN."
        raise ConfigError(f"{path} is damaged: {err}.", hint=hint) from err


def founder_in(folder: Path) -> Key:
    """The founder's key in the folder of the worker that founded the run.

    Raises:
        ConfigError: see ``read_access``.
        UsageError: it is not there.
    """
    access = read_access(folder)
    if access is None or access.founder is None:
        raise UsageError(
            f"There is no founder's key in {folder}.",
            hint="It is in the folder (--out) of the worker that founded the swarm with --new, unless that is public.",
        )
    return access.founder


def _checked(found: _File) -> Access:
    """Raises ValueError or FrameError if the file says what no worker writes."""
    invitation = Invitation.parse(found.token)
    if found.policy:
        read_policy(found.policy, invitation.founder)
    founder = Key(found.founder) if found.founder else None
    if founder is not None and fingerprint(founder.public) != invitation.founder:
        raise ValueError("its key is not that of the swarm's founder")
    return Access(invitation, found.policy, founder)

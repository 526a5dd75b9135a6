"""Every error a user can meet, with its stable exit code and a hint at the next command.

An error says what happened, shows the value it saw, and carries a ``hint``. Expected failures between peers are
values (``exchange.api.Aborted``) or the ``TransportError`` family below; they never reach the user as tracebacks.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; documented one by one in ``docs/exit-codes.md``. Never renumber."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 3
    DATA = 4
    UNREACHABLE = 5
    WRONG_PEER = 6
    PROTOCOL = 7
    MISMATCH = 8
    PORT_TAKEN = 9
    IDENTITY = 10
    INCAPABLE = 11
    DIVERGED = 12
    DEGRADED = 20
    EMPTY = 21
    INTERRUPTED = 130


class DecentralError(Exception):
    """Base of all errors meant for a user's eyes.

    Args:
        message: what happened, with the value seen.
        hint: the likely cause or the next command; empty if there is none to give.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DecentralError):
    """The command line contradicts itself or misses something."""

    exit_code = ExitCode.USAGE


class ConfigError(DecentralError):
    """The configuration has an unknown key or a value out of range."""

    exit_code = ExitCode.CONFIG


class DataError(DecentralError):
    """Training data is missing, unreadable or too small."""

    exit_code = ExitCode.DATA


class UnreachableError(DecentralError):
    """No worker could be reached at the address given."""

    exit_code = ExitCode.UNREACHABLE


class WrongPeerError(DecentralError):
    """Something answered at the address, but not the worker that was asked for."""

    exit_code = ExitCode.WRONG_PEER


class ProtocolError(DecentralError):
    """The peer speaks another version of the protocol."""

    exit_code = ExitCode.PROTOCOL


class MismatchError(DecentralError):
    """What this worker was told differs from what the swarm trains."""

    exit_code = ExitCode.MISMATCH


class PortTakenError(DecentralError):
    """The port this worker should listen on belongs to another program."""

    exit_code = ExitCode.PORT_TAKEN


class IdentityError(DecentralError):
    """The identity file is unreadable, malformed, or in use by a live worker."""

    exit_code = ExitCode.IDENTITY


class IncapableError(DecentralError):
    """This machine cannot run the swarm's configuration."""

    exit_code = ExitCode.INCAPABLE


class DivergedError(DecentralError):
    """Training produced non-finite values again and again."""

    exit_code = ExitCode.DIVERGED


class TransportError(Exception):
    """A call to a peer failed. Callers catch it; it never ends a worker."""


class PeerUnreachable(TransportError):
    """Definite: the request was not delivered (the peer is gone or cannot be dialled)."""


class CallTimeout(TransportError):
    """Indefinite: no reply in time; the request may have been carried out."""


class CallRefused(TransportError):
    """The peer answered that it refuses (busy, unknown method, malformed request, its handler failed)."""


class FrameError(ValueError):
    """Bytes from a peer are not what the protocol allows. The message names the first rule that was broken."""

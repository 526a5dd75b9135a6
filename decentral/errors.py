"""Every error a user can meet, with its stable exit code and a hint at the next command.

An error says what happened, shows the value it saw, and carries a ``hint``. Expected failures between peers are
values (``exchange.api.Aborted``) or the ``TransportError`` family below; they never reach the user as tracebacks.
"""

import re
import traceback
from enum import IntEnum, StrEnum

#: Where this package is, and Python's own library: frames there are not the user's.
_PACKAGE = __file__.removesuffix("errors.py")
_STDLIB = traceback.__file__.removesuffix("traceback.py")
#: Folders of installed libraries.
_INSTALLED = ("site-packages", "dist-packages")
#: Of a fault's own text, or of a value, so much is shown.
_MAX_TEXT, _MAX_VALUE = 600, 80


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
    TRAINER = 13
    DISK = 14
    RANK = 15
    NOT_ADMITTED = 16
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


class DiskError(DecentralError):
    """What a worker has learnt could not be written: the disk is full or read-only."""

    exit_code = ExitCode.DISK


class TrainerError(DecentralError):
    """The user's own code failed: a trainer, a callback, a loader of data.

    Args:
        fault: what it raised, with its traceback.
        doing: what it was asked for, to follow "while", such as ``taking inner steps 10 to 19``.
    """

    exit_code = ExitCode.TRAINER

    def __init__(self, fault: Exception, doing: str) -> None:
        at = _place(fault)
        text = " ".join(str(fault).split())[:_MAX_TEXT]
        what = f"{type(fault).__name__} while {doing}" + (f" ({at})" if at else "")
        hint = "This is a fault of your own code or data, not of decentral's; --debug shows the whole traceback."
        if device := _out_of_memory_on(fault):
            what = f"out of memory on {device} while {doing}" + (f" ({at})" if at else "")
            hint = "Take a smaller batch or a shorter context, free what else uses this memory, or take another device."
        super().__init__(f"{what}: {text}" if text else what, hint=hint)
        self.fault = fault


class ReportError(DecentralError):
    """What a trainer reported of its inner steps is not what it may report.

    Args:
        field: its name.
        value: what it was.
        allowed: what it must be, to follow "must be".
    """

    exit_code = ExitCode.TRAINER

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = " ".join(repr(value).split())
        shown = shown if len(shown) <= _MAX_VALUE else f"{shown[:_MAX_VALUE]}..."
        super().__init__(
            f"{field} is {shown} ({type(value).__name__}): must be {allowed}",
            hint="This is what your own code reported of its inner steps.",
        )


class RankError(DecentralError):
    """Another process of this worker has failed, ended, or does something else.

    Args:
        message: see ``DecentralError``.
        hint: see there.
        exit_code: that of the other process's fault, if it is known.
    """

    exit_code = ExitCode.RANK

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode = ExitCode.RANK) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class AdmissionError(DecentralError):
    """The swarm is private, and this peer may not enter or has been put out; or it is not the swarm that was meant.

    Args:
        by: why.
    """

    exit_code = ExitCode.NOT_ADMITTED

    def __init__(self, by: "NotAdmittedBy") -> None:
        message, hint = _ADMISSION[by]
        super().__init__(message, hint=hint)
        self.by = by


class NotAdmittedBy(StrEnum):
    """Why two peers do not come together. The values travel in messages."""

    NO_PROOF = "proof"
    """It has not said yet who it is."""
    NO_TOKEN = "token"
    WRONG_TOKEN = "wrong token"
    REVOCATION = "revoked"
    BAN = "banned"
    DENIAL = "denied"
    """By that machine's own lists, or by this one's."""
    IMPOSTURE = "impostor"
    """The other side did not prove that it is of the swarm."""
    OPENNESS = "public"
    """The other side's swarm is open to anybody, and we have a token of a private one."""
    AGE = "release"
    """The other side's release knows no private swarms."""


_ASK = "Ask a worker's owner for the line that `decentral worker` printed there: its address ends in #TOKEN."
_ADMISSION = {
    NotAdmittedBy.NO_PROOF: ("The worker there forgot this one, again and again.", "Try again."),
    NotAdmittedBy.NO_TOKEN: ("This swarm is private, and the address has no token.", _ASK),
    NotAdmittedBy.WRONG_TOKEN: ("The token in the address is not one of this swarm's.", _ASK),
    NotAdmittedBy.REVOCATION: (
        "The invitation by which this machine enters the swarm has been revoked.",
        "Ask the founder for another one: `decentral invite` makes it.",
    ),
    NotAdmittedBy.BAN: (
        "The founder has banned this worker from the swarm.",
        "Ask the founder: `decentral ban --undo` lets it in again.",
    ),
    NotAdmittedBy.DENIAL: (
        "The owner of that worker, or of this one, does not let the two come together.",
        "Look at worker.allow and worker.deny, or take the address of another worker.",
    ),
    NotAdmittedBy.IMPOSTURE: (
        "Whoever answers at the address is not of the swarm that the token is of.",
        _ASK,
    ),
    NotAdmittedBy.OPENNESS: (
        "The swarm at the address is public, and the address has the token of a private one.",
        "If that swarm is meant, leave away # and what follows.",
    ),
    NotAdmittedBy.AGE: (
        "The worker there runs a release of decentral that knows no private swarms.",
        "Install this machine's release there, or leave away # and what follows to see which one it is.",
    ),
}


class TransportError(Exception):
    """A call to a peer failed. Callers catch it; it never ends a worker."""


class PeerUnreachable(TransportError):
    """Definite: the request was not delivered (the peer is gone or cannot be dialled)."""


class CallTimeout(TransportError):
    """Indefinite: no reply in time; the request may have been carried out."""


class CallRefused(TransportError):
    """The peer answered that it refuses (busy, unknown method, malformed request, its handler failed)."""


class NotAdmitted(CallRefused):
    """One of the two sides does not let the other in; nothing was delivered.

    Args:
        by: why.
    """

    def __init__(self, by: NotAdmittedBy) -> None:
        super().__init__(_ADMISSION[by][0])
        self.by = by


class FrameError(ValueError):
    """Bytes from a peer are not what the protocol allows. The message names the first rule that was broken."""


def _place(fault: BaseException) -> str:
    """File, line and function where a fault happened in the user's own code, or else in a library; empty if unknown.

    A wrong shape is found deep inside of torch: the line that gave it to torch is the one to look at.
    """
    frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if not frame.filename.startswith(_PACKAGE)]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _is_library(filename: str) -> bool:
    return filename.startswith((_STDLIB, "<frozen")) or any(folder in filename for folder in _INSTALLED)


def _out_of_memory_on(fault: BaseException) -> str:
    """The device that has no memory left, if that is the fault; empty if it is another one.

    torch's own error is known by its name, as torch must not be imported here; which GPU it was, by its text alone.
    """
    names, text = {kind.__name__ for kind in type(fault).__mro__}, str(fault)
    # On the CPU and on MPS torch raises a RuntimeError that nothing but its text tells from others.
    told = "DefaultCPUAllocator: can't allocate" in text or "MPS backend out of memory" in text
    if not told and not names & {"MemoryError", "OutOfMemoryError"}:
        return ""
    number, kind = re.search(r"\bGPU (\d+)", text), re.search(r"\b(CUDA|HIP|MPS|XPU)\b", text)
    return f"cuda:{number[1]}" if number else kind[1].lower() if kind else "cpu"

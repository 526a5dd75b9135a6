"""How a command ends: its exit code, and the one message that an error is shown as."""

import contextlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from decentral.dashboard.place import AUTO
from decentral.errors import DecentralError, ExitCode, TrainerError

#: The token of an address, where that is better kept out of the command line.
INVITATION = "DECENTRAL_INVITATION"

#: What may follow ``--dashboard``; else it stands for itself.
_PLACE = re.compile(r"(\S+:)?\d+|auto")


class Command(TyperCommand):
    """A command whose function returns an exit code and may raise any ``DecentralError``.

    An error becomes a message and a hint on stderr; its traceback is shown only with ``--debug``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; a value that may be left out is put in."""
        return super().parse_args(ctx, _with_values(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command and exit with its code."""
        raise typer.Exit(self._code(ctx))

    def _code(self, ctx: Any) -> int:
        debug = bool(ctx.params.get("debug"))
        try:
            return int(super().invoke(ctx) or ExitCode.OK)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        except BrokenPipeError:  # `| head` has read enough
            let_go_of_stdout()
            return ExitCode.OK
        except DecentralError as err:
            if isinstance(err, TrainerError):  # the user's own fault: where it was is what helps
                traceback.print_exception(err.fault)
            elif debug:
                traceback.print_exc()
            show_error(err.message, err.hint)
            return err.exit_code
        except Exception as err:
            if debug:
                traceback.print_exc()
            show_error(
                f"{type(err).__name__}: {err}",
                "This is a fault of decentral's own." + ("" if debug else " Run it again with --debug and report it."),
            )
            return ExitCode.INTERNAL


def let_go_of_stdout() -> None:
    """Nothing more can be printed, not even what is still buffered at exit: it goes nowhere, where it is no error."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_values(args: Sequence[str]) -> list[str]:
    """The arguments, with a value behind every option that needs none."""
    full: list[str] = []
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        full.append(arg)
        if arg == "--dashboard" and not _PLACE.fullmatch(following):
            full.append(AUTO)
    return full


def with_invitation(address: str) -> str:
    """An address with the token in the environment, unless it has one itself: others can see a command line."""
    token = os.environ.get(INVITATION, "")
    return f"{address}#{token}" if token and "#" not in address else address


def without_token(address: str) -> str:
    """An address as somebody gave it, to be shown."""
    return address.partition("#")[0]


def show_error(message: str, hint: str = "") -> None:
    """Print an error and its hint to stderr."""
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)

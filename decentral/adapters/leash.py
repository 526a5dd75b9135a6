"""Ties a child process to the life of its parent: no orphan is left behind, not even after ``kill -9``.

``leashed`` puts a launcher in front of a command: this very file, run as a script by a bare interpreter (30 ms). The
launcher asks the kernel to kill it when its parent dies, checks that the parent has not died before that,
and then becomes the command; the request survives the ``exec``.

The kernel's "parent" is the *thread* that started the child. Start children from the main thread, or from a thread
whose end should end them. The request exists on Linux only; elsewhere the command is left as it is, and what
outlives a killed parent has to be ended by hand. As a script this file may import the standard library only.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leashed(argv: list[str]) -> list[str]:
    """The command that runs ``argv`` as a child of this process and is killed when this process dies.

    Args:
        argv: program and arguments; looked up on the path like a shell does.
    """
    if sys.platform != "linux" or not sys.executable:
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def _launch(parent: int, argv: list[str]) -> None:
    """Become ``argv`` on the leash of process ``parent``."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"leash: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # It died before the request: nobody will kill us.
        sys.exit("leash: the parent is gone")
    try:
        os.execvp(argv[0], argv)
    except OSError as err:
        sys.exit(f"cannot run {argv[0]}: {err.strerror}")


if __name__ == "__main__":
    _launch(int(sys.argv[1]), sys.argv[2:])

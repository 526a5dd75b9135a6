"""Signals that ask a command to end: Ctrl-C, SIGTERM and a hang-up; to one that trains SIGUSR1 tells of preemption."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from decentral.errors import ExitCode

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def stopping(stop: Callable[[], object], preempted: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT, SIGTERM or SIGHUP, on a thread of its own; end the process at the second.

    At every SIGUSR1 before that, ``preempted`` is called: who leaves saves in any case.

    The main thread may train, or hang in a library that never comes back to Python, where no handler would run: the
    signals are read from a pipe. Ending at once skips every clean-up: child processes are on a leash and die with us.

    A hang-up is never the second signal, as the shell and the kernel may both send it; where it was ignored from the
    start, as under ``nohup``, it stays so.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        for number in iter(lambda: os.read(reading, 1), b""):
            if number == b"\0":  # the end of the block
                break
            if number[0] not in _NUMBERS:
                continue  # the pipe is told of every signal that has a handler, as torch's loaders have of SIGCHLD
            if number[0] == signal.SIGUSR1:
                if not asked.is_set():
                    preempted()
                continue
            if number[0] == signal.SIGHUP:
                _let_go_of_the_terminal()
            elif asked.is_set():
                os._exit(ExitCode.INTERRUPTED)
            if not asked.is_set():
                asked.set()
                _say("Stopping in order. Press Ctrl-C again to exit at once.")
                stop()

    asked = threading.Event()
    watcher = threading.Thread(target=watch, name="decentral-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in _NUMBERS if not _is_left_alone(number)}
    pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")
        watcher.join()
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for a Ctrl-C, so that a command which only looks closes what it has open.

    As in ``stopping``, a hang-up counts once, and where it was ignored from the start it stays so. Where Ctrl-C was, as
    in what a script starts with ``&``, these two end it all the same.
    """

    def interrupt(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _let_go_of_the_terminal()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if not _is_left_alone(number)]
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    before |= {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_left_alone(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print(text, file=sys.stderr, flush=True)


def _let_go_of_the_terminal() -> None:
    """Send what is still said to a terminal or a pipe that is gone nowhere, where it is no error."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    gone = [number for number, what in poll.poll(0) if what & (select.POLLERR | select.POLLHUP)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in gone:
        os.dup2(nowhere, number)
    os.close(nowhere)

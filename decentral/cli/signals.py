"""Ctrl-C, SIGTERM: the first asks to stop, the second ends the process at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from decentral.errors import ExitCode

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT or SIGTERM, on a thread of its own; end the process at the second.

    The main thread may train, or hang in a library that never comes back to Python, where no handler would run: the
    signals are read from a pipe. Ending at once skips every clean-up: child processes are on a leash and die with us.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        for number in iter(lambda: os.read(reading, 1), b""):
            if number == b"\0":  # the end of the block
                break
            if asked.is_set():
                os._exit(ExitCode.INTERRUPTED)
            asked.set()
            print("Stopping in order. Press Ctrl-C again to exit at once.", file=sys.stderr, flush=True)
            stop()

    asked = threading.Event()
    watcher = threading.Thread(target=watch, name="decentral-signals", daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in _NUMBERS}
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

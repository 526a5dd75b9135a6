"""A killed process leaves nothing behind: checked on real processes, by condition within a deadline."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from decentral.adapters.leash import leashed
from decentral.adapters.runtime_dir import RuntimeDir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the leash is a request to the Linux kernel")

DEADLINE_S = 30.0

HOLDER = """
import asyncio, sys
from decentral.adapters.node import NodeOptions, open_node
async def main():
    node = await open_node(NodeOptions(host="127.0.0.1"))
    print(node.daemon.process.pid, node.daemon.folder, flush=True)
    await asyncio.get_running_loop().create_future()
asyncio.run(main())
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether the process has ended (as a zombie it has; nobody may be there to collect it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable, "the process said nothing in time"
    return process.stdout.readline()


def test_a_killed_process_leaves_no_daemon_and_its_sockets_go_at_the_next_start() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    with holder:
        try:
            pid, folder = first_line(holder).split()
            assert not is_gone(int(pid))
        finally:
            holder.kill()
        wait_until(lambda: is_gone(int(pid)))
    assert Path(folder).is_dir()
    os.utime(folder, (0, 0))  # Older than the grace that a starting node has.
    RuntimeDir().close()
    assert not Path(folder).exists()


def test_a_leashed_command_is_the_command() -> None:
    done = subprocess.run(
        leashed(["sh", "-c", "echo $0 $1; exit 7", "a b", "c"]), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "a b c\n", "")
    missing = subprocess.run(leashed(["/no/such/program"]), capture_output=True, text=True, timeout=DEADLINE_S)
    assert missing.returncode == 1
    assert missing.stderr == "cannot run /no/such/program: No such file or directory\n"


def test_a_child_whose_parent_died_before_the_leash_was_on_does_not_start() -> None:
    command = leashed(["echo", "started"])
    stranger = [argument if argument != str(os.getpid()) else "1" for argument in command]
    done = subprocess.run(stranger, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert done.stdout == ""

"""What goes wrong at the start is said in words of its own, with a documented exit code and no traceback.

All commands run at the same time against one founder and a few sockets that are no workers.
"""

import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from decentral import PROTOCOL
from decentral.errors import ExitCode
from decentral.run.book import Book
from tests.process.command import Process, WorkerProcess, founding, processes_of, wait_for

#: The command line of a release that speaks another protocol.
OTHER_RELEASE = (
    sys.executable,
    "-c",
    "import decentral; decentral.PROTOCOL = 99; from decentral.cli.__main__ import main; main()",
)


def listener(stack: ExitStack, greeting: bytes) -> int:
    """The port of a program that takes connections, says ``greeting`` and nothing more."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    accepted = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            accepted.append(connection)
            connection.sendall(greeting)

    thread = threading.Thread(target=serve)
    thread.start()

    def close() -> None:
        # Closing alone does not wake an accept.
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in accepted:
            connection.close()

    stack.callback(close)
    return int(server.getsockname()[1])


def closed_port(stack: ExitStack) -> int:
    """Had, so that nobody else is given it meanwhile, and not listened on."""
    had = stack.enter_context(socket.socket())
    had.bind(("127.0.0.1", 0))
    return int(had.getsockname()[1])


@dataclass(frozen=True)
class Swarm:
    """One founder, and everything that tried to come near it, ended."""

    founder: WorkerProcess
    refused: dict[str, Process]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("refusals")
    # Each attempt costs seconds of a processor: none is made that no selected test looks at.
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    (folder / "nothing").touch()
    refused: dict[str, Process] = {}
    with ExitStack() as stack:
        silent, ssh = listener(stack, b""), listener(stack, b"SSH-2.0-x\r\n")

        def attempt(name: str, *arguments: str, kind: type[Process] = WorkerProcess, **options: Any) -> None:
            if name in asked:
                refused[name] = kind(folder / name, *arguments, **options)
                stack.callback(refused[name].end)

        founder = WorkerProcess(folder / "founder", *founding(folder / "hurry", step_s=3600.0, rounds=1))
        stack.callback(founder.end)
        attempt("no worker there", "--join", f"127.0.0.1:{closed_port(stack)}")
        attempt("silent", "status", f"127.0.0.1:{silent}", "--timeout", "4", kind=Process)
        attempt("other program", "--join", f"127.0.0.1:{ssh}")
        attempt("malformed", "--join", "/ip4/127.0.0.1/udp/31337")
        attempt("empty", "--join", "")
        attempt("unknown key", "--new", "--set", "method.iner_steps=5")
        attempt("unknown codec", "--new", "--codec", "int4-128", "--set", "task.factory=decentral.workers.toy:build")
        attempt("unknown method", "--new", "--method", "nolco")
        attempt("own port", "--new", "--port", str(silent))
        attempt("no data", "--new", "--data", str(folder / "missing"))
        attempt("empty data", "--new", "--data", str(folder / "nothing"))
        attempt("no device", "--new", "--device", "cuda:7", "--set", "task.factory=decentral.workers.toy:build")

        address = founder.address
        shutil.copy(founder.folder / "identity.key", folder / "copy.key")
        place, _, token = address.partition("#")
        wrong_peer = f"{place.rpartition('/')[0]}/QmZ4tDuvesekSs4qM5ZBKpXiZGun7S2CYtEZRB3DYXkjGx#{token}"
        attempt("wrong peer", "--join", wrong_peer)
        attempt("mismatch", "--join", address, "--set", "method.inner_steps=7", "--set", "run.seed=5")
        attempt("protocol", "--join", address, entry=OTHER_RELEASE)
        attempt("identity in use", "--join", address, "--identity", str(founder.folder / "identity.key"))
        attempt("copied identity", "--join", address, "--identity", str(folder / "copy.key"))
        for name, run in (("run there", "demo-0"), ("other run", "demo-1")):
            (folder / name).mkdir()
            (folder / name / "model.safetensors").touch()
            Book(run, 0).save(folder / name)
        attempt("run there", "--new", "--set", "task.factory=decentral.workers.toy:build")
        attempt("other run", "--join", address)
        for process in refused.values():
            process.code()
        yield Swarm(founder, refused)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("no worker there", ExitCode.UNREACHABLE, ("Nothing listens on 127.0.0.1:", "connection refused")),
        ("wrong peer", ExitCode.WRONG_PEER, ("is a peer, but its id is ..", "you gave ..")),
        ("other run", ExitCode.USAGE, ("There is a run in", "other run: demo-1.", "another folder", "--overwrite")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # tests of the parts have these without a worker
            for case in (
                (
                    "mismatch",
                    ExitCode.MISMATCH,
                    ("method.inner_steps: 7 here, 4 in the swarm", "run.seed: 5 here, 0 in the swarm"),
                ),
                (
                    "protocol",
                    ExitCode.PROTOCOL,
                    (f"the swarm speaks protocol {PROTOCOL}", "this is protocol 99", "decentral=="),
                ),
                ("identity in use", ExitCode.IDENTITY, ("is in use by another worker on this machine", "of its own")),
                ("copied identity", ExitCode.IDENTITY, ("is in use by a live worker of this swarm", "of its own")),
                ("run there", ExitCode.USAGE, ("There is a run in", "run there: demo-0.", "--resume", "--overwrite")),
                ("own port", ExitCode.PORT_TAKEN, ("is taken by pid", "--port 0")),
                ("silent", ExitCode.UNREACHABLE, ("answered, but not as a decentral peer", "it said nothing in")),
                ("other program", ExitCode.UNREACHABLE, ("answered, but not as a decentral peer", '"SSH-2.0-x"')),
                ("malformed", ExitCode.USAGE, ('"/ip4/127.0.0.1/udp/31337" is not an address', "/tcp/PORT belongs")),
                ("empty", ExitCode.USAGE, ("--join is empty.", "--new")),
                (
                    "unknown key",
                    ExitCode.CONFIG,
                    ("unknown key 'method.iner_steps'", "Did you mean 'method.inner_steps'?"),
                ),
                ("unknown codec", ExitCode.CONFIG, ("unknown codec 'int4-128'", "did you mean int4-b128?")),
                (
                    "unknown method",
                    ExitCode.CONFIG,
                    ('"nolco": must be one of local-sgd, diloco', "Did you mean 'noloco'?"),
                ),
                ("no data", ExitCode.DATA, ("missing' does not exist", "local to each machine")),
                ("empty data", ExitCode.DATA, ("holds 0 bytes of text", "give at least")),
                ("no device", ExitCode.INCAPABLE, ("not on 'cuda:7'", "--device cpu")),
            )
        ),
    ],
)
def test_a_refusal_says_what_was_wrong_and_what_to_do(
    swarm: Swarm, name: str, code: ExitCode, says: tuple[str, ...]
) -> None:
    process = swarm.refused[name]
    text = process.stderr
    assert process.code() == code, text
    assert [part for part in says if part not in text] == [], text
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    assert process.stdout == ""
    documented = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text()
    assert f"## Exit code {code.value}: {code.name}\n" in documented


def test_whoever_was_refused_leaves_no_process(swarm: Swarm) -> None:
    left = [line for name in swarm.refused for line in processes_of(swarm.founder.folder.parent / name)]
    assert left == []


def test_the_second_interrupt_ends_a_worker_at_once(swarm: Swarm) -> None:
    # Its step takes an hour: the first interrupt has to wait for that.
    founder = swarm.founder
    founder.signal(signal.SIGINT)
    wait_for(lambda: "Press Ctrl-C again" in founder.stderr, "word of the first interrupt")
    assert founder.popen.poll() is None
    founder.signal(signal.SIGINT)
    assert founder.code() == ExitCode.INTERRUPTED
    wait_for(lambda: not processes_of(founder.folder), "no process left")

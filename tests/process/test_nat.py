"""Workers behind routers that translate addresses: made by nftables, between namespaces (docs/link-emulator.md)."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from decentral.errors import ExitCode
from scripts.benches.lib.links import Host, Link, Links
from scripts.benches.lib.nat import Nat, behind, unavailable_nat
from tests.process.command import ENTRY, Process, founding, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(unavailable_nat()), reason=unavailable_nat()),
]
PORT = "31337"
#: Of two machines with an address of their own, and of two homes.
LINKS = [Link(delay_s=0.005)] * 4


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class On(Process):
    """A command on a host; of a worker its folder is its own."""

    def __init__(self, host: Host, folder: Path, *arguments: str) -> None:
        super().__init__(folder, *arguments, entry=tuple(host.inside(ENTRY)))

    @property
    def address(self) -> str:
        return wait_for(lambda: self.stdout if "\n" in self.stdout else "", "the line that joins").split()[-1]


def worker(stack: ExitStack, host: Host, folder: Path, *arguments: str) -> On:
    own = ("--port", PORT, "--threads", "1", "--out", str(folder))
    started = On(host, folder, "worker", *arguments, *own)
    stack.callback(started.end)
    return started


def doctor(host: Host, folder: Path, address: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and findings by what they are about."""
    asked = On(host, folder, "doctor", address, "--json", "--out", str(folder))
    code = asked.code()
    return code, {finding["about"]: finding for finding in json.loads(asked.stdout)["findings"]}


@pytest.mark.parametrize(
    ("nat", "said", "kind"),
    [
        (Nat.FORWARDED, "others reach this worker at 11.99.0.1:31337", "cone"),
        (Nat.SYMMETRIC, "others reach this worker only through a relay, because 11.99.0.1:31337 did not", "symmetric"),
    ],
)
def test_a_worker_at_home_and_its_doctor_say_how_others_reach_it(
    nat: Nat, said: str, kind: str, stack: ExitStack, tmp_path: Path
) -> None:
    links = stack.enter_context(Links(LINKS))
    inside = stack.enter_context(behind(links, 0, nat))
    founder = worker(stack, links.host(1), tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.1, rounds=2000))
    second = worker(stack, links.host(2), tmp_path / "1", "--join", founder.address, "--trust-config")
    assert second.address
    assert "others reach this worker at 11.99.0.3:31337 (dialled by " in second.stderr
    code, found = doctor(inside, tmp_path / "doctor", founder.address)
    assert code == ExitCode.OK
    assert said in found["port"]["text"]
    assert kind in found["router"]["text"]
    assert ("forward TCP port 31337" in found["port"]["fix"]) is (nat is Nat.SYMMETRIC)
    assert found["clock"]["mark"] == "fine"
    at_home = worker(stack, inside, tmp_path / "2", "--join", founder.address, "--trust-config")
    wait_for(lambda: said in at_home.stderr, "how others reach it")
    # Whatever its router is, everybody else reaches and is reached by it: the others have addresses of their own.
    wait_for(lambda: "mixed 3 of 3 workers" in at_home.stderr, "a round of all")

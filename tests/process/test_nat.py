"""Workers behind routers that translate addresses: made by nftables, between namespaces (docs/link-emulator.md)."""

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from decentral.errors import ExitCode
from scripts.benches.lib.links import Host, Link, Links
from scripts.benches.lib.nat import FIREWALL, Nat, behind, cable, plug, rule, unavailable_nat
from tests.process.command import ENTRY, ROOT, Process, founding, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(unavailable_nat()), reason=unavailable_nat()),
]
PORT = "31337"
_BIG = 1 << 20
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
        (Nat.SYMMETRIC, "only if both routers let them meet, because 11.99.0.1:31337 did not answer", "symmetric"),
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


def test_two_that_nobody_reaches_train_through_a_worker_that_relays_and_strangers_get_nothing_by_it(
    stack: ExitStack, tmp_path: Path
) -> None:
    links = stack.enter_context(Links(LINKS))
    homes = [stack.enter_context(behind(links, number, Nat.SYMMETRIC)) for number in (0, 1)]
    hurry = founding(tmp_path / "hurry", step_s=0.1, rounds=2000)
    founder = worker(stack, links.host(2), tmp_path / "0", *hurry, "--relay", "31400-31401")
    joined = [
        worker(stack, home, tmp_path / str(number), "--join", founder.address, "--trust-config")
        for number, home in enumerate(homes, 1)
    ]
    for each in joined:
        wait_for(lambda each=each: "mixed 3 of 3 workers" in each.stderr, "a round of all")  # type: ignore[misc]
        assert "only through a relay" in each.stderr
    place, _, token = joined[0].address.partition("#")
    assert place.startswith(("/ip4/11.99.0.3/tcp/31400/", "/ip4/11.99.0.3/tcp/31401/"))
    stranger, member = (
        On(links.host(3), tmp_path / name, "status", address, "--timeout", "20")
        for name, address in (("stranger", place), ("member", f"{place}#{token}"))
    )
    assert (stranger.code(), member.code()) == (ExitCode.NOT_ADMITTED, ExitCode.OK)


class Node:
    """A ``nat_node`` on a host."""

    def __init__(self, host: Host, **options: Any) -> None:
        command = host.inside([sys.executable, "-m", "tests.process.nat_node", json.dumps(options)])
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)

    def wait(self) -> None:
        """Until it has joined."""
        self.peer, self.addresses, self.way = self._answer()

    def _answer(self) -> Any:
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def ask(self, do: str, other: "Node | None" = None, size: int = 0) -> Any:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": do, "peer": other and other.peer, "size": size}) + "\n")
        self.popen.stdin.flush()
        return self._answer()

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed
            assert self.popen.stdin is not None
            self.popen.stdin.close()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def node(stack: ExitStack, host: Host, **options: Any) -> Node:
    """One that has joined."""
    started = Node(host, **options)
    stack.callback(started.end)
    started.wait()
    return started


def test_who_is_behind_a_relay_that_dies_or_joined_by_one_that_relays_for_nobody_finds_another(
    stack: ExitStack,
) -> None:
    links = stack.enter_context(Links(LINKS))
    homes = [stack.enter_context(behind(links, number, Nat.SYMMETRIC)) for number in (0, 1)]
    first = node(stack, links.host(2), relay=[])
    founder = node(stack, links.host(3), initial_peers=first.addresses[:1])
    one = node(stack, homes[0], initial_peers=first.addresses[:1])
    # It has joined by one that relays for nobody, and hears of the relay by the directory.
    other = node(stack, homes[1], initial_peers=founder.addresses[:1])
    assert (one.way, other.way) == ("relayed", "relayed")
    relays = [each.ask("way")[1].split("/")[2] for each in (one, other)]
    assert relays == ["11.99.0.3"] * 2
    wait_for(lambda: one.ask("call", other, _BIG) and other.ask("call", one, _BIG), "a megabyte by the first relay")
    second = node(stack, links.host(3), relay=[], port=31_338, initial_peers=founder.addresses[:1])
    first.popen.kill()
    for here, there in ((one, other), (other, one)):
        wait_for(lambda here=here: here.ask("way")[1].startswith("/ip4/11.99.0.4/"), "a place at the other relay")  # type: ignore[misc]
        wait_for(lambda here=here, there=there: here.ask("call", there, _BIG), "a megabyte by it")  # type: ignore[misc]
    assert second.popen.poll() is None


@pytest.mark.parametrize("nat", [Nat.SYMMETRIC, Nat.FORWARDED])
def test_a_worker_that_changes_network_in_the_middle_of_a_round_trains_on(
    nat: Nat, stack: ExitStack, tmp_path: Path
) -> None:
    links = stack.enter_context(Links(LINKS))
    home = stack.enter_context(behind(links, 0, nat))
    hurry = founding(tmp_path / "hurry", step_s=0.1, rounds=2000)
    founder = worker(stack, links.host(2), tmp_path / "0", *hurry, "--relay", "any")
    third = worker(stack, links.host(3), tmp_path / "1", "--join", founder.address, "--trust-config")
    laptop = worker(stack, home, tmp_path / "2", "--join", founder.address, "--trust-config")
    wait_for(lambda: "mixed 3 of 3 workers" in laptop.stderr, "a round of all")
    plug(links, home, 1, nat)
    wait_for(lambda: "has come to another network (192.168.78.2)" in laptop.stderr, "it sees that")
    behind_it = [len(each.stderr) for each in (laptop, third)]
    for each, seen in zip((laptop, third), behind_it, strict=True):
        wait_for(lambda each=each, seen=seen: "mixed 3 of 3 workers" in each.stderr[seen:], "a round of all again")  # type: ignore[misc]
    assert laptop.popen.poll() is None


def test_workers_meet_by_ipv6_and_go_on_by_another_interface_when_that_is_gone(
    stack: ExitStack, tmp_path: Path
) -> None:
    links = stack.enter_context(Links(LINKS[:2]))
    one, other = links.hosts
    for host in (one, other):
        subprocess.run(host.inside(["ip", "route", "add", "default", "dev", "link0"]), check=True)
    cable(one, other, "cable0", [("2001:db8:7::1/64", "2001:db8:7::2/64")])
    hurry = founding(tmp_path / "hurry", step_s=0.1, rounds=2000)
    founder = worker(stack, one, tmp_path / "0", *hurry, "--host", "::")
    by_six = f"[2001:db8:7::1]:{PORT}#{founder.address.partition('#')[2]}"
    joined = worker(stack, other, tmp_path / "1", "--join", by_six, "--trust-config", "--host", "::")
    wait_for(lambda: "mixed 2 of 2 workers" in joined.stderr, "a round of both")
    # What moved it: hardly anything has come by the other interface.
    assert sum(flow.bytes for flow in links.counters().up) < 100_000
    subprocess.run(one.inside(["ip", "link", "delete", "cable0"]), check=True)
    seen = len(joined.stderr)
    wait_for(lambda: "mixed 2 of 2 workers" in joined.stderr[seen:], "a round by the other interface", 120)


def test_a_name_is_looked_up_anew_by_those_who_knew_its_address(stack: ExitStack, tmp_path: Path) -> None:
    links = stack.enter_context(Links(LINKS))
    names = tmp_path / "hosts"

    def named(number: int) -> Host:
        """A host with a file of names of its own."""
        bind = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(names))
        return replace(links.host(number), prefix=(*links.host(number).prefix, *bind))

    def is_at(number: int) -> None:
        names.write_text(f"127.0.0.1 localhost\n{links.host(number).address} gpu-box.example.org\n")

    own = {"announce": [f"gpu-box.example.org:{PORT}"], "identity_path": str(tmp_path / "identity.key")}
    is_at(0)
    box = node(stack, named(0), **own)
    assert box.addresses[0].startswith("/dns/gpu-box.example.org/tcp/")
    other = node(stack, named(1), initial_peers=box.addresses[:1])
    assert other.ask("call", box, _BIG)
    box.end()
    is_at(2)
    again = node(stack, named(2), **own)
    assert again.peer == box.peer
    wait_for(lambda: other.ask("call", again, _BIG), "it is found where the name leads now")


#: In the order of the table.
KINDS = ("an address of its own", *(str(nat) for nat in Nat), "firewall")
_TRIES = 3
#: Nodes that start, so that waits overlap and cores suffice.
_AT_ONCE = 4


def nodes_of_all_kinds(stack: ExitStack, relay: list[int] | None) -> list[Node]:
    """Two of each kind in a swarm that a node with an address of its own has founded."""
    num_kinds = 2 * len(KINDS)
    links = stack.enter_context(Links([Link(delay_s=0.005)] * (num_kinds + 1)))

    founder = node(stack, links.host(num_kinds), relay=relay)
    nodes: list[Node] = []
    for number, kind in enumerate(KINDS * 2):
        host = links.host(number)
        if kind == "firewall":
            rule(host, FIREWALL)
        elif kind != KINDS[0]:
            host = stack.enter_context(behind(links, number, Nat(kind)))
        nodes.append(Node(host, initial_peers=founder.addresses[:1]))
        stack.callback(nodes[-1].end)
        if len(nodes) >= _AT_ONCE:
            nodes[-_AT_ONCE].wait()
    for each in nodes[1 - _AT_ONCE :]:
        each.wait()
    return nodes


def between(one: Node, other: Node, relay: str) -> str:
    """How a megabyte comes from one to the other, if not at first: directly, through a relay, or not at all."""
    for here, there in ((one, other), (other, one)) * _TRIES:
        if here.ask("call", there, _BIG):
            seen = there.ask("seen", here)
            return "relayed" if "p2p-circuit" in seen or "/127.0.0.1/" in seen or f"/{relay}/" in seen else "direct"
    return "-"


def table(nodes: list[Node], relay: str) -> list[str]:
    """The lines of a table in docs/network.md."""
    num_kinds = len(KINDS)
    found = {}
    for i, j in itertools.combinations_with_replacement(range(num_kinds), 2):
        found[i, j] = found[j, i] = between(nodes[i], nodes[num_kinds + j], relay)
    head = ["| | " + " | ".join(KINDS) + " |", "|" + "---|" * (num_kinds + 1)]
    rows = (" | ".join([kind, *(found[i, j] for j in range(num_kinds))]) for i, kind in enumerate(KINDS))
    return head + [f"| {row} |" for row in rows]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("relay", "heading"), [([], "The founder relays:"), (None, "Nobody relays:")])
def test_what_connects_to_what_is_as_the_page_says(relay: list[int] | None, heading: str, stack: ExitStack) -> None:
    nodes = nodes_of_all_kinds(stack, relay)
    lost = "introduced" if relay is None else "relayed"
    assert [node.way for node in nodes] == ["direct", "direct", "direct", "direct", lost, lost, lost] * 2
    found = cells(table(nodes, f"11.99.0.{2 * len(KINDS) + 1}"))
    page = (ROOT / "docs/network.md").read_text().partition(f"\n{heading}\n\n")[2].partition("\n\n")[0]
    said = cells(page.splitlines())
    assert found.keys() == said.keys()
    # Which of the two tries first is chance with a restricted cone, and decides.
    differs = {key: (found[key], how) for key, how in said.items() if found[key] not in how.split(" or ")}
    assert {key: ways for key, ways in differs.items() if str(Nat.RESTRICTED) not in key} == {}
    assert all("direct" in ways for ways in differs.values())


def cells(lines: list[str]) -> dict[tuple[str, str], str]:
    """How it goes, by row and column."""
    (_, *columns), _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], column): how for row in rows for column, how in zip(columns, row[1:], strict=True)}

"""``decentral doctor``: whether a worker on this machine can do its part, and what to do where it cannot.

It takes a place in the network as a worker would, under an identity that ends with it, and is counted as none. Others
dial it back, tell their clocks and measure the line with it. What the machine tells by itself is in ``machine``.
"""

import asyncio
import contextlib
import socket
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from decentral import __version__
from decentral.adapters.address import Address
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.reach import Dialled, Reached, Sight, Way, ask_reach
from decentral.adapters.speed import Speed, measure_speed
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import DecentralError, PortTakenError
from decentral.monitor.figures import mbit, size
from decentral.run.access import Access
from decentral.run.asking import HELLO_TIMEOUT_S, find
from decentral.run.findings import Finding, Mark
from decentral.run.machine import firewall, machine_findings, port_finding
from decentral.run.reachable import advice, in_words
from decentral.types import short_id

_FIND_TIMEOUT_S = 10.0
#: Of the swarm's workers, so many are asked.
_NUM_ASKED = 4
_HOST = "0.0.0.0"
_PAGE = "see docs/network.md"
#: What helps whoever is not reached.
_START_RELAY = "on a machine that others reach: decentral worker --join ADDR --relay any"
#: hivemind's directory refuses who is further off than three.
_MAX_SKEW_S = 2.0
#: What is below is worth a word, for it is less than half.
_LOW_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Patient:
    """What is to be examined."""

    addresses: Sequence[str] = ()
    """Of workers to ask, tried in order; none to look at the machine alone."""
    port: int = 31_337
    """Where a worker listens, or is to listen."""
    folder: Path = Path("runs")
    """Where it keeps its run, or is to keep it."""
    device: str = ""
    """Where it computes; empty for the best that there is."""


async def examine(patient: Patient) -> list[Finding]:
    """Everything there is to say, in some seconds, or a minute on a slow line. What is wrong is a finding, no error."""
    found = [*machine_findings(patient.folder, patient.device), listening := port_finding(_HOST, patient.port)]
    opens = firewall()
    if not patient.addresses:
        text = "nobody was asked whether others reach this machine"
        asks = Finding("port", Mark.NOTE, text, "decentral doctor ADDR, the address of any worker")
        return [*found, _firewall(opens, patient.port), asks]
    if listening.mark is Mark.MEND:
        return found
    try:
        async with _among(patient) as (node, hello):
            return [*found, *await _network(node, hello, patient.port, opens)]
    except DecentralError as err:
        return [*found, Finding("swarm", Mark.MEND, err.message, err.hint)]


@contextlib.asynccontextmanager
async def _among(patient: Patient) -> AsyncIterator[tuple[Node, Hello]]:
    """A node on the network, and what the first worker that answers says of its swarm."""
    address, peer = await find(patient.addresses, option="ADDR", timeout_s=_FIND_TIMEOUT_S)
    held = Access(address.invitation).held() if address.invitation is not None else None
    initial = (address.multiaddr(),)
    try:
        node = await open_node(NodeOptions(host=_HOST, port=patient.port, initial_peers=initial, held=held))
    except PortTakenError:  # by a worker, which is what is dialled then
        node = await open_node(NodeOptions(initial_peers=initial, asker=True, held=held))
    try:
        yield node, await ask_hello(node.transport, peer, node.identity.verify, timeout_s=HELLO_TIMEOUT_S)
    finally:
        await node.close()


async def _network(node: Node, hello: Hello, port: int, opens: str) -> list[Finding]:
    others = [presence.peer for presence, _ in hello.workers if presence.peer != hello.peer]
    asked = [hello.peer, *others][:_NUM_ASKED]
    answers = await asyncio.gather(*(ask_reach(node.transport, peer, port) for peer in asked))
    sights = [sight for sight in answers if sight is not None]
    # One after the other, or they would share the line.
    speeds = [speed for peer in asked if (speed := await measure_speed(node.transport, peer)) is not None]
    of_port = _port(node, sights, opens)
    found = [_swarm(hello), of_port, _firewall(opens, port, of_port.mark), _router(node, sights), _relay(node)]
    found.append(_clock(sights))
    return [finding for finding in (*found, *map(_link, speeds), _round(hello, speeds)) if finding is not None]


def _swarm(hello: Hello) -> Finding:
    text = f"{hello.run_id}, {len(hello.workers)} workers, decentral {hello.version}"
    if hello.version != __version__:
        fix = f'pip install "decentral=={hello.version}"'
        return Finding("swarm", Mark.NOTE, f"{text}; here it is {__version__}", fix)
    return Finding("swarm", Mark.FINE, text)


def _port(node: Node, sights: Sequence[Sight], opens: str) -> Finding:
    reached = node.reached
    if reached.way is Way.UNKNOWN:  # a worker of this machine has the port, and is what was dialled
        known = [sight for sight in sights if sight.dialled is not Dialled.RELAYED]
        if not known:
            return Finding("port", Mark.NOTE, "nobody could tell whether others reach this machine", _PAGE)
        answered = [sight for sight in known if sight.dialled in (Dialled.OPEN, Dialled.OTHER)]
        reached = Reached(Way.DIRECT if answered else Way.NONE, (answered or known)[0])
    mark = {Way.DIRECT: Mark.FINE, Way.NONE: Mark.MEND}.get(reached.way, Mark.NOTE)
    return Finding("port", mark, in_words(reached), advice(reached, opens))


def _firewall(opens: str, port: int, of_port: Mark = Mark.NOTE) -> Finding:
    """Of this machine, as far as it is known, beside whether others come through it."""
    if not opens:
        return Finding(
            "firewall", Mark.FINE, "none is known to be at work here (ufw, firewalld and, for root, nftables)"
        )
    if of_port is Mark.FINE:
        return Finding("firewall", Mark.FINE, f"one is at work here, and lets in what comes to TCP port {port}")
    text = f"one is at work here, and may let nothing in at TCP port {port}"
    return Finding("firewall", Mark.NOTE, text, opens.format(port=port))


def _relay(node: Node) -> Finding | None:
    """Whether somebody passes on what is for this machine."""
    way = node.reached.way
    if way is Way.RELAYED:
        return Finding("relay", Mark.FINE, f"there is a place for this machine: {node.addresses()[0]}")
    if way in (Way.NONE, Way.INTRODUCED):
        return Finding("relay", Mark.NOTE, "no worker of this swarm has a place for this machine", _START_RELAY)
    return None if way is Way.UNKNOWN else Finding("relay", Mark.FINE, "none is needed")


def _router(node: Node, sights: Sequence[Sight]) -> Finding | None:
    """What is between this machine and the others, by the addresses and ports that they see."""
    places = [sight.place for sight in sights if sight.place is not None]
    if not places:
        return None
    seen = ", ".join(sorted({place.host for place in places}))
    if all(place.host == _own_host(place) for place in places):
        return Finding("router", Mark.FINE, f"no router translates the address of this machine ({seen})")
    text = f"a router translates addresses (NAT): others see {seen}"
    # Calls of a node that listens all come from the port on which it does; those of one that only asks do not.
    if len(places) < 2 or node.directory is None:
        return Finding("router", Mark.FINE, f"{text}; of which kind takes two workers to tell, and a free port here")
    if len({place.port for place in places}) == 1:
        return Finding("router", Mark.FINE, f"{text}, all of them the same port (cone): holes can be punched")
    text = f"{text}, each of them another port (symmetric): only who is reached directly comes together with it"
    return Finding("router", Mark.NOTE, text, f"forward a port of the router; or {_START_RELAY}")


def _own_host(place: Address) -> str:
    """This machine's address on the way to wherever it has the address of ``place``. Sends nothing."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((place.host, place.port))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _clock(sights: Sequence[Sight]) -> Finding | None:
    if not sights:
        return None
    # What a dial back took may have been before or after the clock was read.
    ahead_s = statistics.median(sight.clock_ahead_s for sight in sights)
    text = f"this clock is {abs(ahead_s):.1f} s {'behind' if ahead_s > 0 else 'ahead of'} the others'"
    if abs(ahead_s) > _MAX_SKEW_S:
        return Finding("clock", Mark.MEND, text, "sudo timedatectl set-ntp true")
    return Finding("clock", Mark.FINE, text)


def _link(speed: Speed) -> Finding:
    up, down = mbit(speed.up_bytes_per_s), mbit(speed.down_bytes_per_s)
    text = f"to {short_id(speed.peer)}: {up} mbit/s up, {down} down, {1000 * speed.round_trip_s:.1f} ms there and back"
    return Finding("link", Mark.FINE, text)


def _round(hello: Hello, speeds: Sequence[Speed]) -> Finding | None:
    """What a round of this run would take here, by what rounds have moved at the others so far."""
    trained = [one for one, _ in hello.workers if one.metrics.rounds_in and one.round_s > 0]
    if not speeds:
        return None
    if not trained:
        return Finding("round", Mark.NOTE, "no round is over yet, so what one moves is not known", "ask again later")
    sent = statistics.median(one.metrics.sent_bytes / one.metrics.rounds_in for one in trained)
    received = statistics.median(one.metrics.received_bytes / one.metrics.rounds_in for one in trained)
    steps_s = statistics.median(one.round_s for one in trained)
    up, down = (
        statistics.median(rates)
        for rates in zip(*((s.up_bytes_per_s, s.down_bytes_per_s) for s in speeds), strict=True)
    )
    moves_s = max(sent / up, received / down)
    share = steps_s / (steps_s + moves_s)
    text = (
        f"{size(int(sent))} up and {size(int(received))} down, {moves_s:.1f} s here, after {steps_s:.1f} s of inner "
        f"steps of the others: {share:.0%} of the time in compute where the two do not overlap"
    )
    if share < _LOW_SHARE:
        asks = f"decentral plan ADDR --link {mbit(min(up, down))}mbit"
        fix = f"{asks}, and found the run anew with what it advises, such as another --codec"
        return Finding("round", Mark.NOTE, text, fix)
    return Finding("round", Mark.FINE, text)

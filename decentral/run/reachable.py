"""How others reach a worker, in words: the line at its start, and what ``doctor`` says and advises."""

import logging

from decentral.adapters.node import Node
from decentral.adapters.reach import Reached, Sight, Way
from decentral.types import short_id

_log = logging.getLogger(__name__)


def in_words(reached: Reached) -> str:
    """One line; empty where nobody could tell."""
    sight = reached.sight
    if sight is None:
        return ""
    if reached.way is Way.DIRECT:
        return f"others reach this worker at {_outside(sight)} (dialled by {short_id(sight.by)})"
    why = f"because {_why(sight)}"
    if reached.way is Way.RELAYED:
        return f"others reach this worker only through a relay, {why}"
    if reached.way is Way.INTRODUCED:
        return f"others reach this worker only if both routers let them meet, {why}"
    return f"others do not reach this worker at all, {why}"


def tell(node: Node) -> None:
    """Say it to whoever reads the log of a worker that starts."""
    text = in_words(node.reached)
    if text and node.reached.way is Way.DIRECT:
        _log.info("%s", text)
    elif text:
        _log.warning("%s; see docs/network.md", text)


def advice(reached: Reached, firewall: str) -> str:
    """What to do about a port that is closed.

    Args:
        reached: how others reach this machine.
        firewall: see ``machine.firewall``.
    """
    sight = reached.sight
    if sight is None or reached.way is Way.DIRECT:
        return ""
    forward = f"forward TCP port {sight.port} of the router to this machine, and start with --port {sight.port}"
    ways = [forward] if reached.way is Way.RELAYED else [forward, "let a worker that others reach relay (--relay any)"]
    return "; or ".join([firewall.format(port=sight.port), *ways] if firewall else ways)


def _outside(sight: Sight) -> str:
    assert sight.place is not None
    host = sight.place.host
    return f"[{host}]:{sight.port}" if ":" in host else f"{host}:{sight.port}"


def _why(sight: Sight) -> str:
    return f"{sight.why.rstrip('.') or 'nobody could tell'} (dialled by {short_id(sight.by)})"

"""A node that does as it is told on stdin, a JSON object a line, and answers each with one on stdout."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.errors import TransportError
from decentral.types import PeerId

_BIG = 4 << 20
_TIMEOUT_S = 15.0


async def _obey(node: Node, told: dict[str, Any]) -> Any:
    """Send so many bytes to a peer and have them back, or say where one was seen, or how others reach this one."""
    if told["do"] == "way":
        return [node.reached.way, node.addresses()[0]]
    peer = PeerId(told["peer"])
    if told["do"] == "seen":
        return node.daemon.seen_at(peer)
    try:
        body = bytes(told["size"])
        return body == await node.transport.call(peer, "echo", body, timeout_s=_TIMEOUT_S, max_reply_bytes=_BIG)
    except TransportError:
        return False


async def _main(options: dict[str, Any]) -> None:
    if path := options.pop("identity_path", None):
        options["identity_path"] = Path(path)
    node = await open_node(NodeOptions(**{"port": 31_337, **options}))

    async def echo(sender: PeerId, request: bytes) -> bytes:
        return request

    try:
        await node.transport.serve("echo", echo, max_request_bytes=_BIG)
        answer: Any = [node.identity.peer_id, node.addresses(), node.reached.way]
        while True:
            print(json.dumps(answer), flush=True)
            line = await asyncio.to_thread(sys.stdin.readline)
            if not line:
                return
            answer = await _obey(node, json.loads(line))
    finally:
        await node.close()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))

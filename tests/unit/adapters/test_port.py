import os
import socket
from pathlib import Path

import pytest

from decentral.adapters.port import ensure_free
from decentral.errors import PortTakenError, UsageError


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_reported_with_its_owner(host: str) -> None:
    with socket.socket() as taken:
        # As libp2p does: it shares its port, so that a plain bind by another daemon would succeed in silence.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            ensure_free(host, port)
    owner = f"pid {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    assert caught.value.message == f"Port {port} is taken by {owner}."
    assert caught.value.hint == "Stop it, or use --port 0 to pick a free one."
    ensure_free(host, port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("localhost", 0, '"localhost" is not an IP address'),
        ("203.0.113.7", 0, "Cannot listen on 203.0.113.7"),
        ("127.0.0.1", 65536, "Port 65536 does not exist"),
        ("127.0.0.1", -1, "Port -1 does not exist"),
    ],
)
def test_what_cannot_be_listened_on(host: str, port: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ensure_free(host, port)

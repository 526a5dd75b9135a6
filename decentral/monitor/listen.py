"""Where a worker serves what people and their programs look at: ``PORT`` or ``HOST:PORT``; without a host, loopback."""

from typing import Final

LOOPBACK: Final = "127.0.0.1"


def parse(text: str) -> tuple[str, int]:
    """Host and port; an IPv6 host is in brackets.

    Raises:
        ValueError: it is neither form, or there is no such port.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not port.isascii() or int(port) > 65_535:
        raise ValueError(f"{text} is no place")
    return host.removeprefix("[").removesuffix("]") or LOOPBACK, int(port)

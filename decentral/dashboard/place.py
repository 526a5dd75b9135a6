"""Where the page is served: a port, of which interface, and who may ask for it there."""

import errno
import importlib.util
import ipaddress
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from decentral.errors import ConfigError, PortTakenError
from decentral.monitor.history import History
from decentral.monitor.listen import LOOPBACK, parse

if TYPE_CHECKING:  # needs what may not be installed
    from decentral.dashboard.server import Server

#: Taken if nobody names one; if it is not free, any other.
DEFAULT_PORT = 8471
AUTO = "auto"
_BACKLOG = 32
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Place:
    """A socket that listens, and what a browser has to know for it."""

    listener: socket.socket
    host: str
    """As it was given."""
    port: int
    token: str
    """That every request must have; empty on loopback, which nobody else reaches."""

    @property
    def url(self) -> str:
        """For people. With a token whoever has it can watch."""
        host = socket.gethostname() if _address(self.host) in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def admits(self, host_header: str) -> bool:
        """Whether a request's ``Host`` is this place's: a name of a stranger's may lead here (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host_header}").hostname or ""
        except ValueError:
            return False
        return name in ("localhost", self.host.lower(), socket.gethostname().lower()) or bool(_address(name))


def check(text: str) -> None:
    """Find out early whether the page can be served at all.

    Raises:
        ConfigError: ``text`` is no place, or what serves the page is not installed.
    """
    _parse(text)
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The page needs {' and '.join(missing)}, not installed here.", hint="pip install 'decentral[dashboard]'"
        )


def serve(history: History, text: str) -> "Server":
    """Serve the page of a history at ``text``, as ``listen`` understands it.

    Raises:
        ConfigError: see ``check`` and ``listen``.
        PortTakenError: see ``listen``.
    """
    check(text)
    from decentral.dashboard.server import Server

    return Server(history, listen(text))


def listen(text: str) -> Place:
    """Begin to listen at ``PORT``, ``HOST:PORT`` or ``auto``; without a host on loopback.

    Raises:
        ConfigError: it is none of these, or no address of this machine.
        PortTakenError: another program listens there.
    """
    host, port = _parse(text)
    try:
        listener = _bound(host, port)
    except OSError as err:
        if text != AUTO:
            if isinstance(err, socket.gaierror) or err.errno not in _TAKEN:
                raise ConfigError(f"The page cannot be served at {host}: {err.strerror or err}.") from err
            raise PortTakenError(
                f"Port {port} of {host}, for the page, cannot be had: {err.strerror or err}.",
                hint="Choose another one, or 0 for any free one: --dashboard 0.",
            ) from err
        listener = _bound(host, 0)
    token = "" if _is_loopback(listener.getsockname()[0]) else secrets.token_urlsafe(16)
    return Place(listener, host, listener.getsockname()[1], token)


def _parse(text: str) -> tuple[str, int]:
    if text == AUTO:
        return LOOPBACK, DEFAULT_PORT
    try:
        return parse(text)
    except ValueError as err:
        raise ConfigError(
            f"--dashboard {text} is no place.", hint="Give PORT or HOST:PORT, such as 8471 or 0.0.0.0:8471."
        ) from err


def _bound(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _address(name: str) -> str:
    """A name that is an IP address, as such are written; empty if it is none."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback

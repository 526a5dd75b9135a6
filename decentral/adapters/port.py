"""Whether a port is free, and if it is not, whose it is.

libp2p shares a port with whoever else asks to share it, so a second daemon on a port in use starts in silence and
the two then steal each other's connections. Hence the check before the start.
"""

import errno
import ipaddress
import os
import socket
from pathlib import Path

from decentral.adapters.hivemind_light import P2PD_FILENAME
from decentral.errors import PortTakenError, UsageError

_LISTENING = "0A"


def ensure_free(host: str, port: int) -> None:
    """Check that this process may listen on ``host``:``port``. Port 0, the kernel's choice, is always free.

    Raises:
        PortTakenError: names the owner if the system tells.
        UsageError: the address is not this machine's, or the port is not for everybody.
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise UsageError(
            f'"{host}" is not an IP address to listen on.', hint="Use 0.0.0.0 for all networks of this machine."
        ) from None
    if not 0 <= port < 65536:
        raise UsageError(f"Port {port} does not exist; ports go up to 65535.")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # What only lingers (TIME_WAIT) is no owner.
        try:
            probe.bind((host, port))
        except OSError as err:
            raise _explained(host, port, err) from None


def free_port(host: str) -> int:
    """One that nobody has at this moment."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        return int(found.getsockname()[1])


def _explained(host: str, port: int, err: OSError) -> PortTakenError | UsageError:
    if err.errno == errno.EADDRINUSE:
        owner = owner_of(port)
        return PortTakenError(
            f"Port {port} is taken by {owner or 'another program'}.",
            hint="Stop it, or use --port 0 to pick a free one.",
        )
    if err.errno == errno.EACCES:
        return UsageError(f"Port {port} is reserved for the system.", hint="Use a port from 1024 on, or --port 0.")
    return UsageError(f"Cannot listen on {host}: {err.strerror or err}.", hint="Is it an address of this machine?")


def owner_of(port: int) -> str:
    """The program that listens on a TCP port, as ``pid 4121 (python)``; empty if the system does not tell.

    Linux only, and only for processes of the same user (or for root).
    """
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        try:
            if any(os.readlink(handle) in sockets for handle in (process / "fd").iterdir()):
                return _described(process)
        except OSError:
            continue
    return ""


def _described(process: Path) -> str:
    name = (process / "comm").read_text().strip()
    if name == P2PD_FILENAME:  # A worker's daemon: the worker is what one would stop.
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return _described(process.with_name(parent))
    return f"pid {process.name} ({name})"


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes

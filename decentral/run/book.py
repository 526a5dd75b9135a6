"""Which run a worker's folder is of, and where others of it were: what it takes to find them again.

Written by ``acquaintances`` while the run goes on. Knows no node and no swarm; imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from decentral.adapters.address import Address, parse_address
from decentral.errors import ConfigError, UsageError
from decentral.run.folder import RUN, OwnFile, read_json, whole_file
from decentral.types import PeerId

#: Those heard of last are kept.
MAX_ADDRESSES = 32
#: Of one worker, best first: a machine has several networks, and which of them leads to it is not known yet.
_MAX_OF_A_PEER = 2
_MAX_BYTES = 65_536


class _File(OwnFile, frozen=True, kw_only=True):
    """The file as it is."""

    run: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
    port: Annotated[int, Meta(ge=0, lt=65_536)]
    addresses: list[str]


@dataclass(slots=True)
class Book:
    """The run of a folder, and its address book."""

    run: str
    """Its id."""
    port: int
    """Where this worker listened; 0 if that is not known."""
    addresses: tuple[Address, ...] = ()
    """Of others, each with its peer id; those heard of last first."""

    def heard(self, addresses: Sequence[str]) -> None:
        """A worker was heard of, who is at these full multiaddrs, best first; what was known of it is replaced."""
        new = [_parsed(text) for text in addresses[:_MAX_OF_A_PEER]]
        peers = {address.peer for address in new}
        self.addresses = (*new, *(known for known in self.addresses if known.peer not in peers))[:MAX_ADDRESSES]

    def peers(self) -> list[PeerId]:
        """Who is in the book, those heard of last first."""
        return list(dict.fromkeys(address.peer for address in self.addresses if address.peer is not None))

    def save(self, folder: Path) -> None:
        """Write it into the folder; it appears when it is complete.

        Raises:
            OSError: it cannot be written.
        """
        addresses = [address.multiaddr() for address in self.addresses]
        packed = msgspec.json.encode(_File(run=self.run, port=self.port, addresses=addresses))
        with whole_file(folder / RUN, "wb") as file:
            file.write(msgspec.json.format(packed) + b"\n")


def read_book(folder: Path) -> Book | None:
    """What a folder says of its run; ``None`` if it says nothing.

    Raises:
        ConfigError: the file cannot be read, or is not what it should be.
    """
    path = folder / RUN
    hint = f"Move it away and take --join ADDR --out {folder}: the worker keeps its identity and its checkpoints."
    try:
        found = read_json(path, _File, _MAX_BYTES)
        if found is None:
            return None
        return Book(found.run, found.port, tuple(_parsed(text) for text in found.addresses[:MAX_ADDRESSES]))
    except (ValueError, UsageError) as err:
        raise ConfigError(f"{path} is damaged: {err}.", hint=hint) from err


def _parsed(text: str) -> Address:
    """Raises UsageError or ValueError for what is no address of a worker."""
    address = parse_address(text, option=RUN)
    if address.peer is None:
        raise ValueError(f"{text} does not say which worker is there")
    return address

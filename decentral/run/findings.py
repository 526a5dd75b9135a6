"""What ``decentral doctor`` finds: one line each, with the command that mends it. Knows neither how nor where from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

#: Of the JSON, described in docs/network.md. Adding a field is compatible, anything else raises it.
SCHEMA = 1


class Mark(StrEnum):
    """How much a finding matters."""

    FINE = "fine"
    NOTE = "note"
    """It works, but not as well as it could; or it could not be found out."""
    MEND = "mend"
    """A worker cannot do its part as it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them."""

    about: str
    """In a word, such as ``port``."""
    mark: Mark
    text: str
    fix: str = ""
    """A command, or what to do if there is none; empty where nothing is to be done."""


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "schema": SCHEMA,
        "mend": sum(finding.mark is Mark.MEND for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }

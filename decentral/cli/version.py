"""Which commit this is: as the build noted it, or as git knows of a checkout."""

import subprocess
from pathlib import Path

import decentral

_PACKAGE = Path(decentral.__file__).parent
_TIMEOUT_S = 2.0
_DIGITS = 12


def commit() -> str:
    """The first digits of the commit's hash, with ``+`` if a checkout has changes; empty if nobody knows."""
    noted = _PACKAGE / "commit.txt"  # put there by scripts/packaging.py
    if noted.exists():
        return noted.read_text().strip()[:_DIGITS]
    if not (_PACKAGE.parent / ".git").exists():
        return ""
    command = (
        "git",
        "-C",
        str(_PACKAGE.parent),
        "describe",
        "--always",
        "--exclude=*",
        "--dirty=+",
        f"--abbrev={_DIGITS}",
    )
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()

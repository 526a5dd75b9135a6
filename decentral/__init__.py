"""decentral trains one model on many poorly connected machines.

``found``, ``join`` and ``resume`` put a swarm beside your own training loop. To see how it works open
``decentral/engine/worker.py``: it reads from top to bottom as the algorithm.

Importing this package starts no thread, touches no accelerator, configures no logging, reads no environment variable
and loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decentral.run.opening import found as found
    from decentral.run.opening import join as join
    from decentral.run.opening import resume as resume
    from decentral.run.rows import Rows as Rows
    from decentral.run.swarm import Swarm as Swarm

__version__ = "0.1.0"

#: Spoken between peers, who refuse another one. Raise it when a message changes shape or meaning.
PROTOCOL = 14

_PUBLIC = {
    "found": "decentral.run.opening",
    "join": "decentral.run.opening",
    "resume": "decentral.run.opening",
    "Rows": "decentral.run.rows",
    "Swarm": "decentral.run.swarm",
}


def __getattr__(name: str) -> Any:
    """The public names, each loaded at its first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'decentral' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)

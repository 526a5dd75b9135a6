"""A ``decentral worker`` that lies, or tells liars what it brings.

    python -m scripts.benches.attacks_worker NAME BOARD NUM_HONEST SEED worker ...

NAME is an attack of ``lib.attacks.VALUES``, or ``honest``. The production worker in a process of its own, with the lies
of the simulator around what it brings. Liars that know what the honest bring know it by files in the folder BOARD.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from decentral.cli.__main__ import main as decentral
from decentral.engine.options import Parts, RunOptions
from decentral.engine.worker import Worker
from decentral.types import PeerId, SyncKey
from scripts.benches.lib.attacks import Board, lie, watch

HONEST = "honest"
#: Attacks whose liars know what the honest bring.
KNOWING = ("alie", "foe")
#: For so long a liar waits for what the honest bring, seconds.
_WAIT_S = 4.0


class Files(Board):
    """A board of several processes.

    Args:
        folder: has a file for each fragment and peer.
        num_honest: who write there.
    """

    def __init__(self, folder: Path, num_honest: int) -> None:
        super().__init__(num_honest=num_honest, wait_s=_WAIT_S)
        self._folder = folder

    def note(self, key: SyncKey, peer: PeerId, delta_N: Tensor) -> None:
        """Write it in the place of what the peer had brought before."""
        path = self._folder / f"{key.fragment}-{peer}.pt"
        part = path.with_suffix(".part")
        torch.save((key.round, delta_N.clone()), part)
        os.replace(part, path)

    def complete(self, key: SyncKey) -> bool:
        """Whether all honest workers have brought theirs to this round."""
        self.brought[key.fragment] = {
            PeerId(path.stem): torch.load(path) for path in self._folder.glob(f"{key.fragment}-*.pt")
        }
        return super().complete(key)


def work() -> None:
    """Run the rest of the command line in this process, with another worker."""
    name, folder, num_honest, seed = sys.argv[1:5]
    del sys.argv[1:5]
    board = Files(Path(folder), int(num_honest)) if name in (HONEST, *KNOWING) else Board()
    begin = Worker.__init__

    def meddled(self: Worker, options: RunOptions, parts: Parts) -> None:
        begin(self, options, parts)
        if name == HONEST:
            watch(self._exchange, parts.transport.peer_id, board)
        else:
            lie(self, name, board, int(seed))

    Worker.__init__ = meddled  # type: ignore[method-assign]
    decentral()


if __name__ == "__main__":
    work()

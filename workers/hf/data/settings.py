"""What can be set of the data, equal on all workers. Which files it is in is each machine's own (``--data``)."""

import math
from dataclasses import dataclass

from decentral.errors import ConfigError
from decentral.workers.settings import require


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What rows there are, how they become sequences, and which are held out."""

    dataset: str = ""
    """Data sets by name on the hub, or folders, with commas; ``name:config`` for one of several configurations."""
    split: str = "train"
    """Of data sets by name."""
    text_field: str = "text"
    """Field of a row that has its text."""
    weights: str = ""
    """Shares of a mixture, such as ``3,1``: one for each data path, then one for each data set by name. Without
    them all rows together are one data set."""
    document_mask: bool = False
    """Whether a document sees nothing of what stands before it in its sequence."""
    streaming: bool = False
    """Read from the beginning to the end, and not gone through before training."""
    held_out: float = 0.05
    """Share of the rows that is validated on and not trained on, by a hash of their text."""
    val_batches: int = 8
    """Held-out batches behind a validation loss, at most."""
    prefetch: int = 1
    """Processes of each data set that read and tokenise ahead; 0 to do it between the steps."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        for name, low, high in (("held_out", 0.0, 0.5), ("val_batches", 1, 10_000), ("prefetch", 0, 64)):
            value = getattr(self, name)
            require(low <= value <= high, f"data.{name}", value, f"from {low} to {high}")
        if not self.text_field:
            raise ConfigError("data.text_field is empty", hint="Name the field of a row that has its text.")
        self.shares()

    def names(self) -> list[str]:
        """The data sets by name."""
        return [name.strip() for name in self.dataset.split(",") if name.strip()]

    def shares(self) -> list[float]:
        """The weights as numbers; empty if there are none.

        Raises:
            ConfigError: one is none, or not above 0.
        """
        parts = [part.strip() for part in self.weights.split(",")] if self.weights.strip() else []
        try:
            shares = [float(part) for part in parts]
        except ValueError:
            shares = [math.nan]
        if not all(0 < share < math.inf for share in shares):
            raise ConfigError(
                f"data.weights is {self.weights!r}",
                hint='It must be numbers above 0 with commas between, such as "3,1".',
            )
        return shares

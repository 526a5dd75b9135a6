"""What all members agree on about a run without rounds, in which parameter servers take the outer steps."""

from dataclasses import dataclass

from decentral.outer.delayed_nesterov import DelayedNesterov


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Parameter servers in place of the all-reduce.

    Raises:
        ValueError: a setting out of range.
    """

    lr: float = 0.7
    momentum: float = 0.9
    every: int = 0
    """N of delayed Nesterov: arrivals between two changes of the momentum; 0 for as many as there are workers."""
    share: float = 0.0
    """c of delayed Nesterov."""
    dylu: bool = True
    """Whether slow workers take fewer inner steps between two pushes (see ``schedule.dylu``)."""
    bound: float = 5.0
    """See ``exchange.server.usual``; 0 for no bounds. 5 is the configuration's default as well."""

    def __post_init__(self) -> None:
        _ = self.rule
        if self.every < 0:
            raise ValueError(f"momentum changes after at least one arrival, or 0 for one of every worker: {self.every}")

    @property
    def rule(self) -> DelayedNesterov:
        """What a server steps by."""
        return DelayedNesterov(self.lr, self.momentum, self.share)

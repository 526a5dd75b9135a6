"""A wish to stop, or to save at once, between those who have it and those who carry it out. Knows neither."""

from collections.abc import Callable


class Stop:
    """A wish to stop, or to save as this machine may be taken away; either may come at any time, from any thread."""

    def __init__(self) -> None:
        self._asked = self._preempted = False
        self._act: Callable[[], object] = lambda: None
        self._save: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        """Ask to stop."""
        self._asked = True
        self._act()

    def preempt(self) -> None:
        """Tell that this machine may be taken away soon."""
        self._preempted = True
        self._save()

    def then(self, act: Callable[[], object], *, preempted: Callable[[], object]) -> None:
        """What to do when asked to stop, and when ``preempted``; at once if that has happened already."""
        self._act, self._save = act, preempted
        if self._preempted:
            preempted()
        if self._asked:
            act()

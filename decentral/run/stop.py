"""A wish to stop, between those who have it and those who carry it out. Knows neither."""

from collections.abc import Callable


class Stop:
    """A wish to stop that may come at any time, from any thread."""

    def __init__(self) -> None:
        self._asked = False
        self._act: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        """Ask to stop."""
        self._asked = True
        self._act()

    def then(self, act: Callable[[], object]) -> None:
        """What to do when asked; at once if that has happened already."""
        self._act = act
        if self._asked:
            act()

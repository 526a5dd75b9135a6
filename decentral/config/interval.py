"""How often something is done, as people write it: 10min, 90s, 2h, 500steps."""

import re

from decentral.schedule.every import Every

INTERVAL = "a time or a number of inner steps, such as 10min, 90s, 2h or 500steps, or 0 for only at the end"
_UNITS_S = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_MAX_S, _MAX_STEPS = 30 * 86_400.0, 10_000_000
_WRITTEN = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*")


def parse(text: str) -> Every:
    """What ``text`` stands for; 0 is never.

    Raises:
        ValueError: it is no interval, or out of range.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueError(f"it must be {INTERVAL}")
    number, unit = float(found[1]), found[2].lower()
    if number == 0:
        return Every()
    if unit in ("step", "steps"):
        if not number.is_integer() or number > _MAX_STEPS:
            raise ValueError(f"steps are a whole number from 1 to {_MAX_STEPS:,}")
        return Every(steps=int(number))
    if unit not in _UNITS_S:
        wrong = f"{unit} is not a unit" if unit else "it has no unit"
        raise ValueError(f"{wrong}: write s, min, h or d for time, or steps")
    seconds = number * _UNITS_S[unit]
    if not 1 <= seconds <= _MAX_S:
        raise ValueError(f"it must be from 1 second to {_MAX_S / 86_400:.0f} days")
    return Every(seconds=seconds)

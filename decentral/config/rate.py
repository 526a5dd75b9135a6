"""Rates as people write them, such as 20mbit or 2.5MB (a second), to and from bytes per second."""

import re

#: A call that moves S bytes may take 5 s + S / 50 kB/s (``swarm.timing.Timing``), so with less than that values of more
#: than some 80 kB never arrive, whatever the model. Who sends large ones to several workers at once needs more.
LEAST_BYTES_PER_S = 50_000.0
RATE = "a rate such as 20mbit or 2.5MB, in bytes per second if it is a number, or 0 for no limit"

_BITS = {"kbit": 125.0, "mbit": 125e3, "gbit": 125e6}
_BYTES = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_WRITTEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*([A-Za-z]*)(?:/s)?\s*")


def to_bytes_per_s(text: str) -> float:
    """What ``text`` stands for; per second goes without saying. Bits in any case, bytes with a capital B; 0 without.

    Raises:
        ValueError: it is no number with a unit.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueError("it must be a number and a unit, such as 20mbit or 2.5MB")
    number, unit = float(found[1]), found[2]
    factor = _BITS.get(unit.lower()) or _BYTES.get(unit)
    if factor is None and (unit or number):
        wrong = f"{unit} is not a unit" if unit else "it has no unit"
        raise ValueError(f"{wrong}: write kbit, mbit or gbit for bits a second, kB, MB or GB for bytes")
    return number * (factor or 0.0)


def check(bytes_per_s: float) -> float:
    """``bytes_per_s`` if it can be a limit; 0 stands for none.

    Raises:
        ValueError: it is negative, or too little to take part.
    """
    if bytes_per_s < 0:
        raise ValueError("it must not be negative; 0 stands for no limit")
    if 0 < bytes_per_s < LEAST_BYTES_PER_S:
        raise ValueError(
            f"{show_rate(bytes_per_s)} is less than {show_rate(LEAST_BYTES_PER_S)}, below which the messages of "
            "a round come too late, and others go on without this worker"
        )
    return bytes_per_s


def show_rate(bytes_per_s: float) -> str:
    """A rate in bits, as ``to_bytes_per_s`` reads it."""
    unit = next((unit for unit in ("gbit", "mbit") if bytes_per_s >= _BITS[unit]), "kbit")
    return f"{bytes_per_s / _BITS[unit]:.12g}{unit}"

"""Figures in words, for logs and tables: losses, shares, counts, rates, sizes. Pure; must not import torch."""

import math


def loss(value: float) -> str:
    """A loss with three decimals, or a dash if it is not known."""
    return f"{value:.3f}" if abs(value) < 1000 else "-" if math.isnan(value) else f"{value:.0e}"


def percent(value: float) -> str:
    """A share in per cent, or a dash if it is not known."""
    return f"{value:.1%}" if value < 9.9995 else "-" if math.isnan(value) else ">999%"


def amount(value: float) -> str:
    """A count with a unit prefix: ``3.2M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{min(value / factor, 9999):.3g}{unit}"
    return f"{value:.0f}"


def mbit(bytes_per_s: float) -> str:
    """A rate in mbit/s: ``19.8``."""
    rate = min(bytes_per_s * 8e-6, 99_999)
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.1f}" if rate >= 0.095 else f"{rate:.2f}"


def size(num_bytes: int) -> str:
    """Bytes with a decimal unit: ``12.3MB``."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            scaled = min(num_bytes / factor, 9999)
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"
    return f"{num_bytes}B"


def age(seconds: float) -> str:
    """How long ago something was: ``12min``."""
    for factor, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= factor:
            return f"{min(seconds / factor, 99_999):.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def traffic(sent_bytes: int, dp_bytes: int) -> str:
    """Bytes sent against what data-parallel training would have sent."""
    if not sent_bytes or not dp_bytes:
        return f"sent {size(sent_bytes)}"
    ratio = dp_bytes / sent_bytes
    times = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"sent {size(sent_bytes)} (data-parallel {size(dp_bytes)}, {times}x)"

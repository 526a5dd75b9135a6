"""Figures in words, for logs and tables: losses, shares, counts, rates, sizes. Pure; must not import torch."""

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


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


def duration(seconds: float) -> str:
    """About how long, rounded: ``40 s``, ``2 min``, ``3 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{round(seconds / 3600)} h"


def download(received_bytes: int, total_bytes: int, num_donors: int, left_s: float) -> str:
    """How far a download is; a ``left_s`` that is not finite is not known."""
    share = received_bytes / total_bytes if total_bytes else 1.0
    donors = f"{num_donors} donor{'s' if num_donors != 1 else ''}"
    left = f", about {duration(left_s)} left" if math.isfinite(left_s) else ""
    return f"downloading {share:.0%} of {size(total_bytes)} from {donors}{left}"


def restraint(kind: str, ratio: float) -> str:
    """What was done to a contribution, such as "weighed 9.1 times as much as usual and was cut down"."""
    match kind:
        case "weight":
            return f"weighed {ratio:.3g} times as much as usual and was cut down"
        case "length":
            return f"was {ratio:.3g} times as long as usual and was cut down"
        case "wild":
            return f"was {ratio:.3g} times as long as usual and was left out"
        case "against":
            return f"pointed away from the others (cosine {ratio:.2f}) and was left out"
        case "mean":
            return "was no mean of its shard, which nobody uses"
        case "turned":
            return f"pointed against what most members brought (cosine {ratio:.2f} with ours): nobody uses it"
        case "silent":
            return "came twice without an account: it reduces nothing for a while where this worker leads"
        case "proven":
            return "was, as it has signed itself, no mean of what it got: it is barred"
    return "was nothing and was left out"


def finding(kind: str) -> str:
    """What the same is called where it is counted."""
    match kind:
        case "mean":
            return "answered no mean"
        case "turned":
            return "answered against most"
        case "silent":
            return "gave no account"
        case "proven":
            return "proven to lie and barred"
    return f"restrained for {kind}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A series as a row of bars from its lowest to its highest value, in at most ``width`` characters.

    Of more values each character is the mean of several; one that is not known is a space.
    """
    groups = min(width, len(values))
    means = []
    for index in range(groups):
        part = values[index * len(values) // groups : (index + 1) * len(values) // groups]
        known = [value for value in part if math.isfinite(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    known = [value for value in means if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] if math.isfinite(value) else " " for value in means)

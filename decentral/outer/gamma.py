"""How strong the pull of gossip may be. Knows no torch: the configuration checks it as well as the rule."""

import math


def gamma_range(momentum: float, group_size: int) -> tuple[float, float]:
    """The open range of NoLoCo's pull in which the spread between replicas stays bounded.

    ``sqrt(n / (2 (n - 1))) * alpha < gamma < sqrt(n (2 + alpha^2) / (2 (n - 1)))``

    Args:
        momentum: alpha, in [0, 1).
        group_size: n, the members of a group, at least 2.

    Returns:
        Lower and upper end, both excluded.

    Raises:
        ValueError: an argument out of range.

    Source: NoLoCo (arXiv 2506.10911), equation 74.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"the outer momentum must be at least 0 and below 1, got {momentum}")
    if group_size < 2:
        raise ValueError(f"a group has at least 2 members, got {group_size}")
    share = group_size / (2 * (group_size - 1))
    return math.sqrt(share) * momentum, math.sqrt(share * (2 + momentum * momentum))

"""How strong the pull of gossip may be. Knows no torch: the configuration checks it as well as the rule."""

import math


def gamma_range(momentum: float, group_size: int) -> tuple[float, float]:
    """The open range of gamma in which the spread between NoLoCo's replicas stays bounded.

    ``sqrt(n / (2 (n - 1))) * alpha < gamma < sqrt(n (2 + alpha^2) / (2 (n - 1)))``

    Args:
        momentum: alpha, in [0, 1).
        group_size: n, the members of a group, at least 2.

    Returns:
        Lower and upper end, both excluded.

    Raises:
        ValueError: a group of fewer than two.

    Source: NoLoCo (arXiv 2506.10911), equation 74: sufficient for the variance between replicas to stay bounded, for
    a quadratic loss and independent noise.
    """
    if group_size < 2:
        raise ValueError(f"a group has at least 2 members, got {group_size}")
    share = group_size / (2 * (group_size - 1))
    return math.sqrt(share) * momentum, math.sqrt(share * (2 + momentum * momentum))

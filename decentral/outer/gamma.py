"""How strong the pull of gossip may be. Knows no torch: the configuration checks it as well as the rule."""

import math


def gamma_range(momentum: float, group_size: int) -> tuple[float, float]:
    """The open range of gamma in which NoLoCo's replicas stay together.

    ``sqrt(n / (2 (n - 1))) * alpha < gamma < sqrt(n (2 + alpha^2) / (2 (n - 1)))``, and besides
    ``gamma < 2 (1 - alpha^2) / (1 - alpha (1 - 2 / n))``

    Args:
        momentum: alpha, in [0, 1).
        group_size: n, the members of a group, at least 2.

    Returns:
        Lower and upper end, both excluded.

    Raises:
        ValueError: a group of fewer than two, or a momentum with which there is no such gamma.

    Source: the first line is equation 74 of NoLoCo (arXiv 2506.10911). Difference: the second one, our own. It is where
    the second moments of anchors and momenta grow under the pull alone; for a momentum above 0.5 in pairs it is the
    narrower one, and equation 74 lets replicas drift apart. See docs/algorithms/noloco.md.
    """
    if group_size < 2:
        raise ValueError(f"a group has at least 2 members, got {group_size}")
    share = group_size / (2 * (group_size - 1))
    stable = 2 * (1 - momentum**2) / (1 - momentum * (1 - 2 / group_size))
    low, high = math.sqrt(share) * momentum, min(math.sqrt(share * (2 + momentum**2)), stable)
    if low >= high:
        raise ValueError(
            f"with momentum alpha = {momentum:g} no gamma keeps replicas together in groups of n = {group_size}: "
            f"it would have to be above {low:.4g} and below {high:.4g}"
        )
    return low, high

"""How much of its time a worker computes, by arithmetic. Knows no engine, no configuration and no tensors.

A model is ``layers`` equal layers. An inner step is a chain of equal pieces of work on one processor: the forward pass
of every layer; then, from the last layer down, the gradient towards the layer below (which the first layer does not
need) and the gradient of the layer's own parameters, a third of the step each. A layer that is due is reduced right
after its own gradient, over one link that carries one layer at a time, first come first served. Its next forward pass
but ``delay_steps`` waits for that. Time that the chain stands still is what is lost.
"""

import math
from dataclasses import dataclass

#: What needs so many times the bandwidth that would do if nothing ever waited is out of reach.
_MOST_TIMES = 1e9
#: To which a bandwidth is searched, relative.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained, and how fast.

    Args:
        parameters: values, above 0, spread evenly over the layers.
        layers: at least 1.
        step_s: seconds of an inner step that waits for nothing, above 0.

    Raises:
        ValueError: an argument out of range.
    """

    parameters: float
    layers: int
    step_s: float

    def __post_init__(self) -> None:
        for name, value in (("parameters", self.parameters), ("the time of a step", self.step_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")


@dataclass(frozen=True, slots=True)
class Method:
    """What is reduced, and when.

    Fragment f of P holds the layers f, f + P, f + 2 P, ... and is due in step ``floor((f + 1) H / P)`` of every H.

    Args:
        name: for people.
        inner_steps: H, at least 1.
        layers_per_fragment: 0 for the whole model in one.
        delay_steps: tau, steps that a result may take without anybody waiting, below H.
        bits: of a value on the wire, above 0.
        at_end: whether what is due is sent when the step is over, as our engine does, not layer by layer within it.

    Raises:
        ValueError: an argument out of range.
    """

    name: str
    inner_steps: int
    layers_per_fragment: int = 0
    delay_steps: int = 0
    bits: float = 16.0
    at_end: bool = False

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if self.layers_per_fragment < 0:
            raise ValueError(f"layers_per_fragment must be at least 0, got {self.layers_per_fragment}")
        if not 0 <= self.delay_steps < self.inner_steps:
            raise ValueError(
                f"delay_steps must be at least 0 and below inner_steps = {self.inner_steps}, got {self.delay_steps}"
            )
        if not 0 < self.bits < math.inf:
            raise ValueError(f"bits must be finite and above 0, got {self.bits}")

    def due(self, layers: int) -> dict[int, frozenset[int]]:
        """Which layers are reduced in which step of a cycle, both counted from 0."""
        fragments = -(-layers // self.layers_per_fragment) if self.layers_per_fragment else 1
        due: dict[int, frozenset[int]] = {}
        for fragment in range(fragments):
            step = max(1, (fragment + 1) * self.inner_steps // fragments) - 1
            due[step] = due.get(step, frozenset()) | frozenset(range(fragment, layers, fragments))
        return due


@dataclass(frozen=True, slots=True)
class Swarm:
    """Who reduces.

    Args:
        workers: N, at least 2. An all-reduce moves ``2 (N - 1) / N`` times the values over each worker's line, in each
            direction; with two workers that is plain exchange.
        latency_s: what a reduce takes besides moving its bytes, at least 0: a round trip.

    Raises:
        ValueError: an argument out of range.
    """

    workers: int = 2
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise ValueError(f"workers must be at least 2, got {self.workers}")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"latency_s must be finite and at least 0, got {self.latency_s}")

    def bits_of(self, model: Model, method: Method) -> float:
        """What a worker sends for a reduce of the whole model."""
        return 2 * (self.workers - 1) / self.workers * method.bits * model.parameters


def utilisation(model: Model, method: Method, bits_per_s: float, swarm: Swarm = Swarm()) -> float:
    """The share of time in which a worker computes, in a run that has settled.

    Args:
        model: what is trained.
        method: how.
        bits_per_s: of each worker's line, in each direction; at least 0 and possibly infinite.
        swarm: with whom.

    Returns:
        A share in [0, 1]; never less for more ``bits_per_s``.

    Raises:
        ValueError: a negative bandwidth.

    Source: the simulation of Streaming DiLoCo (arXiv 2501.18512), table 4, whose text gives the nodes of the graph (a
    layer's forward, two backward and reduce nodes) and no more. Ours are: equal shares of forward and backward nodes,
    one layer at a time on the link, embeddings left out, the latency, and the factor for more than two workers.
    """
    if not bits_per_s >= 0:
        raise ValueError(f"a bandwidth must be at least 0, got {bits_per_s}")
    if bits_per_s == 0:
        return 0.0
    reduce_s = swarm.bits_of(model, method) / model.layers / bits_per_s
    ends = _ends(model, method, reduce_s, swarm.latency_s)
    computed_s = method.inner_steps * model.step_s
    cycle_s = (ends[-1] - ends[len(ends) // 2 - 1]) / (len(ends) // 2)
    # The link alone may need longer than cycles take at first: nobody notices before results are late.
    return min(1.0, computed_s / max(cycle_s, model.layers * reduce_s))


def bandwidth_for(target: float, model: Model, method: Method, swarm: Swarm = Swarm()) -> float:
    """The least bandwidth, in bits per second, with which utilisation is at least ``target``; by bisection.

    Args:
        target: in (0, 1).
        model: what is trained.
        method: how.
        swarm: with whom.

    Returns:
        Infinity if latency alone keeps utilisation below the target.

    Raises:
        ValueError: the target is out of range.
    """
    if not 0 < target < 1:
        raise ValueError(f"the utilisation asked for must be above 0 and below 1, got {target}")
    # With less the link alone would take too long.
    low = target * swarm.bits_of(model, method) / (method.inner_steps * model.step_s)
    if utilisation(model, method, low * _MOST_TIMES, swarm) < target:
        return math.inf
    high = low * 2
    while utilisation(model, method, high, swarm) < target:
        low, high = high, high * 2
    while high > low * (1 + _TOLERANCE):
        middle = math.sqrt(low * high)
        if utilisation(model, method, middle, swarm) < target:
            low = middle
        else:
            high = middle
    return high


def _ends(model: Model, method: Method, reduce_s: float, latency_s: float) -> list[float]:
    """When each cycle of ``inner_steps`` ends; an even number of cycles, in the first half of which a run settles."""
    cycles = 2 * max(2, -(-4 // method.inner_steps))
    layers, piece_s = model.layers, model.step_s / (3 * model.layers - 1)
    due = method.due(layers)
    now_s = link_free_s = 0.0
    arrivals: dict[int, dict[int, float]] = {}  # step -> layer -> when its forward pass may begin
    ends = []
    for step in range(cycles * method.inner_steps):
        awaited, reduced = arrivals.pop(step, {}), due.get(step % method.inner_steps)
        if awaited:
            for layer in range(layers):
                now_s = max(now_s, awaited.get(layer, 0.0)) + piece_s
        else:
            now_s += layers * piece_s
        if reduced:
            arriving: dict[int, float] = {}
            if method.at_end:
                link_free_s = max(now_s + (2 * layers - 1) * piece_s, link_free_s)
            for layer in reversed(range(layers)):
                now_s += 2 * piece_s if layer else piece_s
                if layer in reduced:
                    link_free_s = max(now_s, link_free_s) + reduce_s
                    arriving[layer] = link_free_s + latency_s
            arrivals[step + 1 + method.delay_steps] = arriving
        else:
            now_s += (2 * layers - 1) * piece_s
        if (step + 1) % method.inner_steps == 0:
            ends.append(now_s)
    return ends

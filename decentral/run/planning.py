"""What a method costs on given machines and lines, and which to take: bytes, memory, time in compute, by arithmetic.

It knows the configuration and the arithmetic of ``sim.utilisation``. It builds no model and asks nobody: where the
figures of a case come from is up to ``run.sizing``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from decentral.codecs.codec import bits_per_value, make_codec
from decentral.config.method import MethodSection
from decentral.config.names import METHODS, Family
from decentral.config.resolve import resolve_method
from decentral.config.schema import SwarmConfig
from decentral.config.settings import checked
from decentral.errors import ConfigError
from decentral.ports.trainer import Size
from decentral.run.options import rule_of
from decentral.sim import utilisation as arithmetic
from decentral.sim.utilisation import Model, Swarm, bandwidth_for, utilisation

#: Share of a line that the values of a round reach: 53 to 79 % on lines of 50 and 100 Mbit/s (benchmarks/links.md).
LINE_USED: Final = 0.7
#: Round trips of a sync beside its values: to its leader, to the reducers, for their means, and to be ready again.
ROUND_TRIPS: Final = 4
#: The share of time in compute that is enough.
ENOUGH: Final = 0.95
#: Inner steps of a round that are tried, the best for the loss first.
_LADDER: Final = (3, 5, 10, 20, 30, 50, 100, 200, 500)
#: With fewer steps there is nothing to hide a part of an exchange under.
_OVERLAPS_FROM: Final = 10
_COARSER: Final = "int4-b128"
#: In rounds of so many steps the anchor goes beyond the mean, and workers who trained on meanwhile take it as it is.
#: In runs of so many steps that ends as low as shorter rounds of plain averaging, for fewer bytes; and in so many
#: rounds of so many steps all is as in the papers (docs/algorithms/diloco.md).
_BEYOND_FROM: Final = 10
_LONG_RUN: Final = 1000
_BEYOND: Final = {
    "method.name": "diloco",
    "method.outer_lr": 1.0,
    "method.outer_momentum": 0.7,
    "method.mix_alpha": 0.0,
}
_MANY_ROUNDS, _LONG_ROUND = 500, 20
#: That a run may have.
_MOST_ROUNDS = 10_000_000
#: Of an all-reduce in float32, as data-parallel training has it; of one value.
_FP32_BITS, _VALUE_BYTES = 32.0, 4
#: Values for each parameter that training alone keeps: weight, gradient, two moments of AdamW.
_OF_TRAINING = 4
#: Means of earlier rounds that members keep for who missed them, at most.
_MEANS_KEPT = 2
#: What a founder's choice is about; who states one of them has chosen.
DECIDED: Final = frozenset(
    f"method.{key}" for key in ("name", "inner_steps", "outer_lr", "outer_momentum", "fragments", "delay_steps")
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained, by how many, over which lines.

    Raises:
        ValueError: a figure out of range.
    """

    size: Size
    step_s: float
    """Seconds of an inner step of one worker."""
    workers: int
    bytes_per_s: float
    """Of each worker's line, in each direction."""
    round_trip_s: float
    tokens: float
    """Of the whole run, all workers together."""

    def __post_init__(self) -> None:
        self.model  # noqa: B018  (its checks are those of a model)
        Swarm(self.workers, self.round_trip_s)
        for name, value in (("the rate of a line", self.bytes_per_s), ("tokens", self.tokens)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value:g}")
        if self.size.tokens_per_step < 1:
            raise ValueError(f"tokens of a step must be at least 1, got {self.size.tokens_per_step}")

    @property
    def model(self) -> Model:
        """As the arithmetic has it."""
        return Model(self.size.parameters, self.size.layers, self.step_s)

    @property
    def steps(self) -> int:
        """Inner steps of each worker."""
        return math.ceil(self.tokens / (self.workers * self.size.tokens_per_step))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one method costs."""

    name: str
    inner_steps: int
    sent_bytes: float
    """By a worker in a round, on average."""
    memory_bytes: float
    """Of a worker at most, beside activations and the interpreter."""
    utilisation: float
    """Share of time in compute."""
    enough_bytes_per_s: float
    """The line for 95 % of the time in compute; infinite if none is fast enough."""
    seconds: float
    """Until the tokens of the case are trained."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take."""

    values: Mapping[str, Any]
    """Dotted keys of the swarm's configuration."""
    cost: Cost
    why: tuple[str, ...]
    """Sentences."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """A candidate."""

    values: Mapping[str, Any]
    method: MethodSection
    share: float


def compare(case: Case) -> list[Cost]:
    """Data-parallel training and every method with its own defaults."""
    return [data_parallel(case), *(cost_of(case, MethodSection(name=name)) for name in METHODS)]


def data_parallel(case: Case) -> Cost:
    """A ring all-reduce in float32 at every step, which has all of the line and hides under the backward pass."""
    method, swarm = arithmetic.Method("data-parallel", 1, bits=_FP32_BITS), Swarm(case.workers, case.round_trip_s)
    share = utilisation(case.model, method, 8 * case.bytes_per_s, swarm)
    enough = bandwidth_for(ENOUGH, case.model, method, swarm) / 8
    memory = _OF_TRAINING * _VALUE_BYTES * case.size.parameters
    sent = swarm.bits_of(case.model, method) / 8
    return Cost(method.name, 1, sent, memory, share, enough, case.steps * case.step_s / share)


def cost_of(case: Case, method: MethodSection, name: str = "") -> Cost:
    """What a method costs.

    Args:
        case: for which.
        method: with codecs that may be open.
        name: for people; by default the method's.

    Raises:
        ConfigError: there is no such codec.
    """
    method = resolve_method(SwarmConfig(method=method)).method
    num_fragments, _ = _fragments(method, case.size.layers)
    sync, swarm = _sync(case, method), Swarm(case.workers, ROUND_TRIPS * case.round_trip_s)
    share = _share(case, method)
    return Cost(
        name or method.name,
        method.inner_steps,
        _bits(method, case)[0] * case.size.parameters / 8,
        _VALUE_BYTES * case.size.parameters * _values(method, num_fragments),
        share,
        bandwidth_for(ENOUGH, case.model, sync, swarm) / 8 / LINE_USED,
        case.steps * case.step_s / max(share, 1e-9),
    )


def choose(case: Case, stated: Mapping[str, Any] | None = None) -> Choice:
    """The method for a case: as many rounds as the line carries, for every step between two of them costs loss.

    Args:
        case: for which.
        stated: values by dotted key that stay as they are, none of ``DECIDED``.

    Raises:
        ConfigError: nothing goes together with what is stated.
    """
    fixed = {key: value for key, value in (stated or {}).items() if key.startswith("method.")}
    tried: list[_Tried] = []
    for values in _candidates(case, fixed):
        try:
            method = resolve_method(checked(SwarmConfig, {**values, **fixed})).method
        except ConfigError:
            continue
        tried.append(_Tried(values, method, _share(case, method)))
        if tried[-1].share >= ENOUGH:
            break
    if not tried:
        raise ConfigError(
            f"No method goes together with {', '.join(fixed)}.", hint="Choose one with --method or method.name."
        )
    best = tried[-1] if tried[-1].share >= ENOUGH else max(tried, key=lambda each: round(each.share, 2))
    rounds = min(math.ceil(case.steps / best.method.inner_steps), _MOST_ROUNDS)
    cost = cost_of(case, best.method)
    return Choice({"run.rounds": rounds, **best.values}, cost, tuple(_why(best, tried, rounds)))


def _candidates(case: Case, fixed: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """What is tried, the least loss first: few steps before many, no overlap before overlap, eight bits before four."""
    for inner_steps in _LADDER:
        if inner_steps < _BEYOND_FROM and case.steps >= _LONG_RUN:
            continue
        plain = {**_outer_step(inner_steps, case.steps / inner_steps), "method.inner_steps": inner_steps}
        yield plain
        if inner_steps >= _OVERLAPS_FROM:
            hidden = {**plain, "method.fragments": "auto", "method.delay_steps": "auto"}
            yield hidden
            if "method.codec" not in fixed:
                yield {**hidden, "method.codec": _COARSER}


def _outer_step(inner_steps: int, rounds: float) -> Mapping[str, Any]:
    """The method, and its outer learning rate and momentum where they are not its own."""
    if inner_steps < _BEYOND_FROM:
        return {"method.name": "local-sgd"}
    return {"method.name": "diloco"} if inner_steps >= _LONG_ROUND and rounds >= _MANY_ROUNDS else _BEYOND


def _why(best: _Tried, tried: Sequence[_Tried], rounds: int) -> Iterable[str]:
    """Reasons, each with the figure behind it."""
    steps = best.method.inner_steps
    if best.share < ENOUGH:
        yield (
            f"Nothing computes {ENOUGH:.0%} of the time on this line; this comes nearest, with {best.share:.0%}. It "
            "takes a faster line, a smaller model or longer steps."
        )
    before = [each for each in tried if each.method.inner_steps < steps]
    if before:
        most = max(before, key=lambda each: each.share)
        yield (
            f"A round every {steps} steps: the loss is the better the more rounds there are, but with one every "
            f"{most.method.inner_steps} steps workers would compute {most.share:.0%} of the time at most, not "
            f"{best.share:.0%}."
        )
    else:
        yield f"A round every {steps} steps, the most frequent that is worth it: the line carries it."
    if "method.delay_steps" in best.values:
        plain = next(each for each in tried if each.method.inner_steps == steps)
        yield (
            "Parts of the model travel while training goes on, as many as the measured line asks for: without that "
            f"it would be {plain.share:.0%}."
        )
    if "method.codec" in best.values:
        yield f"Four bits a value ({_COARSER}): eight would take the line too long."
    if not best.method.outer_momentum:
        yield f"Plain averaging: outer momentum pays in rounds of {_BEYOND_FROM} steps or more."
    elif "method.outer_momentum" in best.values:
        yield (
            f"Less outer momentum than in the papers: theirs is for {_MANY_ROUNDS} rounds of {_LONG_ROUND} steps, "
            f"and this run has {rounds:,} of {steps} steps."
        )
    else:
        yield f"Outer momentum, as in the papers: {rounds:,} rounds are enough for it to pay."


def _share(case: Case, method: MethodSection) -> float:
    """The share of time in compute, of a method with nothing open."""
    swarm = Swarm(case.workers, ROUND_TRIPS * case.round_trip_s)
    return utilisation(case.model, _sync(case, method), 8 * LINE_USED * case.bytes_per_s, swarm)


def _sync(case: Case, method: MethodSection) -> arithmetic.Method:
    """A method as the arithmetic has it."""
    num_fragments, per_fragment = _fragments(method, case.size.layers)
    distance = max(1, method.inner_steps // num_fragments)
    delay = method.delay_steps
    if delay == "auto" or method.family is Family.EAGER:  # as many as it takes
        delay = distance
    bits = _bits(method, case)[1] / (2 * (case.workers - 1) / case.workers)
    return arithmetic.Method(method.name, method.inner_steps, per_fragment, min(delay, distance - 1), bits, at_end=True)


def _fragments(method: MethodSection, layers: int) -> tuple[int, int]:
    """Parts of the model with a sync each, and the layers of one; 0 for all."""
    fragments = method.fragments
    number = math.ceil(layers / 3) if isinstance(fragments, str) else fragments
    number = max(1, min(number, layers, method.inner_steps))
    return number, 0 if number == 1 else math.ceil(layers / number)


def _bits(method: MethodSection, case: Case) -> tuple[float, float]:
    """What a worker sends of a value in a round on average, and what passes one line one after the other, in bits."""

    def bits(codec: str) -> float:
        return bits_per_value(make_codec(codec), case.size.parameters)

    others, up, down = case.workers - 1, bits(method.codec), bits(method.mean_codec)
    if method.family is Family.GOSSIP:
        anchor, pull = bits(method.anchor_codec), bits(method.pull_codec)
        guests = min(method.group_size, case.workers) - 1
        swap = in_turn = up + anchor + down + pull
        if method.schedule == "poisson":
            swap = in_turn = (anchor + pull) * method.events_per_round
        elif guests == 1:  # both send their pseudo-gradients at the same time
            swap, in_turn = 2 * up + anchor + pull, up + anchor + pull
        return swap * guests / (guests + 1), in_turn * guests
    both = up + down
    if method.family is Family.SERVER:  # its line has the contributions of all others
        servers = min(_fragments(method, case.size.layers)[0], case.workers)
        return both * others / case.workers, max(both, others * max(up, down) / servers)
    return both * others / case.workers, both * others / case.workers


def _values(method: MethodSection, num_fragments: int) -> float:
    """fp32 values for each parameter, at most: of training, and of the swarm."""
    lossless = make_codec(method.codec).lossless
    values = _OF_TRAINING + 1 + rule_of(method).num_buffers  # the anchor
    values += 0 if lossless or method.feedback == "none" else 2  # of contributions, and of means sent as a reducer
    values += 3 if method.family is Family.EAGER else 0
    values += _MEANS_KEPT if method.family in (Family.DILOCO, Family.EAGER, Family.SPARSELOCO) else 0
    return values + 2 / num_fragments  # what is in flight

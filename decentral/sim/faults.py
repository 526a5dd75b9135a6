"""Faults as data: what goes wrong, when and for whom; written down as JSON or drawn from a seed.

It knows neither the simulator nor processes: machines are numbers, and a player carries a script out (``sim.tape`` on
simulated machines; real workers have one among the benches). What a player cannot do it refuses before the start.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
from msgspec import Struct


class Kind(StrEnum):
    """What goes wrong."""

    KILL = "kill"
    """Machines die, as by ``kill -9``. All at once if it names all."""
    START = "start"
    """Machines come (back) to life, with what is on their disks."""
    START_EMPTY = "start-empty"
    """Machines come (back) to life, with nothing on their disks."""
    PAUSE = "pause"
    """Machines stand still, as by SIGSTOP."""
    CUT = "cut"
    """Some machines and all others cannot talk to each other."""
    DEAF = "deaf"
    """What others send to them gets lost; what they send arrives."""
    MUTE = "mute"
    """What they send gets lost; what others send to them arrives."""
    HALF_OPEN = "half-open"
    """They take calls and never answer."""
    SLOW = "slow"
    """Their lines carry no more than ``amount`` bytes a second, each way."""
    SLOW_DONOR = "slow-donor"
    """Their uplinks do; they hear as well as ever."""
    LOSS = "loss"
    """Messages get lost with probability ``amount``."""
    DUPLICATE = "duplicate"
    """Messages arrive twice with probability ``amount``."""
    REORDER = "reorder"
    """Messages are overtaken with probability ``amount``."""
    CLOCK = "clock-jump"
    """Their wall clocks jump by ``amount`` seconds."""
    DISK_FULL = "disk-full"
    """What they save is refused."""
    READ_ONLY = "read-only"
    """The same, with another error."""
    TORN = "torn"
    """The end of the newest that their disks hold is missing."""
    FLIPPED = "flipped"
    """In the newest that their disks hold there are wrong bytes."""


#: What happens to the network as a whole, and what happens to it because of some machines.
WEATHER = frozenset({Kind.LOSS, Kind.DUPLICATE, Kind.REORDER})
ISLANDS = frozenset({Kind.CUT, Kind.DEAF, Kind.MUTE})
LINES = frozenset({Kind.SLOW, Kind.SLOW_DONOR, Kind.HALF_OPEN})
#: What damages a checkpoint of a machine that does not run.
DAMAGE = frozenset({Kind.TORN, Kind.FLIPPED})
#: What has a beginning and no end.
MOMENTS = frozenset({Kind.KILL, Kind.START, Kind.START_EMPTY, Kind.CLOCK}) | DAMAGE
_WITH_AMOUNT = WEATHER | {Kind.SLOW, Kind.SLOW_DONOR, Kind.CLOCK}


class Fault(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of them.

    Raises:
        ValueError: it makes no sense.
    """

    kind: Kind
    at_s: float
    """Seconds after the beginning."""
    machines: tuple[int, ...] = ()
    """Counted from 0; none for what happens to the network as a whole."""
    for_s: float = 0.0
    """How long it lasts; 0 for what happens at a moment."""
    amount: float = 0.0
    """See :class:`Kind`; 0 where there is none."""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        what = f"a fault {self.kind.value!r}"
        if not (0.0 <= self.at_s < math.inf and 0.0 <= self.for_s < math.inf):
            raise ValueError(f"{what} at {self.at_s} s for {self.for_s} s: neither can be negative or endless")
        if (self.for_s > 0) == (self.kind in MOMENTS):
            raise ValueError(f"{what} {'has no' if self.for_s else 'needs a'} length (for_s)")
        if bool(self.machines) == (self.kind in WEATHER):
            raise ValueError(f"{what} {'hits the whole network' if self.machines else 'needs machines'}")
        if len(set(self.machines)) < len(self.machines) or any(number < 0 for number in self.machines):
            raise ValueError(f"{what}: machines are numbers from 0, each once, not {self.machines}")
        if not math.isfinite(self.amount) or (self.amount and self.kind not in _WITH_AMOUNT):
            raise ValueError(f"{what} has no amount of {self.amount}")
        if self.kind in WEATHER and not 0.0 <= self.amount <= 1.0:
            raise ValueError(f"{what}: amount is a probability, not {self.amount}")
        if self.kind in (Kind.SLOW, Kind.SLOW_DONOR) and self.amount <= 0:
            raise ValueError(f"{what}: amount is a rate in bytes per second, not {self.amount}")

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s


Script = tuple[Fault, ...]


def script(faults: Sequence[Fault]) -> Script:
    """Faults in the order of their beginnings.

    Raises:
        ValueError: two spells of one kind overlap on the network or on one machine. The end of one would end the
            other, and nobody could say which of them had an effect.
    """
    ordered = tuple(sorted(faults, key=lambda fault: fault.at_s))
    for number, first in enumerate(ordered):
        for second in ordered[number + 1 :]:
            if second.at_s >= first.end_s:
                break
            shared = first.kind in WEATHER | ISLANDS | LINES or set(first.machines) & set(second.machines)
            if first.kind == second.kind and shared:
                raise ValueError(f"{second} begins before the end of {first}")
    return ordered


def to_json(faults: Script) -> str:
    """A list of objects, one fault to a line."""
    lines = ",\n  ".join(msgspec.json.encode(fault).decode() for fault in faults)
    return f"[\n  {lines}\n]\n" if faults else "[]\n"


def from_json(text: str) -> Script:
    """What ``to_json`` wrote, or somebody by hand.

    Raises:
        ValueError: it is no script; the message says where and why.
    """
    return script(msgspec.json.decode(text, type=tuple[Fault, ...]))


@dataclass(frozen=True, slots=True)
class Plan:
    """How many faults to draw, and when."""

    begin_s: float
    """No fault before this, ..."""
    end_s: float
    """... and all are over by this."""
    num: Mapping[Kind, int] = field(default_factory=dict)
    """Of each kind. Each kill is followed by a start, which is from an empty disk for so many of them; damage happens
    between the two."""
    num_deaths: int = 0
    """Kills of all machines at once, each followed by a start of all or of a part of them."""
    loss: float = 0.0
    """Probability of loss from ``begin_s`` to ``end_s``."""
    slow_bytes_per_s: float = 1e4
    """Of slow lines, the slowest."""
    longest_s: float = math.inf
    """Of spells, and of the time between a kill and the start that follows."""


def draw(seed: int, machines: Sequence[int], plan: Plan) -> Script:
    """A script drawn from ``seed``.

    What hits one machine hits different ones as long as there are enough, islands are a minority, and spells of the
    network come one after the other.

    Raises:
        ValueError: more is to be damaged or to come back empty than is killed, or there are more spells of a kind than
            machines.
    """
    dice = random.Random(f"faults {seed}")
    length_s, ordered = plan.end_s - plan.begin_s, sorted(machines)
    kinds = [kind for kind, count in plan.num.items() for _ in range(count)]
    hits = [kind for kind in kinds if kind not in WEATHER | ISLANDS | LINES | DAMAGE | {Kind.START_EMPTY}]
    victims: list[int] = []
    while len(victims) < len(hits):
        kind = hits[len(victims)]
        struck = {victim for victim, other in zip(victims, hits, strict=False) if other is kind}
        free = [machine for machine in ordered if machine not in struck or kind in MOMENTS]
        if not free:
            raise ValueError(f"more spells of {kind.value!r} than machines")
        victims += dice.sample(free, min(len(free), len(hits) - len(victims)))
    faults: list[Fault] = []
    for kind, victim in zip(hits, victims, strict=True):
        begins, for_s = dice.uniform(0.0, 0.5), length_s * dice.uniform(0.1, 0.5)
        if for_s > plan.longest_s:
            begins, for_s = 2 * begins * (1 - plan.longest_s / length_s), plan.longest_s
        at_s = plan.begin_s + length_s * begins
        if kind is Kind.KILL:
            faults += [Fault(kind, at_s, (victim,)), Fault(Kind.START, at_s + for_s, (victim,))]
        elif kind is Kind.CLOCK:
            faults.append(Fault(kind, at_s, (victim,), amount=dice.choice((-1, 1)) * 10 ** dice.uniform(0, 5)))
        else:
            faults.append(Fault(kind, at_s, (victim,), for_s))
    for number in range(plan.num_deaths):
        faults += _death(dice, ordered, plan, number)
    faults = _spoilt(dice, faults, kinds)
    for kind in (kind for kind in plan.num if kind in WEATHER | ISLANDS | LINES):
        faults += _spells(dice, ordered, plan, kind)
    if plan.loss:
        faults.append(Fault(Kind.LOSS, plan.begin_s, (), length_s, plan.loss))
    return script(faults)


def _spells(dice: random.Random, machines: Sequence[int], plan: Plan, kind: Kind) -> list[Fault]:
    """Those of one kind, each in a slot of time of its own."""
    slot_s = (plan.end_s - plan.begin_s) / plan.num[kind]
    found = []
    for number in range(plan.num[kind]):
        at_s = plan.begin_s + slot_s * (number + dice.uniform(0.0, 0.25))
        most = (len(machines) - 1) // 2 if kind in ISLANDS else 1
        hit = () if kind in WEATHER else tuple(sorted(dice.sample(machines, dice.randint(1, max(1, most)))))
        amount = dice.uniform(0.02, 0.1) if kind in WEATHER else 0.0
        if kind in (Kind.SLOW, Kind.SLOW_DONOR):
            amount = plan.slow_bytes_per_s * 10 ** dice.uniform(0, 1)
        found.append(Fault(kind, at_s, hit, min(slot_s * dice.uniform(0.25, 0.75), plan.longest_s), amount))
    return found


def _death(dice: random.Random, machines: Sequence[int], plan: Plan, number: int) -> list[Fault]:
    """All are killed; then all come back, or half of them at least, some later than others."""
    slot_s = (plan.end_s - plan.begin_s) / plan.num_deaths
    at_s = plan.begin_s + slot_s * (number + dice.uniform(0.3, 0.6))
    least = (len(machines) + 1) // 2
    back = list(machines) if dice.random() < 0.5 else dice.sample(machines, dice.randint(least, len(machines)))
    return [
        Fault(Kind.KILL, at_s, tuple(machines)),
        *(Fault(Kind.START, at_s + slot_s * dice.uniform(0.05, 0.15), (each,)) for each in sorted(back)),
    ]


def _spoilt(dice: random.Random, faults: list[Fault], kinds: Sequence[Kind]) -> list[Fault]:
    """Some of the starts find less on their disks, or nothing."""
    starts = [fault for fault in faults if fault.kind is Kind.START]
    wanted = [kind for kind in kinds if kind in DAMAGE | {Kind.START_EMPTY}]
    if len(wanted) > len(starts):
        raise ValueError(f"{len(wanted)} disks to spoil, and {len(starts)} starts of machines that were killed")
    for kind, start in zip(wanted, dice.sample(starts, len(wanted)), strict=True):
        if kind is Kind.START_EMPTY:
            faults[faults.index(start)] = Fault(kind, start.at_s, start.machines)
        else:
            killed = [f.at_s for f in faults if f.kind is Kind.KILL and set(start.machines) <= set(f.machines)]
            down_s = start.at_s - max(at_s for at_s in killed if at_s < start.at_s)
            faults.append(Fault(kind, start.at_s - down_s * dice.uniform(0.1, 0.9), start.machines))
    return faults

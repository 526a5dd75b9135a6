"""How much of the time of a million chips ends up in a model when their learners keep failing, without a synchroniser.

    scripts/bench goodput --seed 0 --seed 1              # every case, some ten minutes of CPU time a seed
    scripts/bench goodput --only "8 x 150k" --seed 2     # cases whose name begins so
    scripts/bench goodput                                # page anew from the raw numbers

The setting is that of Decoupled DiLoCo's simulation. A learner is one production worker on the simulator that stands
for its share of the chips: when any of them fails the learner stops. Writes docs/benchmarks/goodput.json and .md; what
is not measured again stays.
"""

import asyncio
import functools
import itertools
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import Brought, Feedback, Sent
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.exchange.allreduce.participants import Quorum
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.events import Event, Joined, Repaired, RoundAborted, RoundMixed
from decentral.monitor.journal import MemoryJournal
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.loop import virtual_loop
from decentral.sim.network import Conditions, Line
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.trainer import ToyProblem, ToyTrainer
from decentral.sim.world import Machine, peer_id
from decentral.types import PeerId
from scripts.benches import goodput_page
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, read, stamp, write

SCRIPT = "goodput"
YEAR_S = 365 * 86400.0
#: Of an inner step.
STEP_S = 1.0
#: Nothing fails before this, or during the last part; work is counted in between.
QUIET_S, TAIL_S = 60.0, 40.0
#: Of the model, for each learner: so many that a quarter of them reduce a shard each.
NUM_VALUES = 4096
#: Of an inner step.
TOKENS = 32
#: Seconds that all chips stop for, as the paper's figures for 1.2 million of them imply.
DATA_PARALLEL = {"rigid": 71.0, "elastic": 19.0}
FP32 = make_codec("fp32")


@dataclass(frozen=True)
class Arm:
    """How learners mix, and what is left of one that stops.

    Args:
        words: for the page.
        plan: when they sync.
        kept: whether a learner has its state again after a stop, as one whose other chips still hold it; else the
            worker is gone and another one joins in its place.
        settings: more of the scenario.
    """

    words: str
    plan: SyncPlan
    kept: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


OFTEN, SELDOM = SyncPlan(4, delay_steps=2), SyncPlan(24, delay_steps=2)
ARMS: dict[str, Arm] = {
    "all-reduce": Arm("of those who live, every 4 steps, 2 of them while it is under way", OFTEN),
    "streaming": Arm(
        "the same in 4 fragments, each every 8 steps, one of them on the way",
        SyncPlan(8, num_fragments=4, delay_steps=1),
    ),
    "quorum": Arm(
        "the all-reduce of 6 of the 8, and who comes within a second of grace",
        OFTEN,
        settings={"mixing": AllReduceOptions(quorum=Quorum(6, 1.0))},
    ),
    "gossip": Arm(
        "NoLoCo: random pairs; a step counts when it has reached a partner",
        OFTEN,
        settings={"rule": NoLoCo(), "mixing": GossipOptions(FP32, FP32)},
    ),
    "async": Arm(
        "a worker keeps the model until it dies, and another one has it then",
        OFTEN,
        settings={"rule": Follow(), "mixing": ServerOptions()},
    ),
    "all-reduce, H = 24": Arm("every 24 steps, as in the paper", SELDOM),
    "all-reduce, H = 24, kept": Arm("and a learner has its state again after a stop", SELDOM, kept=True),
    "quorum, H = 24, kept": Arm(
        "and one learner is enough, with 2 s of grace",
        SELDOM,
        kept=True,
        settings={"mixing": AllReduceOptions(quorum=Quorum(1, 2.0))},
    ),
}


@dataclass(frozen=True)
class Case:
    """One run, but for its seed."""

    arm: str
    learners: int = 8
    chips: int = 1_200_000
    stop_s: float = 19.0
    """From a failure until the learner's process is up again."""
    model_s: float = 0.25
    """What a line takes for the model in float32, either way."""
    length_s: float = 600.0
    """In which work is counted."""

    @property
    def mtbf_s(self) -> float:
        """Between two failures of a learner."""
        return YEAR_S * self.learners / self.chips

    def failures(self, seed: int) -> list[list[float]]:
        """For each learner the moments at which a chip of it fails, whatever it is doing."""
        found: list[list[float]] = []
        for learner in range(self.learners):
            dice, at_s = random.Random(f"goodput {seed} {learner}"), QUIET_S
            found.append([])
            while (at_s := at_s + dice.expovariate(1 / self.mtbf_s)) < QUIET_S + self.length_s:
                found[-1].append(at_s)
        return found


CASES: dict[str, Case] = {
    **{f"8 x 150k, {arm}": Case(arm) for arm in ARMS},
    **{
        f"{learners} x {chips // learners // 1000}k, {arm}": Case(arm, learners, chips)
        for learners, chips in ((16, 1_200_000), (8, 2_400_000), (16, 2_400_000))
        for arm in ("all-reduce", "quorum, H = 24, kept")
    },
    **{
        f"stop {stop_s:g} s, {arm}": Case(arm, stop_s=stop_s)
        for stop_s in (10.0, 28.7)
        for arm in ("all-reduce", "quorum, H = 24, kept")
    },
    "line 4 times slower, all-reduce, H = 24": Case("all-reduce, H = 24", model_s=1.0),
}


def stops(failures: Sequence[float], stop_s: float) -> Iterator[float]:
    """Those failures that stop something that is running: what stands already is not stopped again."""
    up_s = 0.0
    for at_s in failures:
        if at_s >= up_s:
            yield at_s
            up_s = at_s + stop_s


def available(failures: Sequence[float], stop_s: float, length_s: float) -> float:
    """The share of the time in which something runs that stops for ``stop_s`` at such failures."""
    end_s = QUIET_S + length_s
    return 1 - sum(min(stop_s, end_s - at_s) for at_s in stops(failures, stop_s)) / length_s


class Launches(Feedback):
    """Keeps book of a life's work: what was launched, and what of it a round has counted. Changes nothing.

    Args:
        lives: takes this one.
        until_s: later steps are not counted, nor those before ``QUIET_S``.
        num_fragments: P.
    """

    def __init__(self, lives: "Lives", until_s: float, num_fragments: int) -> None:
        super().__init__(num_fragments)
        self.counted: list[float] = []
        """Tokens of each launch that was counted, of all fragments."""
        self.open = [0.0] * num_fragments
        """Launched last and not counted yet, by fragment."""
        self._until_s = until_s
        self._fragment = 0
        current = asyncio.current_task()
        assert current is not None
        lives[PeerId(current.get_name())].append(self)

    def bring(self, fragment: int, delta_N: Tensor) -> Brought:
        """See ``Feedback``."""
        self._fragment = fragment
        return super().bring(fragment, delta_N)

    def weight(self, weight: float) -> float:
        """The tokens of the launch, those of steps outside of the time that is measured left out."""
        now, took_s = virtual_loop().time(), weight / TOKENS * STEP_S
        inside_s = max(0.0, min(now, self._until_s) - max(now - took_s, QUIET_S))
        self.open[self._fragment] = inside_s / STEP_S * TOKENS
        return super().weight(weight)

    def commit(self, fragment: int, sent: Sent) -> None:
        """It was counted."""
        self.counted.append(self.open[fragment])
        self.open[fragment] = 0.0


Lives = defaultdict[PeerId, list[Launches]]


def stalling(charge: Callable[[float], None], stops_s: Sequence[float], stop_s: float) -> Callable[[float], None]:
    """A clock of a learner whose steps stand still for a while when a chip fails, and go on as if nothing had been."""
    coming = deque(stops_s)

    def stalled(seconds: float) -> None:
        ends_s = virtual_loop().time() + seconds
        while coming and coming[0] < ends_s:
            coming.popleft()
            charge(stop_s)
            ends_s += stop_s
        charge(seconds)

    return stalled


@dataclass(frozen=True)
class StallingProblem(ToyProblem):
    """Its trainers stall."""

    stops_s: Sequence[Sequence[float]] = ()
    """When each of them does."""
    stop_s: float = 0.0

    def trainer(
        self, worker: int, charge: Callable[[float], None] = lambda seconds: None, **settings: Any
    ) -> ToyTrainer:
        """See ``ToyProblem``."""
        return super().trainer(worker, stalling(charge, self.stops_s[worker], self.stop_s), **settings)


@dataclass(frozen=True)
class Learners(Scenario):
    """Workers that found their swarm at once."""

    together: bool = True
    step_s: float = STEP_S
    num_tensors: int = 4
    mix_alpha: float = 0.5
    """What of the steps taken beside a sync is kept: with 0 none of them would enter an anchor."""
    stops_s: Sequence[Sequence[float]] = ()
    """When the steps of each learner stand still, if it keeps its state."""
    stop_s: float = 0.0

    @cached_property
    def problem(self) -> StallingProblem:
        """What the swarm learns."""
        sizes = (self.seed, self.num_workers, self.num_values, self.num_tensors)
        return StallingProblem(*sizes, tokens_per_step=TOKENS, stops_s=self.stops_s, stop_s=self.stop_s)


def swarm(case: Case, seed: int, lives: Lives) -> tuple[Learners, FaultTape]:
    """What is simulated: the learners, and what happens to them."""
    arm, end_s = ARMS[case.arm], QUIET_S + case.length_s
    stopped = [list(stops(each, case.stop_s)) for each in case.failures(seed)]
    peers = [peer_id(learner) for learner in range(case.learners)]
    faults = [Fault(Kind.KILL, end_s + TAIL_S, tuple(range(case.learners)))]
    for learner, failures in enumerate(() if arm.kept else stopped):
        for at_s in failures:
            faults += [Fault(Kind.KILL, at_s, (learner,)), Fault(Kind.START, at_s + case.stop_s, (learner,))]
    num_values = NUM_VALUES * case.learners
    line = Line(*[4 * num_values / case.model_s] * 2)
    learners = Learners(
        seed,
        case.learners,
        rounds=1 << 20,
        plan=arm.plan,
        min_workers=case.learners,
        num_values=num_values,
        feedback=functools.partial(Launches, lives, end_s),
        machines={peer: Machine(line) for peer in peers},
        conditions=Conditions(latency_s=0.02),
        stops_s=stopped if arm.kept else [[]] * case.learners,
        stop_s=case.stop_s,
        **arm.settings,
    )
    return learners, FaultTape(faults)


def shared(book: Launches, life: MemoryJournal, gossips: bool) -> float:
    """Tokens of a life that were counted.

    In gossip who has no partner in a round takes its step alone and hands it on in the next swap, if it sees that.
    """
    counted = book.counted
    if gossips:
        mixed = [event for event in life.events if isinstance(event, RoundMixed)]
        alone = len(list(itertools.takewhile(lambda event: len(event.members) == 1, reversed(mixed))))
        counted = counted[: len(counted) - alone]
    return sum(counted)


Rounds = set[tuple[int, int]]


def unheard(journals: Mapping[PeerId, Sequence[MemoryJournal]]) -> dict[PeerId, Rounds]:
    """For each learner the rounds (with the fragment) that others say it is in, and that it never heard the end of."""
    named: defaultdict[PeerId, Rounds] = defaultdict(set)
    heard: defaultdict[PeerId, Rounds] = defaultdict(set)
    for peer, lives in journals.items():
        for event in (event for life in lives for event in life.events if isinstance(event, RoundMixed)):
            for member in event.members:
                (heard if member == peer else named)[member].add((event.round, event.fragment))
    return {peer: named[peer] - heard[peer] for peer in journals}


def last_wish(books: Sequence[Launches], lives: Sequence[MemoryJournal], rounds: Rounds) -> float:
    """Tokens of a learner that were on their way when a life of it ended, and that others have counted nevertheless."""
    found, until = 0.0, float("inf")
    for book, life in zip(reversed(books), reversed(lives), strict=True):
        first = next((event.round for event in life.events if isinstance(event, Joined)), 0)
        for fragment, tokens in enumerate(book.open):
            ended = [
                e.round for e in life.events if isinstance(e, RoundMixed | RoundAborted) and e.fragment == fragment
            ]
            last = max(ended, default=first - 1)
            if tokens and any(last < round_ < until and of == fragment for round_, of in rounds):
                found += tokens
        until = first or until
    return found


def spent(events: Sequence[Event]) -> Record:
    """Seconds of a life that were not spent on inner steps."""
    ends = [event for event in events if isinstance(event, RoundMixed | RoundAborted)]
    waited_s = sum(event.held_waiting_s for event in ends)
    return {
        "joining_s": sum(event.seconds for event in events if isinstance(event, Joined)),
        "waiting_s": waited_s,
        "moving_s": sum(event.held_s for event in ends) - waited_s,
        "repairing_s": sum(event.seconds for event in events if isinstance(event, Repaired)),
    }


def measure(case: Case, seed: int) -> Record:
    """One run; seconds are of all learners together."""
    lives = Lives(list)
    learners, tape = swarm(case, seed, lives)
    began = time.process_time()
    journals = simulate(learners, tape).journals
    rounds, plan = unheard(journals), learners.plan
    gossips = isinstance(learners.mixing, GossipOptions)
    pairs = [pair for peer in journals for pair in zip(lives[peer], journals[peer], strict=True)]
    tokens = sum(shared(book, life, gossips) for book, life in pairs) + sum(
        last_wish(lives[peer], journals[peer], rounds[peer]) for peer in journals
    )
    counted_s = tokens / plan.num_fragments / TOKENS * STEP_S
    total_s = case.learners * case.length_s
    failures = case.failures(seed)
    up = [available(each, case.stop_s, case.length_s) for each in failures]
    parts = [spent(life.events) for books in journals.values() for life in books]
    return {
        "seed": seed,
        "failures": sum(len(list(stops(each, case.stop_s))) for each in failures),
        "goodput": counted_s / total_s,
        "up": sum(up) / case.learners,
        **{part: sum(each[part] for each in parts) for part in parts[0]},
        **{way: together(failures, stop_s, case.length_s) for way, stop_s in DATA_PARALLEL.items()},
        "cpu_s": round(time.process_time() - began, 1),
        **stamp(SCRIPT),
    }


def together(failures: Sequence[Sequence[float]], stop_s: float, length_s: float) -> float:
    """The share of the time in which all chips work if a failure of any stops them all."""
    return available(sorted(at_s for each in failures for at_s in each), stop_s, length_s)


def page(records: Sequence[Record]) -> str:
    """The page for people."""
    return goodput_page.page(records, CASES, {name: arm.words for name, arm in ARMS.items()})


def main() -> None:
    """Simulate, write."""
    parser = Parser(SCRIPT, __doc__, "goodput")
    parser.repeated("--seed", int)
    parser.add_argument("--only", default="", metavar="BEGINNING", help="of the names of cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read(options.out, [])
    for seed in options.seed:
        for name in (name for name in CASES if name.startswith(options.only)):
            made = {"case": name, **measure(CASES[name], seed)}
            print(f"{name}, seed {seed}: {made['goodput']:.1%} of {made['up']:.1%}, {made['cpu_s']:.0f} s", flush=True)
            records = [each for each in records if (each["case"], each["seed"]) != (name, seed)] + [made]
            records.sort(key=lambda each: (list(CASES).index(each["case"]), each["seed"]))
            write(options.out, records, page(records))
    write(options.out, records, page(records))


if __name__ == "__main__":
    enter(main)

"""A scenario of a file, played: the production engine on virtual time, and what came of it in figures.

A model that is not trained in truth has far fewer values than it stands for, and messages that carry values count as so
many times longer: what takes time, and what is counted as sent, is the model's; what is computed is a toy's.
"""

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from decentral.codecs.codec import bits_per_value, make_codec
from decentral.config.names import ALL_REDUCE
from decentral.config.resolve import resolve, resolve_method
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError
from decentral.exchange.allreduce.members import HELD
from decentral.exchange.allreduce.reducer import RESULT, SHARD
from decentral.exchange.gossip.host import AHEAD, ASK, BRING, FETCH, POLL
from decentral.exchange.gossip.random_swaps import SWAP
from decentral.exchange.server.server import PUSH
from decentral.exchange.wire import MIN_SHARD_VALUES, SHARD_ALIGN
from decentral.monitor.events import RoundAborted, RoundMixed, StretchDone
from decentral.monitor.journal import finite
from decentral.ports.trainer import Trainer
from decentral.run.options import run_options
from decentral.run.scenario_file import MachinesSection, ScenarioFile
from decentral.run.tasks import build_trainer
from decentral.sim.faults import Fault, Kind, Script
from decentral.sim.network import Conditions, Line
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import Machine, peer_id
from decentral.state.download.pieces import PIECE
from decentral.swarm.timing import Timing
from decentral.types import PeerId

#: Methods whose messages, or the replies to them, are values and little else.
_CARRIERS: Final = (SHARD, RESULT, HELD, ASK, AHEAD, BRING, POLL, FETCH, SWAP, PUSH, PIECE)
#: Beyond so many machines an all-reduce, whose reducers are all of them, has more messages than can be simulated.
_MOST_REDUCERS = 64
#: Values of every machine together, in float32 and several times over.
_MOST_VALUES = 1 << 26
#: Messages no longer than this share a line with large ones, as streams do: a sign of life does not wait for a model.
_PASSING_BYTES = 1 << 14
#: Virtual seconds, as so many times what the run takes without a network.
_TIMES, _LEAST_S = 50.0, 3600.0
#: Machines that leave do so within this share of the shortest that the run can be, so that all that are left finish.
_CHURN_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scenario."""

    name: str
    machines: int
    method: str
    parameters: int
    rounds: int
    tokens: int
    virtual_s: float
    """Until the last worker ended."""
    tokens_per_s: float
    utilisation: float
    """Share of the time of machines that were there in which they computed."""
    sent_bytes: int
    """By all together."""
    dp_bytes: int
    """What data-parallel training would have sent for the same steps."""
    mixed: int
    """Rounds that workers counted in, all workers together, a fragment each."""
    lost: int
    """Rounds that workers were in for nothing."""
    deaths: int
    members: float
    """Of a round, on average."""
    loss: float
    """Of the last stretches; NaN if nothing is trained in truth."""
    wall_s: float
    """That the simulation took."""
    cpu_s: float

    @property
    def lost_share(self) -> float:
        """Of all rounds of all workers."""
        return self.lost / max(1, self.lost + self.mixed)


def play(file: ScenarioFile) -> Played:
    """Simulate a scenario to its end.

    Raises:
        ConfigError: it has too many values to simulate, or its method does not fit its model.
        SimulationError: the swarm hangs.
    """
    scenario, tape, scale = scenario_of(file)
    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    slowest_s = scenario.step_s * max(scenario.paces.values())
    least_s = scenario.rounds * scenario.plan.inner_steps * slowest_s
    record = simulate(scenario, tape, until_s=_TIMES * least_s + _LEAST_S)
    return _played(file, scenario, record, tape, scale, time.perf_counter() - began, time.process_time() - cpu)


def scenario_of(file: ScenarioFile) -> tuple[Scenario, FaultTape | None, float]:
    """What the simulator is given, the faults, and how many values one simulated value stands for.

    Raises:
        ConfigError: see ``play``.
    """
    swarm = resolve(file.swarm) if file.model.train else resolve_method(file.swarm)
    if "run.min_workers" not in file.explicit:
        swarm = swarm.model_copy(update={"run": swarm.run.model_copy(update={"min_workers": file.num_machines})})
    build: Callable[[int], Trainer] | None = None
    if file.model.train:
        build = _builder(swarm)
        parameters = dict(build(0).parameters())
        num_values = sum(value.numel() for value in parameters.values())
        scale = 1.0
    else:
        num_values = _num_values(file, swarm)
        parameters = dict.fromkeys(_layers(file, swarm, num_values), torch.zeros(0))
        scale = file.model.parameters / num_values
    options = run_options(swarm, "", parameters)
    dice, seed = random.Random(f"machines {swarm.run.seed}"), swarm.run.seed
    kinds = [kind for kind in file.machines for _ in range(kind.count)]
    paces = [kind.step_s * _factor(dice, kind.spread) for kind in kinds]
    machines = {
        peer_id(number): Machine(Line(kind.up or math.inf, kind.down or math.inf), region=kind.region)
        for number, kind in enumerate(kinds)
    }
    # Nobody is told to stop, and what others hear of steps they hear at beats.
    step_s, look_s = statistics.median(paces), options.timing.beat_s
    faults = (*file.faults, *_churn(kinds, dice, swarm, min(paces)))
    scenario = Scenario(
        seed,
        num_workers=len(kinds),
        rounds=swarm.run.rounds,
        plan=options.plan,
        auto_delay=options.auto_delay,
        auto_groups=options.auto_groups,
        mix_alpha=options.mix_alpha,
        eager=options.eager,
        pattern=options.pattern,
        min_workers=options.min_workers,
        step_s=1.0,
        step_sigma=max(kind.jitter for kind in kinds)
        / math.sqrt(max(1.0, min(look_s / step_s, options.plan.inner_steps))),
        paces=dict(enumerate(paces)),
        codec=options.codec.name,
        mean_codec=options.mean_codec.name,
        feedback=options.feedback,
        weight_by=options.weight_by,
        mixing=options.mixing,
        rule=options.rule,
        timing=_timing(options.timing, scale),
        conditions=Conditions(
            file.network.latency_s,
            file.network.jitter,
            file.network.loss,
            between={frozenset(link.between): link.latency_s for link in file.links},
            passing_bytes=_PASSING_BYTES,
            stands_for=dict.fromkeys(_CARRIERS, scale) if scale > 1 else {},
        ),
        machines=machines,
        num_values=num_values,
        num_tensors=len(parameters),
        inner_lr=_inner_lr(swarm.run.rounds * options.plan.inner_steps),
        together=True,
        patient=bool(faults),
        build=build,
        look_s=look_s,
    )
    return scenario, FaultTape(faults) if faults else None, scale


def _num_values(file: ScenarioFile, swarm: SwarmConfig) -> int:
    """So few values of the model that it can be simulated, and so many that messages are made of them.

    Raises:
        ConfigError: an all-reduce among so many needs a smaller model.
    """
    method, parameters, number = swarm.method, file.model.parameters, file.num_machines
    bits = bits_per_value(make_codec(method.codec), MIN_SHARD_VALUES)
    least = int(MIN_SHARD_VALUES * max(1.0, 8 / bits))
    if method.family in ALL_REDUCE:
        if number > _MOST_REDUCERS and parameters > least:
            raise ConfigError(
                f"model.parameters is {parameters:,} with {number} machines and method.name = {method.name}: an "
                f"all-reduce among more than {_MOST_REDUCERS} is simulated with at most {least:,} parameters.",
                hint="Take a smaller model, fewer machines, or method.name = noloco.",
            )
        least *= number
    else:
        least = max(least * SHARD_ALIGN // MIN_SHARD_VALUES, SHARD_ALIGN)
    values = min(parameters, least * (1 if isinstance(method.fragments, str) else method.fragments))
    if values * number > _MOST_VALUES:
        raise ConfigError(
            f"{number} machines with {values:,} values each are too many to simulate.", hint="Take fewer machines."
        )
    return values


def _layers(file: ScenarioFile, swarm: SwarmConfig, num_values: int) -> list[str]:
    """Names of a model's parameters; of one that travels in one piece it is one."""
    count = 1 if swarm.method.fragments == 1 else min(file.model.layers, num_values)
    return [f"layers.{number}" for number in range(count)]


def _inner_lr(num_steps: int) -> float:
    """Of a toy that is never near its optimum, as training is: there its workers would pull against each other."""
    return 1 / max(2, num_steps)


def _timing(timing: Timing, scale: float) -> Timing:
    """With the same time for a transfer, though it has fewer bytes."""
    values = {name: getattr(timing, name) for name in Timing.__slots__}
    return Timing(**{**values, "min_rate_bytes_per_s": timing.min_rate_bytes_per_s / max(1.0, scale)})


def _builder(swarm: SwarmConfig) -> Callable[[int], Trainer]:
    """Makes the task's trainer, each with its own stream of data."""
    own = WorkerConfig(data=swarm.data.paths, task=swarm.task.factory)
    return lambda number: build_trainer(swarm, own, stream_seed=number, founding=True)


def _factor(dice: random.Random, sigma: float) -> float:
    """Log-normal, of mean 1."""
    return dice.lognormvariate(-sigma * sigma / 2, sigma) if sigma else 1.0


def _churn(kinds: list[MachinesSection], dice: random.Random, swarm: SwarmConfig, fastest_s: float) -> Script:
    """Deaths and returns of machines, as long as the run is sure to last."""
    until_s = _CHURN_SHARE * swarm.run.rounds * swarm.method.inner_steps * fastest_s
    faults: list[Fault] = []
    for number, kind in enumerate(kinds):
        at_s = 0.0
        while kind.leave_every_s:
            at_s += max(10.0, dice.expovariate(1 / kind.leave_every_s))
            back_s = at_s + kind.back_after_s
            if max(at_s, back_s) > until_s:
                break
            faults.append(Fault(Kind.KILL, at_s, (number,)))
            if not kind.back_after_s:
                break
            faults.append(Fault(Kind.START, back_s, (number,)))
            at_s = back_s
    return tuple(faults)


def _played(
    file: ScenarioFile,
    scenario: Scenario,
    record: Record,
    tape: FaultTape | None,
    scale: float,
    wall_s: float,
    cpu_s: float,
) -> Played:
    """The figures, from the journals of all lives of all machines."""
    tokens, mixed, lost, members, computed_s = 0, 0, 0, 0, 0.0
    steps, last = 0, dict[PeerId, float]()
    for peer, lives in record.journals.items():
        for event in (event for life in lives for event in life.events):
            if isinstance(event, StretchDone):
                tokens += event.tokens
                computed_s += event.seconds
                last[peer] = event.loss
            elif isinstance(event, RoundMixed):
                mixed, members = mixed + 1, members + len(event.members)
            elif isinstance(event, RoundAborted):
                lost += 1
    if not file.model.train:
        steps = tokens // scenario.problem.tokens_per_step
        tokens = steps * file.model.tokens_per_step
    values = round(scenario.num_values * scale)
    number = scenario.num_workers
    return Played(
        name=file.name,
        machines=number,
        method=file.swarm.method.name,
        parameters=values,
        rounds=scenario.rounds,
        tokens=tokens,
        virtual_s=record.ended_at_s,
        tokens_per_s=tokens / record.ended_at_s,
        utilisation=computed_s / _there_s(number, record, tape),
        sent_bytes=record.world.network.sent_bytes,
        dp_bytes=int(8 * (number - 1) / number * values * steps),
        mixed=mixed,
        lost=lost,
        deaths=sum(fault.kind is Kind.KILL for fault in tape.fired()) if tape is not None else 0,
        members=members / max(1, mixed),
        loss=statistics.fmean(last.values()) if file.model.train and last else math.nan,
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _there_s(number: int, record: Record, tape: FaultTape | None) -> float:
    """Machine seconds: of all machines, without those in which they were dead."""
    there_s = number * record.ended_at_s
    gone: dict[int, float] = {}
    for fault in tape.fired() if tape is not None else ():
        for machine in fault.machines:
            if fault.kind is Kind.KILL:
                gone[machine] = fault.at_s
            elif fault.kind in (Kind.START, Kind.START_EMPTY) and machine in gone:
                there_s -= fault.at_s - gone.pop(machine)
    return there_s - sum(record.ended_at_s - at_s for at_s in gone.values())


def record_of(played: Played) -> Any:
    """For machines; what is not known is ``None``."""
    return finite({**asdict(played), "lost_share": played.lost_share})

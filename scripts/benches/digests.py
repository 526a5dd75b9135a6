"""Whether a refactoring changed what simulated swarms do: one line for each run under drawn faults.

    scripts/bench digests [--only METHOD ...] [--seeds 10] > before.txt
    scripts/bench digests --against before.txt

A line is ``method seed result_digest trace_digest``. The result is what became of every worker: the final anchors to
the bit, rounds and tokens, and step, tokens and loss of each stretch of inner steps in each of its lives. The trace is
every message and event of the network in order: virtual time, from, to, method, size. No name of a class, of a tensor
or of a method on the wire is in the result, so that renaming a message or packing it otherwise changes the trace alone.

Exit code with ``--against``: 0 if all lines are the same, 1 if some differ, which are then on standard error.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from msgspec import structs

from decentral.engine.options import Outcome
from decentral.monitor.events import BatchCounted, Event, StretchDone
from decentral.sim.faults import Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.tape import FaultTape
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.methods import SWARMS, Settings
from tests.sim.hardships import hardships
from tests.sim.pipelines import PipelineScenario, simulate_pipeline

#: By method and seed the digests of the result and of the trace.
Lines = dict[tuple[str, int], tuple[str, str]]

FAULTS_S, ROUNDS = (4.0, 20.0), 30


def swarm(variants: tuple[Settings, ...], seed: int) -> tuple[str, str]:
    """Six or seven workers: 5 % loss, two crashes with restarts, a pause, a partition, a late joiner, wrong clocks."""
    troubles, tape = hardships(seed, num_workers := 6 + seed % 2, FAULTS_S, aside_s=0.01)
    scenario = Scenario(seed, num_workers, **{"rounds": ROUNDS, **variants[seed % len(variants)], **troubles})
    record = simulate(scenario, tape, until_s=3000.0)
    _check_fired(tape)
    ends = [(str(peer), 0, outcome) for peer, outcome in record.outcomes.items()]
    lives = [(str(peer), journal.events) for peer, journals in record.journals.items() for journal in journals]
    return _result(ends, lives), record.world.network.trace.digest()


def pipeline(seed: int) -> tuple[str, str]:
    """Four or five stages of one or two replicas: 1 % loss, a crash or two with restarts, in some a pause."""
    num_stages, num_replicas, num_spares = 4 + seed % 2, 1 + seed % 2, 1 + seed % 3
    scenario = PipelineScenario(
        *(seed, num_stages, num_replicas, num_spares),
        rounds=8,
        inner_steps=2,
        checkpoint_s=1.0,
        conditions=Conditions(jitter=0.3),
        routing=("permutation", "speed")[seed // 2 % 2],
        healing=("checkfree+", "checkfree")[seed // 4 % 2],
    )
    machines = range((num_stages + 1) * num_replicas)
    began_s = 0.5 * (len(machines) + num_spares) + 2.0
    plan = Plan(began_s, began_s + 8.0, num={Kind.KILL: 1 + seed % 2, Kind.PAUSE: seed // 3 % 2}, loss=0.01)
    # Who is paused for long is replaced, and the run takes as long again.
    faults = draw(seed, machines, plan)
    tape = FaultTape(
        [structs.replace(one, for_s=min(one.for_s, 3.0)) if one.kind is Kind.PAUSE else one for one in faults]
    )
    record = simulate_pipeline(scenario, tape)
    _check_fired(tape)
    ends = [(str(peer), stage, outcome) for peer, held in record.outcomes.items() for stage, outcome in held.items()]
    lives = [(str(life.peer), journal.events) for life in record.lives for journal in life.journals]
    return _result(ends, lives), record.world.network.trace.digest()


METHODS: dict[str, Callable[[int], tuple[str, str]]] = {
    **{name: partial(swarm, variants) for name, variants in SWARMS.items()},
    "pipeline": pipeline,
}


def _check_fired(tape: FaultTape) -> None:
    """Digests of swarms that nothing happened to would prove little; a partition may find nobody talking across it."""
    assert len(tape.unfired()) <= 1, f"{tape.unfired()} had no effect"


def _result(ends: Iterable[tuple[str, int, Outcome]], lives: Iterable[tuple[str, Iterable[Event]]]) -> str:
    """Digest of how workers ended (peer, stage, outcome) and of what they did in each life, in order of the peers."""
    digest = hashlib.blake2b(digest_size=16)
    for peer, stage, outcome in sorted(ends, key=lambda end: end[:2]):
        digest.update(json.dumps([peer, stage, outcome.done, outcome.round, outcome.tokens]).encode())
        for _, value in sorted(outcome.anchors.items()):
            digest.update(json.dumps(list(value.shape)).encode() + value.contiguous().numpy().tobytes())
    for peer, events in sorted(lives, key=lambda life: life[0]):  # stable: lives of one peer stay in their order
        if steps := list(_steps(events)):
            digest.update(json.dumps([peer, steps]).encode())
    return digest.hexdigest()


def _steps(events: Iterable[Event]) -> Iterator[list[float]]:
    """Of stretches of inner steps: end, tokens, loss; in a pipeline also which micro-batches a stage counted when."""
    for event in events:
        if isinstance(event, StretchDone):
            yield [event.round, event.step, event.tokens, event.loss]
        elif isinstance(event, BatchCounted):
            yield [event.stage, event.slot, event.batch, event.step, *event.indices]


def differences(expected: Lines, found: Lines) -> list[str]:
    """What is not as expected, in words."""
    said = []
    for key in sorted(expected.keys() | found.keys()):
        before, after = expected.get(key, ("-", "-")), found.get(key, ("-", "-"))
        if before != after:
            what = "only the trace differs" if before[0] == after[0] else "RESULT differs"
            said.append(f"{key[0]} {key[1]}: {what}, {' '.join(before)} before, {' '.join(after)} now")
    return said


def main() -> int:
    """Play, print, compare."""
    parser = Parser("digests", __doc__)
    parser.repeated("--only", default=list(METHODS), choices=METHODS, help="may be given more than once")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--against", type=Path, help="what this printed before")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods, expected, found = arguments.only, Lines(), Lines()
    for line in arguments.against.read_text().splitlines() if arguments.against else ():
        if line and not line.startswith("#"):
            method, seed, result, trace = line.split()
            if method in methods and int(seed) < arguments.seeds:
                expected[method, int(seed)] = (result, trace)
    for method in methods:
        for seed in range(arguments.seeds):
            found[method, seed] = METHODS[method](seed)
            print(method, seed, *found[method, seed], flush=True)
    if arguments.against is None:
        return 0
    said = differences(expected, found)
    print("\n".join(said) or f"all {len(found)} runs are the same", file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    enter(main)

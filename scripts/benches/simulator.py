"""How long 64 workers x 100 rounds of the production engine take, and drawn faults; what the ready scenarios come to.

    scripts/bench simulator [--only swarm|faults|scenarios ...] [--runs 5] [--seeds 20] [--scenario NAME ...]
                            [--set K=V ...]

Prints and writes docs/benchmarks/simulator.json and simulator.md; what is not measured anew stays as it was. Times are
of this machine; see there.
"""

import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch

from decentral.monitor.figures import age, amount, percent, traffic
from decentral.run.scenario_file import read as read_scenario
from decentral.run.scenario_file import shipped
from decentral.run.simulation import play, record_of
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record as Simulated
from decentral.sim.scenario import Scenario, simulate
from decentral.swarm.timing import Timing
from scripts.benches.lib.checkers import check
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.report import Record, load_average, places, read, stamp, write
from scripts.benches.lib.tables import table
from tests.sim.test_invariants import TOLERANCE, faulty

SCRIPT = "simulator"
PARTS = ("swarm", "faults", "scenarios")
SWARM = Scenario(
    1,
    num_workers=64,
    rounds=100,
    step_s=0.05,
    timing=Timing(beat_s=5.0, ttl_s=20.0),
    conditions=Conditions(jitter=0.3),
)


def events(record: Simulated) -> Counter[str]:
    """How often each kind of event happened."""
    journals = (journal for lives in record.journals.values() for journal in lives)
    return Counter(type(event).__name__ for journal in journals for event in journal.events)


def large() -> Record:
    """One run of 64 x 100."""
    began, cpu = time.perf_counter(), time.process_time()
    record = simulate(SWARM)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    if violations := check(SWARM, record, tolerance=TOLERANCE):
        raise BenchError(f"64 x 100: {violations}")
    print(f"64 x 100: {wall_s:.1f} s wall, {cpu_s:.1f} s CPU, {record.ended_at_s:.0f} s virtual", flush=True)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "virtual_s": record.ended_at_s, "events": events(record)}


def with_faults(seeds: int) -> Record:
    """All seeds."""
    began, bad, seen = time.process_time(), [], Counter[str]()
    for seed in range(seeds):
        scenario, _, record = faulty(seed)
        seen += events(record)
        if violations := check(scenario, record, tolerance=TOLERANCE):
            bad.append({"seed": seed, "violations": violations})
    cpu_s = time.process_time() - began
    print(f"{seeds} seeds with faults: {len(bad)} with violations, {cpu_s:.0f} s CPU", flush=True)
    return {"seeds": seeds, "bad": bad, "events": seen, "cpu_s": cpu_s}


def scenario(name: str, assignments: Sequence[str]) -> Record:
    """One that comes along, to its end."""
    played: Record = record_of(play(read_scenario(name, assignments)))
    print(f"{name}: {played['cpu_s']:.1f} s CPU, {played['virtual_s']:.0f} s virtual", flush=True)
    return {**played, **stamp(SCRIPT)}


def scenario_row(played: Record) -> list[str]:
    """All that came of it."""
    return [
        played["name"],
        f"{played['machines']:,}",
        f"{amount(played['parameters'])}, {played['method']}",
        str(played["rounds"]),
        age(20 * played["parameters"] / played["tokens_per_s"]),
        percent(played["utilisation"]),
        traffic(played["sent_bytes"], played["dp_bytes"]),
        f"{played['lost']} of {played['lost'] + played['mixed']:,}",
        f"{played['members']:.1f}",
        str(played["deaths"]),
        f"{played['cpu_s']:.0f} s",
    ]


def page(result: Record) -> str:
    """The page for people."""
    walls = [run["wall_s"] for run in result["swarm"]["runs"]]
    first, faults = result["swarm"]["runs"][0]["events"], result["faults"]
    scenarios = [result["scenarios"][name] for name in sorted(result["scenarios"])]
    columns = (
        "scenario | machines: | model | rounds: | 20 tokens a parameter: | in compute: | bytes | rounds for nothing: "
    )
    columns += "| members of a round: | machines lost: | processor time:"
    row = [f"{wall_s:.1f}" for wall_s in (min(walls), statistics.median(walls), max(walls))]
    return f"""# The simulator

Written by `scripts/bench simulator`; the raw record is `simulator.json`. {places([result["swarm"]])[0]}.

64 workers x 100 rounds of the production engine (10 inner steps of 0.05 s each, one shard of 24 values, a beat every
5 s, log-normal latency of mean 20 ms): wall time of {len(walls)} runs, seconds:

{table("minimum: | median: | maximum:", [row])}

{first["RoundMixed"]} contributions were mixed, {first["RoundAborted"]} calls came to a round that was over (workers
that joined in the middle of it), and all invariants held.

{faults["seeds"]} seeds of five to eight workers and 60 rounds, each with 5 % loss, two crashes and restarts, a pause, a
partition, a late joiner and clocks wrong by ten minutes: {len(faults["bad"])} with a violation
({faults["cpu_s"]:.0f} s of CPU time in all; {faults["events"]["RoundMixed"]} contributions mixed,
{faults["events"]["RoundAborted"]} aborted, {faults["events"]["Repaired"]} repairs).

## Scenarios that come along

What `decentral simulate NAME --set run.rounds=N` says of each ([scenarios](../simulator.md#scenarios-of-files)),
nothing trained in truth.
{"; ".join(places(scenarios))}.

{table(columns, map(scenario_row, scenarios))}
"""


def main() -> None:
    """Measure, print, write."""
    parser = Parser(SCRIPT, __doc__, "simulator")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=20)
    parser.repeated("--only", default=list(PARTS), choices=PARTS, help="may be given more than once")
    parser.repeated("--scenario", default=list(shipped()), choices=shipped(), help="may be given more than once")
    parser.settings("of the scenarios")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = read(options.out, {"scenarios": {}})
    lacking = set(PARTS) - {"scenarios", *options.only, *result}
    if lacking:
        raise BenchError(
            f"there is no record of {' and '.join(sorted(lacking))} in {options.out}.json: measure them as well"
        )
    if "swarm" in options.only:
        result["swarm"] = {"runs": [large() for _ in range(options.runs)], **stamp(SCRIPT)}
        result["swarm"]["machine"] += f", load {load_average():.1f} at the end"
    if "faults" in options.only:
        result["faults"] = with_faults(options.seeds)
    for name in options.scenario if "scenarios" in options.only else ():
        result["scenarios"][name] = scenario(name, options.set or ())
        write(options.out, result, page(result))
    write(options.out, result, page(result))


if __name__ == "__main__":
    enter(main)

"""Four real workers train while at random moments one is killed and restarted and another is stopped for a while.

After every fault the survivors must complete a round, whoever mixed a round with the same members must hold the same
anchor, and all four must find together again; at the end nothing may be left running. Any violation ends the run with
exit code 1. Moments and victims follow from the seed, which is printed.

    scripts/chaos --iterations 10 --stop-s 20

writes docs/benchmarks/chaos.json and, from it, docs/benchmarks/chaos.md.
"""

import random
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from scripts.benches.lib.chaos import chaos_options, run_chaos, verdict, violations_in
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Event, Swarm, Worker
from scripts.benches.lib.report import Record, signature
from scripts.benches.lib.tables import head, row, table

SCRIPT = "chaos"
WORKERS = 4
#: A fault comes this long after the previous one was overcome, at most.
QUIET_S = 6.0

TASK = {
    "task.settings.model.d_model": 32,
    "task.settings.model.num_layers": 2,
    "task.settings.model.num_heads": 2,
    "task.settings.model.context": 64,
    "task.settings.val_batches": 1,
    "method.inner_steps": 20,
    "run.rounds": 100_000,
}


class Together(Swarm):
    """The four, and what must hold of them."""

    def survive(self, survivors: Collection[Worker]) -> float:
        """Wait until each survivor has completed a round that was not begun by now."""
        front = self.front() + 1
        return self.until(
            lambda: all(any(event["round"] > front for event in worker.mixed()[-20:]) for worker in survivors),
            f"a round after {front} of workers {[worker.index for worker in survivors]}",
        )

    def reunite(self) -> float:
        """Wait until all four have completed one new round together."""
        front, everybody = self.front(), {worker.peer for worker in self.workers}

        def together(worker: Worker) -> set[int]:
            return {e["round"] for e in worker.mixed() if e["round"] > front and set(e["members"]) == everybody}

        return self.until(
            lambda: bool(set.intersection(*(together(worker) for worker in self.workers))),
            f"a round of all four after {front}",
        )

    def participants(self) -> dict[tuple[int, int], dict[tuple[str, ...], set[str]]]:
        """Digests after every round and fragment, by the members that mixed it."""
        found: dict[tuple[int, int], dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
        for worker in self.workers:
            for event in worker.mixed():
                found[event["round"], event["fragment"]][tuple(event["members"])].add(event["digest"])
        return found

    def check(self) -> None:
        """Members of a round hold bit-equal anchors after it, and what must hold of every swarm does.

        Raises:
            BenchError: they do not.
        """
        for key, by_members in self.participants().items():
            for members, digests in by_members.items():
                if len(digests) > 1:
                    raise BenchError(f"anchors differ after round {key} of {members}: {digests}\n{self.describe()}")
        super().check()

    def strike(self, chance: random.Random, stop_s: float) -> Event:
        """Kill and restart one worker, stop and wake another one, one after the other or both at a time."""
        victim, sleeper, *others = chance.sample(self.workers, WORKERS)
        overlap, with_daemon = chance.random() < 0.5, chance.random() < 0.5
        time.sleep(chance.uniform(0, QUIET_S))
        record: Event = {"killed": victim.index, "stopped": sleeper.index, "together": overlap}
        record |= {"daemon_stopped": with_daemon, "round": self.front()}
        self.kill(victim)
        if overlap:
            time.sleep(chance.uniform(0, 1))
            waking = sleeper.stop(stop_s, with_daemon=with_daemon)
        record["after_kill_s"] = self.survive(others if overlap else [sleeper, *others])
        victim.start("--join", chance.choice(others).address())
        time.sleep(chance.uniform(0, QUIET_S))
        if not overlap:
            waking = sleeper.stop(stop_s, with_daemon=with_daemon)
        record["after_stop_s"] = self.survive(others)
        waking.join()
        victim.address()
        record["together_again_s"] = self.reunite()
        return record


def summed_up(swarm: Together, report: Record) -> None:
    """The sums of the run."""
    stretches = [e for worker in swarm.workers for e in worker.named("stretch_done")]
    stretches.sort(key=lambda event: float(event["time"]))
    counts = [e["event"] for worker in swarm.workers for e in worker.events]
    report |= {
        "rounds": swarm.front() + 1,
        "mixed": counts.count("round_mixed"),
        "aborted": counts.count("round_aborted"),
        "repaired": counts.count("repaired"),
        "split_rounds": sum(len(by_members) > 1 for by_members in swarm.participants().values()),
        "first_loss": stretches[0]["loss"],
        "last_loss": stretches[-1]["loss"],
    }
    if not report["last_loss"] < report["first_loss"]:
        raise BenchError(f"the loss went from {report['first_loss']} to {report['last_loss']}")


_COLUMNS = (
    "iteration: | round: | killed: | stopped: | at once | survivors' next round (s): | after the stop (s): "
    "| all four again (s):"
)


def cells(record: Event) -> list[object]:
    """A row of the table."""
    stopped = f"{record['stopped']}{' and its daemon' if record['daemon_stopped'] else ''}"
    times = (record["after_kill_s"], record["after_stop_s"], record["together_again_s"])
    together = "yes" if record["together"] else "no"
    return [record["iteration"], record["round"], record["killed"], stopped, together, *times]


def page(report: Record) -> str:
    """The raw record for people."""
    return f"""# Killed and stopped workers

Written by `scripts/chaos`; the raw record is `chaos.json`. Four worker processes train a small language model on
loopback. In every iteration, at random moments, one of them gets `kill -9` and is restarted as a joiner, and another
gets SIGSTOP for {report["stop_s"]:g} s (the worker alone, or its libp2p daemon with it), one after the other or both at
once. After each fault the time is taken until every survivor has completed a round that began after it; then until all
four have completed a round together, counted from the moment when the stopped one woke and the killed one had rejoined.

{table(_COLUMNS, map(cells, report["iterations"]))}

* {report.get("rounds", "?")} rounds: {report.get("mixed", "?")} contributions mixed, {report.get("aborted", "?")}
  aborted, {report.get("repaired", "?")} repairs; in {report.get("split_rounds", "?")} rounds two groups mixed apart,
  found out by the next round and repaired.
* Training loss from {report.get("first_loss", float("nan")):.2f} to {report.get("last_loss", float("nan")):.2f} nats a
  byte.
{verdict(report, "members of a round always held bit-equal anchors, nothing hung, no process was left.")}

{signature(report)}"""


def main() -> int:
    """Run, write, and say by the exit code whether all held."""
    options = chaos_options(Parser(SCRIPT, __doc__, "chaos"), 10, 20.0)
    print(head(_COLUMNS), flush=True)
    report: Record = {"seed": options.seed, "stop_s": options.stop_s, "task": TASK, "iterations": []}

    def play(folder: Path) -> None:
        with violations_in(report), Together(folder, [LOOPBACK] * WORKERS) as swarm:
            swarm.begin(TASK)
            swarm.reunite()
            chance = random.Random(options.seed)
            for number in range(options.iterations):
                report["iterations"].append({"iteration": number, **swarm.strike(chance, options.stop_s)})
                print(row(*cells(report["iterations"][-1])), flush=True)
            swarm.end()
            summed_up(swarm, report)

    return run_chaos(SCRIPT, options, report, play, page)


if __name__ == "__main__":
    enter(main)

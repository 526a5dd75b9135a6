"""Real workers train under a script of faults, drawn or from a file: the same scripts as the simulator plays.

Drawn are kills with `--resume` from disk or a start with an empty folder, whole swarms that are killed and resumed,
pauses, workers that take calls and do not answer, damaged checkpoints; as root full disks, and with --links cuts both
ways and one way, slow lines and loss. Whoever mixed a round with the same members must hold the same anchor; somebody
must complete a round all the time; at the end all must find together, nothing may be left running, and the validation
loss must be within a tolerance of that of an undisturbed swarm at equal tokens. Any violation ends the run with exit
code 1. All follows from the seed, which is printed.

    scripts/bench chaos --minutes 20 --workers 8 --deaths 3
    scripts/bench chaos --script faults.json --set method.name=noloco
    scripts/bench chaos --minutes 20 --workers 8 --deaths 3 --protect 1 --set pipeline.stages=4 \
        --set task.settings.model.num_layers=4 --out docs/benchmarks/chaos-stages

writes docs/benchmarks/chaos.json and, from it, docs/benchmarks/chaos.md.
"""

import argparse
import bisect
import math
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from decentral.sim.faults import ISLANDS, MOMENTS, Fault, Kind, Plan, Script, draw, from_json, script, to_json
from scripts.benches.lib.chaos import chaos_options, run_chaos, verdict, violations_in
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.faults import Player, small_disks, unable
from scripts.benches.lib.links import LOOPBACK, Host, Link, Links
from scripts.benches.lib.processes import DEADLINE_S, Swarm, Worker
from scripts.benches.lib.report import Record, signature
from scripts.benches.lib.tables import table

SCRIPT = "chaos"
#: Among so many seconds without a fault somebody must complete a round.
HANG_S = 240.0
#: Between two looks at what must hold meanwhile.
_LOOK_S = 2.0
#: A validation loss is noisy; so many of the last ones are averaged.
_LAST = 5
HOME = Link(up_bits_per_s=50e6, down_bits_per_s=50e6, delay_s=0.01)

TASK: dict[str, Any] = {
    "task.settings.model.d_model": 32,
    "task.settings.model.num_layers": 2,
    "task.settings.model.num_heads": 2,
    "task.settings.model.context": 64,
    "task.settings.val_batches": 2,
    "method.inner_steps": 20,
    "eval_every_rounds": 2,
    "run.rounds": 100_000,
}


#: Round, fragment, stage; -1 for the whole model.
Key = tuple[int, int, int]


class Together(Swarm):
    """The workers, and what must hold of them."""

    looked_at = progressed_at = 0.0
    newest = -1
    stages = 0
    """Of a pipeline, without the head."""

    def participants(self) -> dict[Key, dict[tuple[str, ...], set[str]]]:
        """Digests after every synchronisation, by the members that mixed it."""
        found: dict[Key, dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
        for worker in self.workers:
            seen: dict[tuple[Key, tuple[str, ...]], str] = {}
            for event in worker.mixed():
                # Who was killed may go through a round again, from its disk; the last time counts.
                key = event["round"], event["fragment"], event.get("stage", -1)
                seen[key, tuple(event["members"])] = event["digest"]
            for (key, members), digest in seen.items():
                found[key][members].add(digest)
        return found

    def look(self) -> None:
        """What must hold while faults happen, looked at now and then.

        Raises:
            BenchError: it does not.
        """
        now = time.monotonic()
        if now - self.looked_at < _LOOK_S:
            return
        self.looked_at = now
        self.check()
        count = sum(len(worker.mixed()) for worker in self.workers)
        if count > self.newest or not self.living:
            self.newest, self.progressed_at = count, now
        if now - (self.progressed_at or now) > HANG_S:
            raise BenchError(f"nobody has completed a round in {HANG_S:.0f} s\n{self.describe()}")

    def agree(self) -> None:
        """Members of a round hold bit-equal anchors after it.

        Raises:
            BenchError: they do not.
        """
        for key, by_members in self.participants().items():
            for members, digests in by_members.items():
                if len(digests) > 1:
                    raise BenchError(f"anchors differ after round {key} of {members}: {digests}\n{self.describe()}")

    def reunite(self) -> float:
        """Wait until all that live have mixed a new round, or all stages counted a new batch; the seconds."""
        since = time.time()
        if self.stages:
            return self.until(lambda: self._counted(since) == set(range(self.stages + 1)), "a batch", 2 * DEADLINE_S)

        def back(worker: Worker) -> bool:
            return any(e["time"] > since and len(e["members"]) > 1 for e in worker.mixed()[-10:])

        many = len(self.living) > 1
        return self.until(lambda: not many or all(map(back, self.living)), "a round of all", 2 * DEADLINE_S)

    def _counted(self, since: float) -> set[int]:
        """Stages that have counted a batch since then."""
        counted = (e for worker in self.workers for e in worker.named("batch_counted")[-100:])
        return {e["stage"] for e in counted if e["time"] > since}

    def tokens(self) -> list[tuple[float, int]]:
        """After each stretch of anybody's inner steps, or batch of a head, in order of time, all tokens so far."""
        name = "batch_counted" if self.stages else "stretch_done"
        events = [e for worker in self.workers for e in worker.named(name) if not (self.stages and e["stage"])]
        stretches = sorted((e["time"], e["tokens"]) for e in events)
        total, found = 0, []
        for at, count in stretches:
            total += count
            found.append((at, total))
        return found

    def again(self) -> int:
        """Tokens of a pipeline that were trained once more, as what they had led to was lost."""
        heads = [e for worker in self.workers for e in worker.named("batch_counted") if not e["stage"]]
        once: dict[tuple[int, int], int] = {(e["slot"], e["batch"]): e["tokens"] for e in heads}
        return sum(int(e["tokens"]) for e in heads) - sum(once.values())

    def losses(self) -> list[tuple[int, float]]:
        """Validation losses, each with all tokens that had been trained on by then."""
        tokens = self.tokens()
        validated = sorted((e["time"], e["val_loss"]) for worker in self.workers for e in worker.named("validated"))
        found = []
        for at, loss in validated:
            behind = bisect.bisect(tokens, (at, 1 << 62))
            found.append((tokens[behind - 1][1] if behind else 0, loss))
        return found


def drawn(options: argparse.Namespace) -> Script:
    """From the seed: about one fault a minute, with what this machine can do."""
    dice, root = random.Random(f"chaos {options.seed}"), os.geteuid() == 0
    among = [Kind.KILL] * 4 + [Kind.PAUSE] * 2 + [Kind.HALF_OPEN, Kind.TORN, Kind.FLIPPED, Kind.START_EMPTY]
    among += [Kind.DISK_FULL] if root else []
    among += [*ISLANDS, Kind.SLOW, Kind.SLOW_DONOR, Kind.LOSS] if options.links else []
    count = max(2, round(options.minutes) - 2 * options.deaths)
    num = Counter(dice.choices(among, k=count))
    spoilt = num[Kind.TORN] + num[Kind.FLIPPED] + num[Kind.START_EMPTY]
    num[Kind.KILL] = max(num[Kind.KILL], spoilt)
    for kind in set(num) - MOMENTS:
        num[kind] = min(num[kind], options.workers)
    length_s = 60.0 * options.minutes
    plan = Plan(20.0, length_s - 20.0, num, num_deaths=options.deaths, slow_bytes_per_s=5e4, longest_s=45.0)
    faults = draw(options.seed, range(options.workers), plan)
    return _all_come_back(faults, options.workers) if options.stages else faults


def _all_come_back(faults: Script, workers: int) -> Script:
    """After the deaths of all: who stays away may have the only checkpoint of a stage, and is waited for."""
    deaths = [fault.at_s for fault in faults if fault.kind is Kind.KILL and len(fault.machines) == workers]
    late = []
    for began_s, until_s in pairwise([*deaths, math.inf]):
        starts = [fault for fault in faults if fault.kind is Kind.START and began_s < fault.at_s < until_s]
        back = {machine for fault in starts for machine in fault.machines}
        first_s = min(fault.at_s for fault in starts)
        late += [Fault(Kind.START, first_s + 5.0, (machine,)) for machine in range(workers) if machine not in back]
    return script([*faults, *late])


def play(options: argparse.Namespace, folder: Path, report: Record) -> None:
    """The run under faults, and the one without."""
    flags = ("--checkpoint-every", options.checkpoint_every, "--protect", str(options.protect))
    with ExitStack() as stack, violations_in(report):
        links = stack.enter_context(Links([HOME] * options.workers)) if options.links else None
        hosts: Sequence[Host] = links.hosts if links is not None else [LOOPBACK] * options.workers
        disturbed = Together(folder / "disturbed", hosts)
        if os.geteuid() == 0:
            stack.enter_context(small_disks([worker.folder for worker in disturbed.workers]))
        disturbed.stages = options.stages
        player = Player(disturbed, options.faults, links, HOME)
        try:
            with disturbed:
                disturbed.begin(options.settings, flags)
                disturbed.reunite()
                player.play(disturbed.look)
                report["all_again_s"] = disturbed.reunite()
                disturbed.agree()
                disturbed.end()
        finally:
            summed_up(disturbed, player, report)
    if options.reference and not report["violations"]:
        calm = Together(folder / "undisturbed", [LOOPBACK] * options.workers)
        calm.stages = options.stages
        with violations_in(report, "undisturbed: "), calm:
            calm.begin(options.settings, flags)
            limit_s = 3 * 60 * options.minutes + DEADLINE_S
            calm.until(lambda: (calm.tokens() or [(0.0, 0)])[-1][1] >= report["tokens"], "as many tokens", limit_s)
            calm.end()
            compared(calm, options.tolerance, report)


def summed_up(swarm: Together, player: Player, report: Record) -> None:
    """The sums of the run."""
    names = Counter(event["event"] for worker in swarm.workers for event in worker.read())
    fired = Counter(fault.kind.value for fault in player.fired)
    tokens, losses = swarm.tokens(), swarm.losses()
    report |= {
        "fired": dict(fired),
        "rounds": swarm.front() + 1,
        "mixed": names["round_mixed"],
        "aborted": names["round_aborted"],
        "repaired": names["repaired"],
        "resumed": names["resumed"],
        "tokens": tokens[-1][1] if tokens else 0,
        "again": swarm.again(),
        "losses": losses,
        "val_loss": _mean([loss for _, loss in losses[-_LAST:]]),
    }


def compared(calm: Together, tolerance: float, report: Record) -> None:
    """The undisturbed loss where it had seen as many tokens."""
    least = report["losses"][-min(_LAST, len(report["losses"]))][0]

    def at(lost: int) -> float:
        """Its loss where it had seen as many tokens but those that were lost."""
        near = [loss for tokens, loss in calm.losses() if least <= tokens + lost <= report["tokens"]]
        before = [loss for tokens, loss in calm.losses() if tokens + lost < least]
        return _mean(near or before[-1:])

    report["calm_val_loss"] = at(0)
    report["excess"] = report["val_loss"] / report["calm_val_loss"] - 1
    report["excess_of_kept"] = report["val_loss"] / at(report["again"]) - 1
    if not report["excess"] <= tolerance:
        raise BenchError(
            f"validation loss {report['val_loss']:.4f} is {report['excess']:.2%} above {report['calm_val_loss']:.4f}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def page(report: Record) -> str:
    """The raw record for people."""
    rows = [[f"`{kind}`", count] for kind, count in sorted(report.get("fired", {}).items())]
    calm = report.get("calm_val_loss")
    of_stages = f" of a model in {stages} stages" if (stages := report.get("stages")) else ""
    loss = f"{report.get('val_loss', float('nan')):.4f} nats a byte after {report.get('tokens', 0)} tokens"
    against = "not compared" if calm is None else f"{calm:.4f} undisturbed, {report['excess']:+.2%}"
    if again := report.get("again"):
        against += f"; {again} of them were trained once more, after a loss of all"
        against += f": without these {report['excess_of_kept']:+.2%}" if calm is not None else ""
    return f"""# Real workers under a script of faults

Written by `scripts/bench chaos`; the raw record is the JSON file beside it. {report["workers"]} workers train
a small language model for {report["minutes"]:.3g} minutes
{"behind emulated links" if report["links"] else "on loopback"}. Whoever was killed comes back with `--resume`, so does
a whole swarm. The tokens are those of all workers in all lives, also of work that was lost.

{table("kind | had an effect:", rows)}

* {report.get("rounds", "?")} rounds{of_stages}: {report.get("mixed", "?")} contributions mixed,
  {report.get("aborted", "?")} aborted, {report.get("repaired", "?")} repairs,
  {report.get("resumed", "?")} comebacks from disk.
* From the last fault until all had mixed again: {report.get("all_again_s", "?")} s.
* Validation loss, mean of the last {_LAST}: {loss}; {against}.
{verdict(report, "members of a round always held bit-equal anchors, nothing hung, no process was left.")}

{signature(report)}"""


def main() -> int:
    """Run, write, and say by the exit code whether all held."""
    parser = Parser(SCRIPT, __doc__, "chaos")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long a drawn script takes")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--script", default="drawn", help="a file of faults as JSON; default: drawn from the seed")
    parser.add_argument("--deaths", type=int, default=1, help="of all workers at once, in a drawn script")
    parser.add_argument("--links", action="store_true", help="behind emulated links, which can be cut (root)")
    parser.add_argument("--checkpoint-every", default="10s")
    parser.add_argument("--protect", type=int, default=0, help="as of a worker")
    parser.add_argument("--tolerance", type=float, default=0.01, help="of the loss, against an undisturbed run")
    parser.add_argument("--no-reference", dest="reference", action="store_false", help="no undisturbed run")
    parser.settings()
    options = chaos_options(parser)
    options.settings = TASK | dict(text.split("=", 1) for text in options.set)
    options.stages = int(options.settings.get("pipeline.stages", 0))
    if options.script == "drawn":
        options.faults = drawn(options)
    else:
        try:
            options.faults = from_json(Path(options.script).read_text())
        except (OSError, ValueError) as err:
            raise BenchError(f"{options.script}: {err}") from err
        options.minutes = max((fault.end_s for fault in options.faults), default=0.0) / 60
    if reasons := unable(options.faults, links=options.links, disks=os.geteuid() == 0):
        raise BenchError("this script cannot be carried out on processes: " + "; ".join(reasons))
    if missing := {number for fault in options.faults for number in fault.machines if number >= options.workers}:
        raise BenchError(f"the script has machines {sorted(missing)}, and there are {options.workers} workers")
    print(to_json(options.faults), flush=True)
    stated = {key: getattr(options, key) for key in ("seed", "minutes", "workers", "links", "stages")}
    report: Record = {**stated, "task": options.settings, "faults": to_json(options.faults).splitlines()}
    return run_chaos(SCRIPT, options, report, lambda folder: play(options, folder, report), page)


if __name__ == "__main__":
    enter(main)

"""What a swarm costs the training loop it runs beside, and what a trainer's fault costs the others.

* step: microseconds of ``swarm.step`` between syncs, by what is reported as loss.
* landing: how long the loop stands still when a result comes back under overlap, against a plain copy of as many values
  into the same model, made between two steps of the same loop, as memory that was not touched for a while is slow.
* faults: two workers and a third whose trainer fails: its exit code, and the others' time from round to round, usual
  (median before the fault) and at worst afterwards.

    scripts/bench library --values 100000000 --fault raises --fault hangs

writes docs/benchmarks/library.json and, from it, docs/benchmarks/library.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import decentral
from decentral.run.swarm import Swarm
from scripts.benches.lib.command import Parser, enter, set_words
from scripts.benches.lib.processes import DEADLINE_S, Worker
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import spread
from scripts.benches.lib.tables import table

SCRIPT = "library"
#: What goes wrong, as ``tests.process.faulty`` knows it, and the inner steps of the rounds in which it does.
FAULTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("raises", "ends", "exits", "out_of_memory", "returns_nothing", "loss_is_none"), (4,)),
    **{"tokens_are_nan": (4,), "hangs": (4, 80)},
}
_HERE = {"worker.host": "127.0.0.1"}
_CALLS, _REPEATS = 20_000, 7
_LAYERS = 12
#: Inner steps of a round of the landing bench, those under which its sync is hidden, and what one takes.
_INNER, _DELAY, _STEP_S = 400, 330, 0.05
#: A plain copy is timed so many steps before each landing. It changes no value: nothing is trained here.
_COPIED_BEFORE = 100
_FAULTY_STEP_S = 0.05
#: The least that others wait for one; rounds are shorter and longer.
_PATIENCE_S = 3.0


def step_costs() -> list[Record]:
    """Microseconds of a step between syncs."""
    model = torch.nn.Linear(8, 8)
    losses: dict[str, dict[str, Any]] = {
        "none": {},
        "a float": {"loss": 1.0},
        "a tensor": {"loss": torch.ones((), requires_grad=True) * 2},
    }
    settings = {**_HERE, "method.inner_steps": 1_000_000}
    records = []
    with decentral.found(model, rounds=10, settings=settings) as swarm:
        _warm_up(swarm)
        for name, report in losses.items():
            micros = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                for _ in range(_CALLS):
                    swarm.step(tokens=512, **report)
                micros.append(1e6 * (time.perf_counter() - began) / _CALLS)
            records.append({"loss": name, "us": [round(value, 2) for value in micros]})
    return records


def _warm_up(swarm: Swarm) -> None:
    """Until the engine has measured how long a step takes and asks for many at once."""
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        swarm.step(tokens=512)


def landings(values: int, alpha: float, rounds: int) -> Record:
    """Milliseconds for which a landing holds up the loop, and those of a copy.

    Args:
        values: of the model, in twelve parameters.
        alpha: share of the local parameters that is kept.
        rounds: of which the last lands at the end of the run and does not count.
    """
    layers = [torch.nn.Parameter(torch.randn(values // _LAYERS)) for _ in range(_LAYERS)]
    mirror = [layer.detach().clone() for layer in layers]
    settings = {
        **_HERE,
        "method.inner_steps": _INNER,
        "method.delay_steps": _DELAY,
        "method.mix_alpha": alpha,
        "method.codec": "fp32",
    }
    held, copies = [], []
    with decentral.found({f"layers.{i}": p for i, p in enumerate(layers)}, rounds=rounds, settings=settings) as swarm:
        while not swarm.done:
            time.sleep(_STEP_S)
            step = swarm.global_step + 1
            if step % _INNER == _INNER - _COPIED_BEFORE:
                copies.append(_copy_ms(layers, mirror))
            began = time.perf_counter()
            swarm.step(tokens=1)
            seconds = time.perf_counter() - began
            if step % _INNER == 0 and step < rounds * _INNER:
                held.append(round(1000 * seconds, 1))
                _copy_ms(mirror, layers)
    return {"values": values, "alpha": alpha, "held_ms": held, "copy_ms": copies[: len(held)]}


def _copy_ms(to: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> float:
    began = time.perf_counter()
    for each, other in zip(to, of, strict=True):
        each.data.copy_(other.data)
    return round(1000 * (time.perf_counter() - began), 1)


def fault(name: str, inner_steps: int, folder: Path) -> Record:
    """Two workers beside one that fails in this way.

    Args:
        name: of the fault.
        inner_steps: of a round.
        folder: new.
    """
    before, after = (15, 25) if inner_steps < 10 else (5, 6)
    settings = {
        "task.factory": "tests.process.paced:build",
        "task.settings.numel": 20_000,
        "task.settings.step_s": _FAULTY_STEP_S,
        "task.settings.hurry": folder / "hurry",
        "method.inner_steps": inner_steps,
        "run.rounds": 100_000,
        "timing.beat_s": 0.5,
        "timing.ttl_s": 3.0,
        "timing.min_patience_s": _PATIENCE_S,
    }
    founder, other, faulty = (Worker(index, folder / str(index)) for index in range(3))
    try:
        founder.start("--new", *set_words(settings))
        other.start("--join", founder.address())
        faulty.folder.mkdir()
        task = ("--task", "tests.process.faulty:build", "--data", str(faulty.folder))
        faulty.start("--join", founder.address(), *task)
        founder.life.wait_for(lambda: len(_whole(founder)) >= before, "rounds of all three")
        began = time.time()
        (faulty.folder / "fault").write_text(name)
        founder.life.wait_for(lambda: len(_two(founder, began)) >= after, "rounds of the two others", 2 * DEADLINE_S)
        code = None if name == "hangs" else faulty.life.end(DEADLINE_S)
        times = [event["time"] for event in founder.mixed()]
    finally:
        for worker in (faulty, other, founder):
            if worker.process is not None:
                worker.life.end()
    usual = statistics.median(_gaps(time_ for time_ in times if time_ < began))
    gaps = _gaps([max(time_ for time_ in times if time_ < began), *(time_ for time_ in times if time_ >= began)])
    return {
        "fault": name,
        "inner_steps": inner_steps,
        "code": code,
        "usual_s": round(usual, 3),
        "worst_s": round(max(gaps), 3),
        "settled_s": round(statistics.median(gaps[-10:]), 3),
        "load": load_average(),
    }


def _whole(worker: Worker) -> list[Any]:
    return [event for event in worker.mixed() if len(event["members"]) == 3]


def _two(worker: Worker, since: float) -> list[Any]:
    return [event for event in worker.mixed() if len(event["members"]) == 2 and event["time"] > since]


def _gaps(times: Iterable[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def page(report: Record) -> str:
    """The report for people."""
    steps = [[each["loss"], spread(each["us"], ".2f", statistics.median)] for each in report["step"]]
    landed = [
        [
            f"{each['values']:,}",
            each["alpha"],
            spread(each["held_ms"], ".0f", statistics.median),
            spread(each["copy_ms"], ".0f", statistics.median),
            spread([h / c for h, c in zip(each["held_ms"], each["copy_ms"], strict=True)], ".2f", statistics.median),
        ]
        for each in report["landing"]
    ]
    faults = [
        [
            each["fault"].replace("_", " "),
            each["inner_steps"],
            "killed" if each["code"] is None else each["code"],
            *(f"{each[key]:.2f}" for key in ("usual_s", "worst_s", "settled_s")),
            f"{each['load']:.0f}",
        ]
        for each in report["faults"]
    ]
    return f"""# What a swarm costs the loop beside it

Written by `scripts/bench library`; the raw record is `library.json`. Medians, in brackets the least and the greatest.

## A step between syncs

Microseconds of one `swarm.step`, {_REPEATS} times {_CALLS:,} calls; required are less than 20.

{table("loss reported | µs:", steps)}

## A landing

For how long the loop stands still when a result comes back (`method.delay_steps` = {_DELAY} of {_INNER} steps, fp32,
one fragment, a worker alone), against a plain copy of as many values into the same parameters {_COPIED_BEFORE} steps
before each landing. Required is a ratio of at most 1.5. Alpha is the share of the local parameters that is kept.

{table("values: | alpha: | held up (ms): | copy (ms): | ratio:", landed)}

## A trainer that fails

Two workers beside one whose trainer fails, steps of {1000 * _FAULTY_STEP_S:g} ms: exit code of the third, and seconds
from one round of the others to the next. Required is that no round lasts twice the usual. Whose trainer hangs is waited
for as long as patience lasts, once: for as long as the others' own steps took, or {_PATIENCE_S:g} s here
(`timing.min_patience_s`, 5 s by default) where they took less. So it holds for a trainer that hangs where rounds are
longer than that.

{table("fault | steps a round: | code: | usual (s): | longest after it (s): | without it (s): | load:", faults)}

{signature(report)}"""


def main() -> None:
    """Measure what is asked for."""
    parser = Parser(SCRIPT, __doc__, "library")
    parser.add_argument("--values", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.repeated("--alpha", float, (0.0, 0.5))
    parser.repeated("--fault", str, tuple(FAULTS), choices=FAULTS)
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    report: Record = {
        "step": step_costs(),
        "landing": [landings(options.values, alpha, options.rounds) for alpha in options.alpha],
        "faults": [],
        **stamp(SCRIPT),
    }
    for name, inner_steps in ((each, steps) for each in options.fault for steps in FAULTS[each]):
        with tempfile.TemporaryDirectory(prefix="decentral-library-") as folder:
            report["faults"].append(fault(name, inner_steps, Path(folder)))
            print(report["faults"][-1], flush=True)
    write(options.out, report, page(report))


if __name__ == "__main__":
    enter(main)
